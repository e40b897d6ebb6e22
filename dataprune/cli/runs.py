"""Carry out a training run or a sweep: progress and notes on stderr, and the record of a run on stdout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lab.training.settings import Settings
from .output import first_rank, note, print_json
from .progress import training_progress

if TYPE_CHECKING:
    from ..lab.training.epoch_history import EpochRecord
    from ..lab.training.run_folder import RunRecord


def train_run(settings: Settings, out: Path, json_: bool, data: Any = None) -> None:
    """Train one model in the folder `out`, or continue an interrupted run, and print its record."""
    from ..integrations.trackers import following
    from ..lab.training.run import run

    done = (out / "metrics.json").exists()
    trackers = settings.track if first_rank() else ""
    with (
        training_progress(settings.epochs, quiet=json_) as progress,
        following(trackers, out, settings.as_dict()) as catch_up,
    ):

        def on_epoch(model: Any, line: EpochRecord) -> None:
            catch_up()
            progress.epoch(line.as_dict())

        record = run(settings, out, data=data, on_epoch=on_epoch, on_step=progress.step)
        catch_up()  # epochs of a run that was finished before
    if not first_rank():
        return
    note(record.note)
    note(f"this run was finished before; its record is read from {out}" if done else None)
    if json_:
        print_json(record.as_dict())
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


def run_sweep(
    carry_out: Callable[..., Any], sweep: Any, out: Path, *, data: Any, epochs: int, quiet: bool, **options: Any
) -> Any:
    """The result of a sweep, from the function that carries it out; None on all ranks but the first."""
    if first_rank():
        note(data.note)
    with training_progress(epochs, several=True, quiet=quiet) as progress:
        result = carry_out(sweep, out, data=data, report=progress, **options)
    return result if first_rank() else None
