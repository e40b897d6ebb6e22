"""Gradual pruning: more and more of the weights while the model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import CheckpointError
from . import layers as _layers
from .magnitude import prune

Schedule = Callable[[int], float]  # optimizer steps taken -> share of the weights that is zero, in [0, 1)


def cubic(final: float, steps: int, *, initial: float = 0.0, start: int = 0, every: int = 1) -> Schedule:
    """Fast at first, when there is much to spare, then ever more slowly.

    Args:
        final: share pruned from step `start` + `steps` on, in [0, 1).
        steps: optimizer steps from `initial` to `final`, at least 1.
        initial: share pruned at step `start`, in [0, 1).
        start: step at which pruning starts; nothing is pruned before.
        every: steps between two prunings; the share stays the same in between.
    Returns:
        Schedule of the share pruned.
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
        raise ValueError(f"initial is above final ({initial} > {final}): weights that are pruned do not come back")
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
    """Prunes single weights step by step, as a schedule says.

    Args:
        model: pruned in place, with masks.
        schedule: optimizer steps taken -> share of the weights pruned; where it falls, what is pruned stays pruned.
        scope: "layer" or "global", as in `prune`.
        exclude: layers that are left alone, as in `prune`.
        seed: decides between equal magnitudes.
    Attributes:
        steps: taken so far.
        amount: share pruned last; 0.0 before the first pruning.
    Raises:
        ValueError: if the model has no layer to prune.
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
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        scope: str = "layer",
        exclude: _layers.Exclude = (),
        seed: int = 0,
    ):
        self.steps = 0
        self.amount = 0.0
        self._model, self._schedule, self._scope, self._seed = model, schedule, scope, seed
        self._exclude = exclude if isinstance(exclude, (str, nn.Module)) else tuple(exclude)
        prune(model, 0.0, scope=scope, exclude=self._exclude)  # wrong arguments are told of here, not in mid-training

    def step(self) -> None:
        """Call after every `optimizer.step()`: prunes where the schedule's share has risen, else costs nothing."""
        self.steps += 1
        amount = self._schedule(self.steps)
        if amount > self.amount:
            prune(self._model, amount, scope=self._scope, exclude=self._exclude, seed=self._seed)
            self.amount = amount

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule; the masks are in the model's own state."""
        return {"steps": self.steps, "amount": self.amount}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another one was; put its masks on the model with `apply` and load the model's state as well.

        Raises:
            CheckpointError: if the state is not of a Gradual.
        """
        if set(state) != {"steps", "amount"}:
            raise CheckpointError(f"this is no state of a Gradual: it holds {', '.join(map(str, state)) or 'nothing'}")
        self.steps, self.amount = state["steps"], state["amount"]
