"""One training run: its progress, its trackers, and the record printed at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..lab.training.settings import Settings
from .output import note
from .progress import training_progress
from .shell import first_rank


def carry_out(settings: Settings, out: Path, data: Any, json_: bool, name: str = "") -> None:
    """Train one model, or continue an interrupted run, and print its record.

    Args:
        settings: of the run.
        out: its folder.
        data: the settings' data, where it is loaded already.
        json_: whether the record is printed as JSON.
        name: what the run is called; its method by default.
    """
    from ..integrations.trackers import Followed
    from ..lab.training.run import fit

    done = (out / "metrics.json").exists()
    trackers = settings.track if first_rank() else ""
    with (
        training_progress(settings.epochs, quiet=json_) as progress,
        Followed(trackers, out, settings.as_dict()) as followed,
    ):

        def report(line: dict[str, Any]) -> None:
            followed.catch_up()
            progress.epoch(line)

        metrics = fit(settings, out, data=data, report=report)
        followed.catch_up()  # epochs of a run that was finished before
    if not first_rank():
        return
    note(metrics.get("note"))
    note(f"this run was finished before; its record is read from {out}" if done else None)
    if json_:
        print(json.dumps(metrics))
        return
    print(
        f"{name or metrics['method']}: {_accuracy(metrics)}, {metrics['samples']:,} samples in {metrics['steps']:,} "
        f"steps, {metrics['seconds']:.1f} s (selection {metrics['select_seconds']:.2f} s)\nrun: {out}"
    )
    if "scores" in metrics:
        print(f"scores: {out / metrics['scores']} ({settings.statistics})")


def _accuracy(metrics: dict[str, Any]) -> str:
    if metrics["accuracy"] is None:
        return "not tested"
    if "knn_accuracy" in metrics:
        return f"linear probe {metrics['accuracy']:.4f}, nearest neighbours {metrics['knn_accuracy']:.4f}"
    return f"{metrics.get('metric', 'accuracy')} {metrics['accuracy']:.4f}"
