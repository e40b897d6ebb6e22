"""Progress of training on stderr: a bar where that is a terminal, lines where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .shell import first_rank

_SECONDS = 30.0  # between two lines of a run among several, off a terminal


class TrainingProgress:
    """Reports the epochs of one or more runs.

    Args:
        epochs: epochs of all runs together; 0 where that is not known.
        several: whether these are the runs of a comparison, which get fewer lines than a single run.
        bar: the bar, None off a terminal.
        quiet: whether nothing is reported.
    """

    def __init__(self, epochs: int, several: bool, bar: Progress | None, quiet: bool) -> None:
        self._epochs, self._several, self._bar, self._quiet = epochs, several, bar, quiet
        self._done = 0.0
        self._printed = time.monotonic()
        self._task: TaskID | None = None if bar is None else bar.add_task("", total=epochs or None, text="")

    def step(self, fraction: float, text: str = "") -> None:
        """Move the bar within an epoch.

        Args:
            fraction: share of the running epoch's steps that is done, in [0, 1].
            text: what stands beside the bar.
        """
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done + fraction, text=text)

    def epoch(self, line: dict[str, Any], run: str = "") -> None:
        """Report the end of an epoch.

        Args:
            line: its line of the history.
            run: name of the run, where there are several.
        """
        self._done = self._done + 1 if self._several else line["epoch"] + 1.0
        text = " ".join([run, _text(line)]).strip()
        self.step(0.0, text)
        if self._bar is None and not self._quiet:
            if self._several and time.monotonic() - self._printed < _SECONDS and self._done != self._epochs:
                return
            self._printed = time.monotonic()
            of = f"/{self._epochs}" if self._epochs else ""
            print(f"epoch {self._done:.0f}{of}: {text}", file=sys.stderr)

    def run_epoch(self, *run_and_line: Any) -> None:
        """Report an epoch of one run among several: its name, its seed if it has one, and the line of the history."""
        *run, line = run_and_line
        self.epoch(line, f"{run[0]} seed {run[1]}," if len(run) > 1 else f"{run[0]},")


@contextmanager
def training_progress(epochs: int, *, several: bool = False, quiet: bool = False) -> Iterator[TrainingProgress]:
    """Show the progress of training on stderr, from the first rank alone.

    Args:
        epochs: epochs of all runs together; 0 where that is not known.
        several: whether these are the runs of a comparison.
        quiet: print no lines off a terminal.
    """
    console = Console(stderr=True)
    if not first_rank() or not console.is_terminal:
        yield TrainingProgress(epochs, several, None, quiet or not first_rank())
        return
    columns = (BarColumn(), TextColumn("{task.completed:.1f}/{task.total} epochs {task.fields[text]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        yield TrainingProgress(epochs, several, bar, quiet)


def _text(line: dict[str, Any]) -> str:
    """Loss, accuracy and samples of an epoch, as far as it has them."""
    parts = [] if line.get("loss") is None else [f"loss {line['loss']:.3f}"]
    for name, heading in (("train_accuracy", "train accuracy"), ("val_accuracy", "val. accuracy")):
        if line.get(name) is not None:
            parts.append(f"{heading} {100 * line[name]:.1f} %")
    return ", ".join([*parts, f"{line['samples']:,} samples"])
