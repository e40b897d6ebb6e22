"""How a statistic remembers one value per presentation: the last, the mean, or a window that slides over them.

A memory keeps a few numbers per sample, whatever the number of epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]  # each (N,) or (N, values), on the CPU


class Field(NamedTuple):
    """A tensor of a state: its dtype, shape per sample and initial value."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    initial: float = 0.0


class Memory(NamedTuple):
    """What is kept of a stream of values per sample.

    Attributes:
        fields: the tensors of its state.
        fold: (state, positions (K,) without repetition, values (K,)) takes a value each, in place.
        score: state -> (N,) scores, NaN where there is none.
    """

    fields: dict[str, Field]
    fold: Callable[[State, Tensor, Tensor], None]
    score: Callable[[State], Tensor]


def last(sign: float = 1.0) -> Memory:
    """The last value, times `sign`."""

    def fold(state: State, at: Tensor, value: Tensor) -> None:
        state["value"][at] = value

    return Memory({"value": Field(torch.float32, initial=torch.nan)}, fold, lambda state: sign * state["value"])


def mean(sign: float = 1.0) -> Memory:
    """The mean of all values, times `sign`."""

    def fold(state: State, at: Tensor, value: Tensor) -> None:
        _average(state, at, value)

    return Memory(_AVERAGE, fold, lambda state: sign * _seen(state["mean"], state["count"]))


def forgetting(*, never_is_last: bool) -> Memory:
    """Changes from 1 to 0 in a stream of zeros and ones.

    Args:
        never_is_last: a sample that was never 1 scores the most presentations that any sample had, not 0.
    """

    def fold(state: State, at: Tensor, value: Tensor) -> None:
        now = value > 0.5
        state["forgotten"][at] += (state["correct"][at] & ~now).int()
        state["correct"][at] = now
        state["learned"][at] |= now
        state["count"][at] += 1

    def score(state: State) -> Tensor:
        forgotten, count = state["forgotten"].float(), state["count"]
        if never_is_last:
            forgotten[~state["learned"]] = float(count.max())
        return _seen(forgotten, count)

    fields = {
        "forgotten": Field(torch.int32),
        "count": Field(torch.int32),
        "correct": Field(torch.bool),
        "learned": Field(torch.bool),
    }
    return Memory(fields, fold, score)


def windows(length: int, reduce: Callable[[Tensor], Tensor], *, decay: float | None = None) -> Memory:
    """A statistic of the last `length` values, averaged over all windows that were full.

    Args:
        length: values in a window.
        reduce: (K, length) values of full windows, in any rotation -> (K,).
        decay: weight of the newest window in a moving average that starts at 0; None averages all windows alike.
    """

    def fold(state: State, at: Tensor, value: Tensor) -> None:
        known = ~value.isnan()  # the first presentation of a difference has none
        at, value = at[known], value[known]
        state["window"][at, state["filled"][at].long() % length] = value
        state["filled"][at] += 1
        at = at[state["filled"][at] >= length]
        if not len(at):
            return
        new = reduce(state["window"][at])
        if decay is None:
            _average(state, at, new)
        else:
            state["mean"][at] = decay * new + (1 - decay) * state["mean"][at]
            state["count"][at] += 1

    fields = {"window": Field(torch.float32, (length,)), "filled": Field(torch.int32), **_AVERAGE}
    return Memory(fields, fold, lambda state: _seen(state["mean"], state["count"]))


def differences(memory: Memory) -> Memory:
    """Gives `memory` each value minus the one before; the first presentation gives nothing, that is NaN."""

    def fold(state: State, at: Tensor, value: Tensor) -> None:
        memory.fold(state, at, value - state["before"][at])
        state["before"][at] = value

    return Memory(memory.fields | {"before": Field(torch.float32, initial=torch.nan)}, fold, memory.score)


def mapped(memory: Memory, function: Callable[[Tensor], Tensor]) -> Memory:
    """Gives `memory` a function of each value."""
    return memory._replace(fold=lambda state, at, value: memory.fold(state, at, function(value)))


_AVERAGE = {"mean": Field(torch.float32), "count": Field(torch.int32)}


def _average(state: State, at: Tensor, value: Tensor) -> None:
    count = state["count"][at] + 1
    before = state["mean"][at]
    state["mean"][at] = before + (value - before) / count
    state["count"][at] = count


def _seen(value: Tensor, count: Tensor) -> Tensor:
    return value.masked_fill(count == 0, torch.nan)
