"""Learning-rate schedules over real optimizer steps, whatever the length of an epoch.

A shape turns the share of a run that is done, in [0, 1], into a factor on the learning rate. Where the number of steps
is known beforehand (`Pruner.planned_steps`) the share is step / steps; `Progress` serves runs whose epoch lengths
become known one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .pruner import Pruner, epoch_steps

Shape = Callable[[float], float]  # share done in [0, 1] -> factor on the learning rate


def constant() -> Shape:
    """The learning rate as it is."""
    return lambda done: 1.0


def cosine(floor: float = 0.0) -> Shape:
    """Half a cosine from 1 to `floor`.

    Example:
        >>> round(cosine()(0.5), 6)
        0.5

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5, without restarts. Differs: nothing.
    """
    return lambda done: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def linear(floor: float = 0.0) -> Shape:
    """A straight line from 1 to `floor`."""
    return lambda done: floor + (1 - floor) * (1 - done)


def step(at: tuple[float, ...] = (1 / 3, 2 / 3), factor: float = 0.1) -> Shape:
    """Multiplied by `factor` at each of the shares `at`; by default a tenth at every third of the run."""
    return lambda done: factor ** sum(done >= place - 1e-12 for place in at)


def exponential(last: float = 0.01) -> Shape:
    """The same ratio at every step, from 1 to `last`."""
    return lambda done: last**done


def one_cycle(rise: float = 0.3, div: float = 25.0, final_div: float = 1e4) -> Shape:
    """Up from 1 / div to 1 along half a cosine for the share `rise`, then down to 1 / (div * final_div).

    The optimizer's learning rate is the peak.

    Source: Smith and Topin 2017, arXiv:1708.07120, in the form of torch's OneCycleLR. Differs: a function of the share
        done, whose peak is at `rise` exactly; torch counts steps and reaches peak and end one step sooner.
    """
    up, down = cosine(1 / div), cosine(1 / (div * final_div))
    return lambda done: up(1 - done / rise) if done < rise else down((done - rise) / (1 - rise))


def warmed_up(shape: Shape, share: float) -> Shape:
    """`shape` over what follows a linear rise from 0 that takes the first `share` of the run, in [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"the warm-up's share of the run must be in [0, 1), got {share}")
    if share == 0:
        return shape
    return lambda done: done / share if done < share else shape((done - share) / (1 - share))


class Progress:
    """The share of a run's steps that is done, when epoch lengths become known one at a time.

    An epoch is given the share of what is left that its samples have among those still planned; epochs to come are
    expected to reach what the running one did. With fixed budgets this is step / planned_steps, and for any budget it
    ends at 1.

    Args:
        pruner: whose epochs are counted.
        batch_size, world_size, accumulate, drop_last: as in `Pruner.planned_steps`.
    Example:
        progress = Progress(pruner, batch_size=128)
        scheduler = progress.scheduler(optimizer, cosine())
        ... optimizer.step(); progress.step(); scheduler.step()
    """

    def __init__(
        self, pruner: Pruner, batch_size: int, *, world_size: int = 1, accumulate: int = 1, drop_last: bool = False
    ):
        self.pruner = pruner
        self.done = 0.0
        self._batch_size = batch_size
        self._options = {"world_size": world_size, "accumulate": accumulate, "drop_last": drop_last}
        self._epoch: int | None = None
        self._begin = 0.0  # share done when the epoch began
        self._end = 0.0  # and when it ends
        self._taken = 0  # steps in the epoch
        self._steps = 0  # that it has

    def step(self) -> float:
        """Count an optimizer step, taken in the epoch that was selected last; returns the share done."""
        epoch = self.pruner.selected
        if epoch is None:
            raise ValueError("no epoch has been selected yet: call step after an optimizer step in the training loop")
        if epoch != self._epoch:
            self._open(epoch)
        self._taken = min(self._taken + 1, self._steps)
        self.done = self._begin + (self._end - self._begin) * self._taken / max(self._steps, 1)
        return self.done

    @property
    def factor(self) -> float:
        """What the method multiplies the learning rate by in the epoch that was selected last: 1 for most of them."""
        pruner, epoch = self.pruner, self.pruner.selected
        return 1.0 if epoch is None or not pruner.policy.scales_rate else pruner.size / pruner.counts[epoch]

    def scheduler(self, optimizer: Optimizer, shape: Shape) -> LambdaLR:
        """A torch scheduler that follows this progress, and the method's factor; call its `step` after ours."""
        return LambdaLR(optimizer, lambda _: shape(self.done) * self.factor)

    def state_dict(self) -> dict[str, float | int | None]:
        """Plain numbers."""
        return {"done": self.done, "epoch": self._epoch, "begin": self._begin, "end": self._end,
                "taken": self._taken, "steps": self._steps, "planned": self._planned()}  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Take up where `state_dict` left off; in a run with more epochs, the steps taken are a smaller share of it."""
        share = state["planned"] / max(self._planned(), 1)
        self.done, self._epoch = state["done"] * share, state["epoch"]
        self._begin, self._end = state["begin"] * share, state["end"] * share
        self._taken, self._steps = state["taken"], state["steps"]

    def _open(self, epoch: int) -> None:
        counts = self.pruner.counts
        here = len(self.pruner.select(epoch).index)
        reach = here / counts[epoch]
        self._steps = self._count(here)
        later = sum(
            # at least one: where a small `keep` is out of reach, none would end the schedule with the warm-up
            max(1, self._count(count if count == self.pruner.size else min(self.pruner.size, round(count * reach))))
            for count in counts[epoch + 1 :]
        )
        self._epoch, self._begin, self._taken = epoch, self.done, 0
        self._end = self._begin + (1 - self._begin) * self._steps / max(self._steps + later, 1)

    def _planned(self) -> int:
        return sum(self._count(count) for count in self.pruner.counts)

    def _count(self, samples: int) -> int:
        return epoch_steps(samples, self._batch_size, **self._options)
