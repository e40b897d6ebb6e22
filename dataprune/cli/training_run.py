"""One training run: its progress bar, its trackers, and the record printed at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..lab.training.settings import Settings
from .output import note, progress_bar
from .shell import first_rank


def carry_out(settings: Settings, out: Path, data: Any, json_: bool) -> None:
    """Carry a run out, with a bar, and print its record."""
    from ..integrations.trackers import Followed
    from ..lab.training.run import fit

    done = (out / "metrics.json").exists()
    names = settings.track if first_rank() else ""
    with progress_bar(settings.epochs, "epochs") as bar, Followed(names, out, settings.as_dict()) as followed:

        def report(line: dict[str, Any]) -> None:
            followed.catch_up()
            bar.update(line["epoch"] + 1 - bar.n)
            bar.set_postfix(loss=f"{line['loss']:.3f}" if line["loss"] is not None else "-", samples=line["samples"])

        metrics = fit(settings, out, data=data, report=report)
        followed.catch_up()  # of a run that was finished before
    if not first_rank():
        return
    note(metrics.get("note"))
    note(f"this run was finished before, its record is read from {out}" if done else None)
    if json_:
        print(json.dumps(metrics))
        return
    accuracy = (
        "not tested"
        if metrics["accuracy"] is None
        else f"{metrics.get('metric', 'accuracy')} {metrics['accuracy']:.4f}"
    )
    if "knn_accuracy" in metrics:
        accuracy = f"linear probe {metrics['accuracy']:.4f}, nearest neighbours {metrics['knn_accuracy']:.4f}"
    print(
        f"{metrics['method']}: {accuracy}, {metrics['samples']:,} samples in {metrics['steps']:,} steps, "
        f"{metrics['seconds']:.1f} s (selecting {metrics['select_seconds']:.2f} s)\nrun: {out}"
    )
    if "scores" in metrics:
        print(f"scores: {out / metrics['scores']} ({settings.statistics})")
