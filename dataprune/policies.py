"""Which samples an epoch trains: callables from (book, count, key) to a `Selection`.

A selection depends on the book, the count and the key alone. Ties are broken by the key's hash of the position, not by
the position itself, so that a sample is selected or not whatever rank or shard it is on. Your own policy is a function,
or inherits from `Policy` and declares what differs from its defaults. All raise ValueError for arguments out of range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .criteria import learnability
from .hashing import Key
from .scores import PredictionBook, ScoreBook
from .selection import Selection

_CHUNK = 1 << 16  # positions hashed at a time, so that all intermediate values stay in the processor's cache
_FLOOR, _TINY = 1e-3, 1e-30  # least score that is drawn by: share of the mean; where all are 0
# draws of a position or class that must not depend on how ties were broken, draw 0
_EXPLORE, _CLASSES, _WEIGHTED = 1, 2, 3


@runtime_checkable
class Policy(Protocol):
    """Selects from a score book, and declares how it does so.

    Attributes:
        exact: whether it returns exactly `count` samples.
        reads_scores: whether it needs scores; a loop that records none may use one that does not.
        when_full: whether it is also asked in epochs that keep all samples, as where it weights them.
        forwards: whether it needs the scores of all samples from every epoch, so that a loop must forward those that an
            epoch leaves out (`Pruner.left_out`) and record them.
        scales_rate: whether the learning rate is to be multiplied by size / count in a pruned epoch.
    """

    exact: bool = True
    reads_scores: bool = True
    when_full: bool = False
    forwards: bool = False
    scales_rate: bool = False

    def book(self, size: int) -> ScoreBook:
        """Make the book that it reads, for a dataset of `size` samples."""
        return ScoreBook(size)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        """Select `count` samples.

        Args:
            book: scores and draws of all samples; not to be changed.
            count: samples asked for, in [1, book.size].
            key: what random decisions depend on.
        """
        ...


@dataclass(frozen=True)
class Function(Policy):
    """A policy given as a plain callable from (book, count, key) to a selection: `Pruner` wraps one in this."""

    function: Callable[[ScoreBook, int, Key], Selection]
    exact: bool = True
    reads_scores: bool = True
    when_full: bool = False
    forwards: bool = False
    scales_rate: bool = False

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        return self.function(book, count, key)


def declared(policy: Policy | Callable[[ScoreBook, int, Key], Selection]) -> Policy:
    """Return a policy as it is, and a plain callable (else TypeError) with those attributes of `Policy` that it has."""
    if isinstance(policy, Policy):
        return policy
    if not callable(policy):
        raise TypeError(f"policy must be callable as policy(book, count, key), got {type(policy).__name__}")
    names = [field.name for field in fields(Function) if field.name != "function"]
    return Function(policy, **{name: getattr(policy, name) for name in names if hasattr(policy, name)})


@dataclass(frozen=True)
class uniform(Policy):
    """Select a uniformly random subset.

    Example:
        >>> len(uniform()(ScoreBook(10), 4, Key(seed=0, epoch=1)))
        4

    Source: "random" in Raju et al. 2021, arXiv:2111.12621, section 4.1. Differs: nothing.
    """

    reads_scores = False

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        return Selection.of(random_subset(book.size, count, key))


@dataclass(frozen=True)
class least_drawn(Policy):
    """Select the samples drawn least often so far, random among equals: chunks of one permutation after another.

    Source: RS2 without replacement, Okanovic et al. 2024, arXiv:2305.18424, section 3. Differs: a pass that ends inside
        an epoch is filled up from the next permutation, so that no sample is left out.
    """

    reads_scores = False

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        return Selection.of(highest(-book.drawn, count, key))


@dataclass(frozen=True, eq=False)
class replay(Policy):
    """Return a copy of the same selection in every epoch, weights included."""

    selection: Selection
    reads_scores = False
    when_full = True  # all samples may be kept, and weighted

    def __post_init__(self) -> None:
        index, weight = self.selection.index.clone(), self.selection.weight.clone()
        object.__setattr__(self, "selection", replace(self.selection, index=index, weight=weight))

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        return self.selection


@dataclass(frozen=True, eq=False)
class top_k(Policy):
    """Select the highest scores; unseen samples come first.

    Args:
        balance: (N,) class ids; with them every class gets the same number of places, as far as it has samples.
    """

    balance: Tensor | None = field(default=None, kw_only=True)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        return Selection.of(_greedy(book.score, count, key, self.balance))


@dataclass(frozen=True, eq=False)
class bottom_k(top_k):
    """Select the lowest scores; unseen samples come first. `balance` as for `top_k`."""

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        return Selection.of(_greedy(-book.score, count, key, self.balance))


@dataclass(frozen=True, eq=False)
class top_information(top_k):
    """Select the highest mutual information, of the criterion `information`; unseen samples come first, then those seen
    once. `balance` as for `top_k`.
    """

    def book(self, size: int) -> ScoreBook:
        return PredictionBook(size)


@dataclass(frozen=True, eq=False)
class epsilon_greedy(Policy):
    """Give (1 - epsilon) of the places to the highest scores, and the others uniformly to the rest.

    Args:
        epsilon: share of random places, in [0, 1].
        balance: as for `top_k`; it governs the greedy places only.
    Source: Raju et al. 2021, arXiv:2111.12621, section 4.2. Differs: nothing.
    """

    epsilon: float = 0.1
    balance: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a share of the places, in [0, 1], got {self.epsilon}")

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        explored = int(self.epsilon * count + 0.5)
        chosen = np.zeros(book.size, dtype=np.bool_)
        chosen[_greedy(book.score, count - explored, key, self.balance).numpy()] = True
        return Selection.of(_positions(_draw(~chosen, explored, key, _EXPLORE, into=chosen)))


@dataclass(frozen=True, eq=False)
class upper_confidence(Policy):
    """Select the highest score + c * variance; unseen samples come first.

    Args:
        c: weight of the variance, a finite number.
        balance: as for `top_k`.
    Source: "UCB" in Raju et al. 2021, arXiv:2111.12621, section 4.3 (a variance, not its root). Differs: nothing.
    """

    c: float = 1.0
    balance: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.c, bool) or not isinstance(self.c, Real) or not math.isfinite(self.c):
            raise ValueError(f"c is the weight of the variance, a finite number, got {self.c!r}")

    def book(self, size: int) -> ScoreBook:
        return ScoreBook(size, variance=True)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        return Selection.of(_greedy(book.score + self.c * book.variance, count, key, self.balance))


@dataclass(frozen=True, eq=False)
class proportional(Policy):
    """Draw without replacement, each draw in proportion to the scores that are left; unseen samples come first.

    Scores are at least 0; below a thousandth of their mean they count as that.

    Args:
        balance: as for `top_k`.
        unless: a criterion; where it scores by the loss, the highest are selected, as by `top_k`.
    Source: Efraimidis and Spirakis 2006, Weighted random sampling with a reservoir. Differs: nothing.
    """

    balance: Tensor | None = field(default=None, kw_only=True)
    unless: learnability | None = field(default=None, kw_only=True)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        score = book.score if self.unless and self.unless.by_loss else weighted(book.score, key)
        return Selection.of(_greedy(score, count, key, self.balance))


@dataclass(frozen=True)
class soft_prune(Policy):
    """Drop samples below the mean score with probability r, and weight those that survive by 1 / (1 - r).

    The expected weighted sum over the selection is the sum over all samples. The survivors are a subset of fixed size,
    so that a budget is met exactly where it can be met. Unseen samples are never dropped.

    Args:
        prune_probability: r in [0, 1); None solves it in every epoch such that `count` samples are kept, with r at
            most `limit`: then a small count is out of reach and more is kept.
        limit: highest r that is solved for, and so 1 / (1 - limit) the largest weight.
    Source: InfoBatch, Qin et al. 2024, arXiv:2303.04947, Eq. 4 and section 3.2. Differs: the paper flips a coin for
        each sample; here the number of survivors is fixed and their choice random, with the same probability for each.
    """

    prune_probability: float | None = None
    limit: float = 0.9
    exact = False

    def __post_init__(self) -> None:
        for name, value in (("prune_probability", self.prune_probability), ("limit", self.limit)):
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is a probability in [0, 1), got {value}")

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        score = book.score.numpy()
        seen = ~np.isnan(score)
        # summed in float64, compared in float32: the mean of equal scores must not come out a hair above them
        mean = np.float32(score.mean(where=seen, dtype=np.float64)) if seen.any() else np.nan
        low = seen & (score < mean)
        index, r = self.thinned(low, count, key)
        weight = torch.ones(len(index))
        weight[torch.from_numpy(low)[index]] = 1 / (1 - r)
        return Selection(index, weight)

    def thinned(self, low: np.ndarray, count: int, key: Key) -> tuple[Tensor, float]:
        """All positions but those low ones that are dropped, and the probability with which they are."""
        candidates = int(np.count_nonzero(low))
        r = self.prune_probability
        if r is None:
            r = min((len(low) - count) / candidates, self.limit) if candidates else 0.0
        expected = round((1 - r) * candidates, 6)
        survivors = int(expected)
        survivors += float(torch.rand((), generator=key.generator(), dtype=torch.float64)) < expected - survivors
        return _positions(_draw(low, survivors, key, into=~low)), r


def highest(values: Tensor, count: int, key: Key, positions: Tensor | None = None) -> Tensor:
    """Places of the `count` highest values, ascending; NaN counts as highest, equal values are drawn at random.

    Args:
        values: (N,) numbers on the CPU; `count` of them, in [0, N], are asked for.
        key: decides between equal values.
        positions: (N,) int64, of the values in the dataset; by default 0 to N - 1.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    array = values.numpy()
    rank = len(array) - count
    threshold = np.partition(array, rank)[rank]  # numpy sorts NaN last, that is highest
    if np.isnan(threshold):
        ties = np.isnan(array)
        chosen = np.zeros(len(array), dtype=np.bool_)
    else:
        ties = array == threshold
        chosen = ~(array <= threshold)  # NaN passes
    return _positions(_draw(ties, count - int(np.count_nonzero(chosen)), key, into=chosen, positions=positions))


