"""How much of the data an epoch keeps: callables from a 0-based epoch to a fraction in (0, 1].

All raise ValueError for arguments out of range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class constant:
    """Keep the same fraction in every epoch.

    Args:
        keep: fraction in (0, 1].
    """

    keep: float

    def __post_init__(self) -> None:
        check_fraction("keep", self.keep)

    def __call__(self, epoch: int) -> float:
        return self.keep


@dataclass(frozen=True)
class window:
    """Keep all data before epoch `start` and from epoch `stop` on; `keep` in between.

    Args:
        keep: fraction kept inside the window, in (0, 1].
        start: first pruned epoch.
        stop: first epoch after the pruned ones.
    Example:
        >>> [window(0.5, 1, 3)(epoch) for epoch in range(4)]
        [1.0, 0.5, 0.5, 1.0]
    """

    keep: float
    start: int
    stop: int

    def __post_init__(self) -> None:
        check_fraction("keep", self.keep)
        if self.start < 0:
            raise ValueError(f"start is the first pruned epoch and counts from 0, got {self.start}")

    def __call__(self, epoch: int) -> float:
        return self.keep if self.start <= epoch < self.stop else 1.0


@dataclass(frozen=True)
class linear:
    """Go from `first` in epoch 0 to `last` in epoch `epochs` - 1, in equal steps.

    Args:
        first: fraction kept in epoch 0, in (0, 1].
        last: fraction kept in the last epoch, in (0, 1].
        epochs: number of epochs, at least 1.
    Example:
        >>> [linear(1.0, 0.5, 3)(epoch) for epoch in range(3)]
        [1.0, 0.75, 0.5]
    """

    first: float
    last: float
    epochs: int

    def __post_init__(self) -> None:
        check_fraction("first", self.first)
        check_fraction("last", self.last)
        check_whole("epochs", self.epochs)

    def __call__(self, epoch: int) -> float:
        return self.first + (self.last - self.first) * min(epoch / max(self.epochs - 1, 1), 1.0)


def full_from(epochs: int, anneal: float) -> int:
    """First epoch of the annealing at the end, in which all data is trained: ceil((1 - anneal) * epochs).

    Raises ValueError if anneal, the share of full epochs at the end, is outside [0, 1].

    Source: Xiao et al., arXiv:2408.16031, Eq. 14; Qin et al. 2024, arXiv:2303.04947. Differs: nothing.
    """
    if not 0 <= anneal <= 1:
        raise ValueError(f"anneal is the share of full epochs at the end, in [0, 1], got {anneal}")
    return math.ceil(round((1 - anneal) * epochs, 9))  # 1 - 0.7 is a hair above 0.3


def epoch_steps(samples: int, batch_size: int, *, world_size: int, accumulate: int, drop_last: bool) -> int:
    """Optimizer steps of an epoch of so many samples; arguments as in `Pruner.planned_steps`."""
    for name, value in (("batch_size", batch_size), ("world_size", world_size), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    share = -(-samples // world_size)
    batches = share // batch_size if drop_last else -(-share // batch_size)
    return -(-batches // accumulate)


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        sized = hasattr(value, "__len__") and not isinstance(value, str)
        got = f"a {type(value).__name__}: give its length, len(...)" if sized else repr(value)
        raise ValueError(f"{name} must be a whole number of at least {least}, got {got}")


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
        samples = isinstance(value, Integral) and value > 1
        hint = f"; for {value} samples write {name}={value}/len(dataset)" if samples else ""
        raise ValueError(f"{name} is the fraction kept, in (0, 1], got {value!r}{hint}")


def fraction_of(keep: float, size: int) -> float:
    """The fraction that a static method keeps, where `keep` is one, or a whole number of samples above 1.

    Raises:
        ValueError: if it is neither, or above `size`.
    """
    if isinstance(keep, Integral) and keep > 1:
        if keep > size:
            raise ValueError(f"keep asks for {keep} samples, there are {size}")
        return keep / size
    check_fraction("keep", keep)
    return keep
