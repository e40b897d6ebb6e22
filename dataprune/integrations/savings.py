"""What a Hugging Face Trainer's run keeps beside the pruner: how much was trained, and how far the schedule is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..learning_rate import Progress


class Savings:
    """Samples trained, beside those that full epochs would have trained."""

    def __init__(self) -> None:
        self.trained = 0
        self.replaced = 0.0  # samples of full epochs that the trained ones stand for
        self.elsewhere = 0.0  # seconds of evaluation

    def add(self, samples: int, kept: float) -> None:
        """Samples of an epoch that keeps this share of the data have been trained."""
        self.trained += samples
        self.replaced += samples / kept

    def note(self, logs: dict[str, Any], kept: float) -> None:
        """Add to the Trainer's log of a loss, or of the end, what pruning does; of others, note their seconds."""
        if "loss" not in logs and "train_runtime" not in logs:
            self.elsewhere += sum(value for name, value in logs.items() if name.endswith("_runtime"))
        elif self.trained:
            logs["kept"] = round(kept, 6)
            logs["samples_trained"] = self.trained
            logs["samples_saved"] = round(1 - self.trained / self.replaced, 6)
            if "train_runtime" in logs:
                seconds = max(0.0, logs["train_runtime"] - self.elsewhere)
                logs["seconds_saved"] = round(seconds * (self.replaced / self.trained - 1), 4)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; seconds belong to a session."""
        return {"trained": self.trained, "replaced": self.replaced}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.trained, self.replaced = state["trained"], state["replaced"]


class Pace:
    """`Progress` for schedules that are asked by the number of steps taken, as torch's LambdaLR asks.

    Args:
        progress: counts the share of the run that is done.
    """

    def __init__(self, progress: Progress):
        self.progress = progress
        self._taken = 0

    def over_share(self, shape: Callable[..., float], steps: int) -> Callable[[int], float]:
        """A schedule over `steps` steps, as one over the share of the run that is done."""

        def factor(step: int) -> float:
            while self._taken < step:  # asked once for each group of parameters
                self.progress.step()
                self._taken += 1
            return shape(self.progress.done * steps)

        return factor

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"progress": self.progress.state_dict(), "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.progress.load_state_dict(state["progress"])
        self._taken = state["taken"]
