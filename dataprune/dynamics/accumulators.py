"""Accumulators of one value per presentation: the last, the mean, or a statistic of a sliding window.

An accumulator keeps a few numbers per sample, whatever the number of epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]  # each (N,) or (N, values), on the CPU


@dataclass(frozen=True)
class Field:
    """A tensor of a state: its dtype, shape per sample and initial value."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    initial: float = 0.0

    def allocate(self, size: int) -> Tensor:
        """Make the tensor of `size` samples."""
        return torch.full((size, *self.shape), self.initial, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class Accumulator:
    """Accumulates a stream of values per sample."""

    fields: dict[str, Field]  # the tensors of its state
    add: Callable[[State, Tensor, Tensor], None]  # a value (K,) to each of the unique positions (K,), in place
    score: Callable[[State], Tensor]  # (N,), NaN where there is none


def last() -> Accumulator:
    """Keep the last value."""

    def add(state: State, at: Tensor, value: Tensor) -> None:
        state["value"][at] = value

    return Accumulator({"value": Field(torch.float32, initial=torch.nan)}, add, lambda state: state["value"])


def mean(sign: float = 1.0) -> Accumulator:
    """Average all values, times `sign`."""
    return Accumulator(_MEAN, _add_to_mean, lambda state: sign * _counted(state["mean"], state["count"]))


def forgetting(*, never_is_last: bool) -> Accumulator:
    """Count changes from 1 to 0 in a stream of zeros and ones.

    With `never_is_last` a sample that was never 1 scores the largest number of presentations of any sample, not 0.
    """

    def add(state: State, at: Tensor, value: Tensor) -> None:
        correct = value > 0.5
        state["forgotten"][at] += (state["correct"][at] & ~correct).int()
        state["correct"][at] = correct
        state["learned"][at] |= correct
        state["count"][at] += 1

    def score(state: State) -> Tensor:
        forgotten, count = state["forgotten"].float(), state["count"]
        if never_is_last:
            forgotten[~state["learned"]] = float(count.max())
        return _counted(forgotten, count)

    numbers, flags = Field(torch.int32), Field(torch.bool)
    fields = {"forgotten": numbers, "count": numbers, "correct": flags, "learned": flags}
    return Accumulator(fields, add, score)


def windows(
    length: int, reduce: Callable[[Tensor], Tensor], *, decay: float | None = None, magnitude: bool = False
) -> Accumulator:
    """Average a statistic of the last `length` values over all full windows.

    Args:
        length: values in a window.
        reduce: (K, length) values of full windows, in any rotation -> (K,).
        decay: weight of the newest window in a moving average that starts at 0; None averages all windows equally.
        magnitude: take the absolute values first.
    """

    def add(state: State, at: Tensor, value: Tensor) -> None:
        known = ~value.isnan()  # the difference at the first presentation is NaN
        at, value = at[known], value[known].abs() if magnitude else value[known]
        state["window"][at, state["filled"][at].long() % length] = value
        state["filled"][at] += 1
        at = at[state["filled"][at] >= length]
        if not len(at):
            return
        reduced = reduce(state["window"][at])
        if decay is None:
            _add_to_mean(state, at, reduced)
        else:
            state["mean"][at] = decay * reduced + (1 - decay) * state["mean"][at]
            state["count"][at] += 1

    fields = {"window": Field(torch.float32, (length,)), "filled": Field(torch.int32), **_MEAN}
    return Accumulator(fields, add, lambda state: _counted(state["mean"], state["count"]))


def differences(accumulator: Accumulator) -> Accumulator:
    """Pass on each value minus the one before; NaN at the first presentation."""

    def add(state: State, at: Tensor, value: Tensor) -> None:
        accumulator.add(state, at, value - state["before"][at])
        state["before"][at] = value

    fields = accumulator.fields | {"before": Field(torch.float32, initial=torch.nan)}
    return Accumulator(fields, add, accumulator.score)


_MEAN = {"mean": Field(torch.float32), "count": Field(torch.int32)}


def _add_to_mean(state: State, at: Tensor, value: Tensor) -> None:
    count = state["count"][at] + 1
    before = state["mean"][at]
    state["mean"][at] = before + (value - before) / count
    state["count"][at] = count


def _counted(value: Tensor, count: Tensor) -> Tensor:
    return value.masked_fill(count == 0, torch.nan)
