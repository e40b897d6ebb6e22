"""What the Trainers of Hugging Face and Lightning share: checks of the pruner, and how many samples it saves."""

from __future__ import annotations

from typing import Any

from .. import checks
from ..pruner import Pruner


class Savings:
    """Samples trained, beside those that full epochs would have trained."""

    def __init__(self) -> None:
        self.kept = 1.0  # share of the data in this epoch's selection
        self.trained = 0
        self.replaced = 0.0  # samples of full epochs that the trained ones stand for

    def add(self, samples: int) -> None:
        """Count samples that were trained in this epoch."""
        self.trained += samples
        self.replaced += samples / self.kept

    def values(self) -> dict[str, float]:
        """Values to log: `kept`, `samples_trained` (on all ranks) and `samples_saved` (of what full epochs train)."""
        saved = {"samples_saved": 1 - self.trained / self.replaced} if self.trained else {}
        return {"kept": self.kept, "samples_trained": self.trained, **saved}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"trained": self.trained, "replaced": self.replaced}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.trained, self.replaced = state["trained"], state["replaced"]


def check_pruner(pruner: Any) -> None:
    """Raise TypeError unless this is a Pruner, ValueError if its method needs more than a Trainer's steps."""
    if not isinstance(pruner, Pruner):
        raise TypeError(f"pruner must be a dataprune.Pruner, such as dataprune.emp(...), got {type(pruner).__name__}")
    if pruner.policy.forwards:
        raise ValueError(
            "this pruner's method (kakurenbo, ies) forwards what an epoch leaves out, which a Trainer does not: train "
            "in a loop of your own, which docs/methods/ies.md shows, or take a method that reads trained samples alone"
        )


def check_new(used: bool, what: str, resume: str) -> None:
    """Raise ValueError where a pruner was used; each `what` needs a new one, and `resume` brings a state back."""
    if used:
        raise ValueError(
            f"the pruner has begun to train already: build a new one for each {what}; {resume} brings its state back"
        )


def check_epochs(argument: str, epochs: float, pruner: Pruner, advice: str) -> None:
    """Raise ValueError where a Trainer's number of epochs is not the pruner's."""
    if epochs != pruner.epochs:
        raise ValueError(f"{argument}={epochs:g}, but the pruner was built for {pruner.epochs} epochs: {advice}")


def check_batch_size(pruner: Pruner, batch_size: int, world_size: int, drop_last: bool) -> None:
    """Raise ValueError where an epoch keeps fewer samples per rank than one batch, which would be dropped."""
    if drop_last:
        checks.check_batch_size("a pruned epoch", -(-min(pruner.counts) // world_size), batch_size)