def highest_by_class(values: Tensor, labels: Tensor, places: Sequence[int], key: Key) -> Tensor:
    """Places of the highest values of every class, ascending, as `highest` in each; `places` says how many, in the
    order of the class ids that occur in `labels`, (N,) on the CPU.
    """
    chosen = np.zeros(len(values), dtype=np.bool_)
    sizes = torch.unique(labels, return_counts=True)[1].tolist()
    for members, count in zip(torch.argsort(labels, stable=True).split(sizes), places, strict=True):
        chosen[members[highest(values[members], count, key, members)].numpy()] = True
    return _positions(chosen)


def random_subset(size: int, count: int, key: Key) -> Tensor:
    """`count` of `size` positions, ascending, each subset with the same probability; int64."""
    return _positions(_draw(np.ones(size, dtype=np.bool_), count, key, into=np.zeros(size, dtype=np.bool_)))


def quotas(sizes: Tensor, count: int, key: Key) -> list[int]:
    """Places per class: equal, what a small class leaves goes to the others, an odd rest to classes drawn at random.

    `sizes` (C,) are the samples per class, int64 on the CPU; their sum is at least `count`.
    """
    places = torch.zeros_like(sizes)
    left = count
    while left:
        open_classes = (places < sizes).nonzero().squeeze(1)
        share = left // len(open_classes)
        if share == 0:
            drawn = key.hash(open_classes, _CLASSES).argsort(descending=True)[:left]
            places[open_classes[drawn]] += 1
            break
        given = torch.minimum(sizes[open_classes] - places[open_classes], torch.tensor(share))
        places[open_classes] += given
        left -= int(given.sum())
    return places.tolist()


