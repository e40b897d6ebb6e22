"""Gradual pruning: a growing share of the weights while the model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import CheckpointError
from ._prune import prune
from .layers import Exclude

Schedule = Callable[[int], float]  # optimizer steps taken -> share of the weights that is zero, in [0, 1)


def cubic(final: float, steps: int, *, initial: float = 0.0, start: int = 0, every: int = 1) -> Schedule:
    """Prune quickly at first, and ever more slowly towards the final share.

    Args:
        final: share pruned from step `start` + `steps` on, in [0, 1).
        steps: optimizer steps from `initial` to `final`, at least 1.
        initial: share pruned at step `start`, in [0, 1).
        start: step at which pruning starts; nothing is pruned before.
        every: steps between two prunings; the share stays the same in between.
    Raises:
        ValueError: if a share is outside [0, 1), initial is above final, or a number of steps is out of range.
    Example:
        >>> [round(cubic(0.8, 4, start=2)(step), 3) for step in range(8)]
        [0.0, 0.0, 0.0, 0.463, 0.7, 0.788, 0.8, 0.8]

    Source: Zhu and Gupta 2017, arXiv:1710.01878, Eq. 1, `steps` being n·Δt and `every` Δt. Differs: nothing.
    """
    for name, value in (("final", final), ("initial", initial)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is the share pruned, in [0, 1), got {value}")
    if initial > final:
        raise ValueError(f"initial is above final ({initial} > {final}): pruned weights are not restored")
    for name, value, least in (("steps", steps, 1), ("start", start, 0), ("every", every, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")

    def schedule(step: int) -> float:
        if step < start:
            return 0.0
        if step >= start + steps:
            return final
        done = (step - start) // every * every / steps
        return final + (initial - final) * (1 - done) ** 3

    return schedule


class Gradual:
    """Prunes single weights of a model step by step, with masks, following a schedule.

    Args:
        schedule: optimizer steps taken -> share of the weights pruned; pruned weights stay pruned if it falls.
        scope: as `exclude` and `seed` and their errors, that of `prune`.
    Attributes:
        steps: steps taken so far.
        amount: share of the last pruning; 0.0 before the first.
    Example:
        >>> model = nn.Linear(10, 10)
        >>> gradual = Gradual(model, cubic(0.5, steps=2))
        >>> for _ in range(2):  # after every optimizer.step()
        ...     gradual.step()
        >>> int((model.weight == 0).sum())
        50

    Source: Zhu and Gupta 2017, arXiv:1710.01878. Differs: nothing.
    """

    def __init__(
        self, model: nn.Module, schedule: Schedule, *, scope: str = "layer", exclude: Exclude = (), seed: int = 0
    ):
        self.steps, self.amount = 0, 0.0
        self._model, self._schedule, self._scope, self._seed = model, schedule, scope, seed
        self._exclude = exclude if isinstance(exclude, (str, nn.Module)) else tuple(exclude)
        prune(model, 0.0, scope=scope, exclude=self._exclude)  # raises for wrong arguments now, not during training

    def step(self) -> None:
        """Prune if the schedule's share has risen; call it after every `optimizer.step()`."""
        self.steps += 1
        amount = self._schedule(self.steps)
        if amount > self.amount:
            prune(self._model, amount, scope=self._scope, exclude=self._exclude, seed=self._seed)
            self.amount = amount

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedule; the masks are in the model's own state."""
        return {"steps": self.steps, "amount": self.amount}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position in the schedule; apply the masks with `apply` and load the model's state separately."""
        if set(state) != {"steps", "amount"}:
            raise CheckpointError(f"not the state of a Gradual: it holds {', '.join(map(str, state)) or 'nothing'}")
        self.steps, self.amount = state["steps"], state["amount"]
