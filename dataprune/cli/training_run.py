"""One training run: its progress, its trackers, and the record printed at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lab.training.settings import Settings
from .output import note
from .progress import training_progress
from .shell import first_rank

if TYPE_CHECKING:
    from ..lab.training.epoch_history import EpochRecord
    from ..lab.training.run_folder import RunRecord


def carry_out(settings: Settings, out: Path, data: Any, json_: bool) -> None:
    """Train one model, or continue an interrupted run, and print its record.

    Args:
        settings: of the run.
        out: its folder.
        data: the settings' data, where it is loaded already.
        json_: whether the record is printed as JSON.
    """
    from ..integrations.trackers import Followed
    from ..lab.training.run import run

    done = (out / "metrics.json").exists()
    trackers = settings.track if first_rank() else ""
    with (
        training_progress(settings.epochs, quiet=json_) as progress,
        Followed(trackers, out, settings.as_dict()) as followed,
    ):

        def on_epoch(model: Any, line: EpochRecord) -> None:
            followed.catch_up()
            progress.epoch(line.as_dict())

        record = run(settings, out, data=data, on_epoch=on_epoch)
        followed.catch_up()  # epochs of a run that was finished before
    if not first_rank():
        return
    note(record.note)
    note(f"this run was finished before; its record is read from {out}" if done else None)
    if json_:
        print(json.dumps(record.as_dict()))
        return
    print(
        f"{record.method}: {_accuracy(record)}, {record.samples:,} samples in {record.steps:,} steps, "
        f"{record.seconds:.1f} s (selection {record.select_seconds:.2f} s)\nrun: {out}"
    )
    if record.scores is not None:
        print(f"scores: {out / record.scores} ({settings.statistics})")


def _accuracy(record: RunRecord) -> str:
    if record.accuracy is None:
        return "not tested"
    if "knn_accuracy" in record.metrics:
        return f"linear probe {record.accuracy:.4f}, nearest neighbours {record.metrics['knn_accuracy']:.4f}"
    return f"{record.metric or 'accuracy'} {record.accuracy:.4f}"