def weighted(score: Tensor, key: Key, mean: float | None = None, first: int = 0) -> Tensor:
    """Random keys (N,) of which the highest are a weighted draw; NaN where the score is. `mean` is of all scores."""
    keys = score.clamp(min=max(_TINY, _FLOOR * (float(score.nanmean(dtype=torch.float64)) if mean is None else mean)))
    for start, part in enumerate(keys.split(_CHUNK)):
        bits = key.hash(first + start * _CHUNK + torch.arange(len(part)), _WEIGHTED) >> 11 & (1 << 53) - 1
        part.copy_(torch.log1p((bits.double() + 0.5) * -(2.0**-53)) / part)
    return keys


def _greedy(values: Tensor, count: int, key: Key, balance: Tensor | None) -> Tensor:
    if balance is None:
        return highest(values, count, key)
    if balance.shape != values.shape or balance.is_floating_point():
        raise ValueError(
            f"balance must hold one class id for each of the {len(values)} samples, "
            f"got {balance.dtype} of shape {tuple(balance.shape)}"
        )
    labels = balance.cpu()
    return highest_by_class(values, labels, quotas(torch.unique(labels, return_counts=True)[1], count, key), key)


def _draw(
    among: np.ndarray, count: int, key: Key, draw: int = 0, *, into: np.ndarray, positions: Tensor | None = None
) -> np.ndarray:
    """Set those `count` places of `into` that have the highest hashes among the places where `among` is set; return it.

    `draw` says which hash of a position, and `positions` is as for `highest`.
    """
    total = int(np.count_nonzero(among))
    if count >= total:
        into |= among
        return into
    if count <= 0:
        return into

    def hashes(places: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(places)
        return key.hash(at if positions is None else positions[at], draw).numpy().view(np.uint64)

    high = np.empty(total, dtype=np.uint32)  # the upper halves decide, but for a few at the edge
    filled = 0
    for start in range(0, len(among), _CHUNK):
        places = np.flatnonzero(among[start : start + _CHUNK]) + start
        high[filled : filled + len(places)] = hashes(places) >> np.uint64(32)
        filled += len(places)
    threshold = np.partition(high, total - count)[total - count]
    drawn = high > threshold
    edge = np.flatnonzero(high == threshold)
    missing = count - int(np.count_nonzero(drawn))
    if missing < len(edge):
        at = np.flatnonzero(among)[edge]
        edge = edge[np.argsort(hashes(at))[len(edge) - missing :]]
    drawn[edge] = True
    into[among] |= drawn
    return into


def _positions(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask))
