"""Progress of training on stderr: a bar where that is a terminal, lines where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .output import first_rank

_SECONDS = 30.0  # between two lines of a run among several, off a terminal


class TrainingProgress:
    """Reports the steps and epochs of one or `several` runs, which get fewer lines each.

    There are so many `epochs` of all runs together, 0 where that is not known; the bar is None off a terminal.
    """

    def __init__(self, epochs: int, several: bool, bar: Progress | None, quiet: bool) -> None:
        self._epochs, self._several, self._bar, self._quiet = epochs, several, bar, quiet
        self._done = 0
        self._run, self._accuracy = "", list[str]()  # of the last epoch
        self._printed = time.monotonic()
        if bar is not None:
            bar.add_task("", total=epochs or None, text="")

    def step(self, step: int, steps: int, loss: float | None = None, run: str = "") -> None:
        """Move the bar within an epoch: `step` of its `steps` optimizer steps are taken, `loss` is the last known."""
        if run != self._run:
            self._run, self._accuracy = run, []
        self._show(self._done + step / max(steps, 1), loss)

    def __call__(self, arm: str, seed: int, line: dict[str, Any]) -> None:
        """Report an epoch of one run among several."""
        self.epoch(line, f"{arm} seed {seed}")

    def epoch(self, line: dict[str, Any], run: str = "") -> None:
        """Report the end of an epoch by its line of the history, and the name of the run where there are several."""
        self._done = self._done + 1 if self._several else line["epoch"] + 1
        self._run, self._accuracy = run, _accuracy(line)
        text = self._show(self._done, line.get("loss"), f"{line['samples']:,} samples")
        if self._bar is None and not self._quiet:
            if self._several and time.monotonic() - self._printed < _SECONDS and self._done != self._epochs:
                return
            self._printed = time.monotonic()
            of = f"/{self._epochs}" if self._epochs else ""
            print(f"epoch {self._done}{of}: {text}", file=sys.stderr)

    def _show(self, epochs: float, loss: float | None, *more: str) -> str:
        shown = [self._run, *([] if loss is None else [f"loss {loss:.3f}"]), *self._accuracy, *more]
        text = ", ".join(filter(None, shown))
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=epochs, text=text)
        return text


@contextmanager
def training_progress(epochs: int, *, several: bool = False, quiet: bool = False) -> Iterator[TrainingProgress]:
    """Show the progress of training on stderr, from the first rank alone; `quiet` prints no lines off a terminal."""
    console = Console(stderr=True)
    if not first_rank() or not console.is_terminal:
        yield TrainingProgress(epochs, several, None, quiet or not first_rank())
        return
    columns = (BarColumn(), TextColumn("{task.completed:.1f}/{task.total} epochs {task.fields[text]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        yield TrainingProgress(epochs, several, bar, quiet)


def _accuracy(line: dict[str, Any]) -> list[str]:
    headings = {"train_accuracy": "train accuracy", "val_accuracy": "val. accuracy"}
    return [f"{heading} {100 * line[name]:.1f} %" for name, heading in headings.items() if line.get(name) is not None]
