"""Which samples an epoch trains: functions from (book, count, generator) to a `Selection`.

Whatever is equal is decided at random, never by position, and only the given generator is read. A policy may carry
attributes: `variance = True` asks for a book that keeps variances; `exact = False` says that it may return another
number of samples than `count`; `always = True`, that it is asked also where all samples are kept; `blind = True`, that
it reads no scores, and may be used in a loop that records none; and `plan` is a text that says what it selects: a saved
run is resumed only where it is the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from .scores import DriftBook, ScoreBook
from .selection import Selection

Policy = Callable[[ScoreBook, int, Generator], Selection]


@dataclass(frozen=True)
class uniform:
    """A uniformly random subset.

    Example:
        >>> len(uniform()(ScoreBook(10), 4, torch.Generator().manual_seed(0)).index)
        4

    Source: "random" in Raju et al. 2021, arXiv:2111.12621, section 4.1. Differs: nothing.
    """

    blind: ClassVar[bool] = True

    def __call__(self, book: ScoreBook, count: int, generator: Generator) -> Selection:
        return Selection.of(random_subset(book.size, count, generator))


@dataclass(frozen=True)
class least_drawn:
    """The samples drawn least often so far, random among equals: chunk after chunk of one permutation after another.

    Source: RS2 without replacement, Okanovic et al. 2024, arXiv:2305.18424, section 3. Differs: a pass that ends inside
        an epoch is filled up from the next permutation, so that no sample is left out.
    """

    blind: ClassVar[bool] = True

    def __call__(self, book: ScoreBook, count: int, generator: Generator) -> Selection:
        return Selection.of(highest(-book.drawn, count, generator))


class replay:
    """The same selection in every epoch, weights included.

    Args:
        selection: what to replay.
    """

    always = True  # all samples may be kept, and weighted
    blind = True

    def __init__(self, selection: Selection):
        self.selection = Selection(selection.index.clone(), selection.weight.clone())
        content = self.selection.index.numpy().tobytes() + self.selection.weight.numpy().tobytes()
        self.plan = hashlib.sha256(content).hexdigest()[:16]

    def __call__(self, book: ScoreBook, count: int, generator: Generator) -> Selection:
        """The selection that was given."""
        return self.selection


def top_k(*, balance: Tensor | None = None) -> Policy:
    """The highest scores; unseen samples come first.

    Args:
        balance: (N,) class ids; with them every class gets the same number of places, as far as it has samples.
    """
    return lambda book, count, generator: Selection.of(_greedy(book.score, count, generator, balance))


@dataclass(frozen=True)
class drifted:
    """The highest score + gamma * drift, see `DriftBook`; unseen samples come first.

    Args:
        gamma: weight of the drift.
        balance: as for `top_k`.
    """

    gamma: float
    balance: Tensor | None = None
    book: ClassVar[type[ScoreBook]] = DriftBook

    def __call__(self, book: ScoreBook, count: int, generator: Generator) -> Selection:
        assert isinstance(book, DriftBook)
        index = _greedy(book.score + self.gamma * book.drift, count, generator, self.balance)
        book.absent |= torch.ones(book.size, dtype=torch.bool).index_fill_(0, index, False)
        return Selection.of(index)


def bottom_k(*, balance: Tensor | None = None) -> Policy:
    """The lowest scores; unseen samples come first.

    Args:
        balance: as for `top_k`.
    """
    return lambda book, count, generator: Selection.of(_greedy(-book.score, count, generator, balance))


def epsilon_greedy(epsilon: float = 0.1, *, balance: Tensor | None = None) -> Policy:
    """(1 - epsilon) of the places to the highest scores, the others uniformly to the rest.

    Args:
        epsilon: share of random places, in [0, 1].
        balance: as for `top_k`; it governs the greedy places only.
    Raises:
        ValueError: if epsilon is outside [0, 1].
    Source: Raju et al. 2021, arXiv:2111.12621, section 4.2. Differs: nothing.
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is a share of the places, in [0, 1], got {epsilon}")

    def policy(book: ScoreBook, count: int, generator: Generator) -> Selection:
        explored = int(epsilon * count + 0.5)
        chosen = np.zeros(book.size, dtype=np.bool_)
        chosen[_greedy(book.score, count - explored, generator, balance).numpy()] = True
        chosen[~chosen] = _random_mask(book.size - (count - explored), explored, generator)
        return Selection.of(_positions(chosen))

    return policy


@dataclass(frozen=True)
class upper_confidence:
    """The highest score + c * variance; unseen samples come first.

    Args:
        c: weight of the variance.
        balance: as for `top_k`.
    Source: "UCB" in Raju et al. 2021, arXiv:2111.12621, section 4.3 (a variance, not its root). Differs: nothing.
    """

    c: float = 1.0
    balance: Tensor | None = None
    variance: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.c, bool) or not isinstance(self.c, Real) or not math.isfinite(self.c):
            raise ValueError(f"c is the weight of the variance, a finite number, got {self.c!r}")

    def __call__(self, book: ScoreBook, count: int, generator: Generator) -> Selection:
        return Selection.of(_greedy(book.score + self.c * book.variance, count, generator, self.balance))


@dataclass(frozen=True)
class soft_prune:
    """Drop samples below the mean score with probability r, and weight those that survive by 1 / (1 - r).

    The expected weighted sum over the selection is the sum over all samples. The survivors are a subset of fixed size,
    so that a budget is met exactly where it can be met. Unseen samples are never dropped.

    Args:
        prune_probability: r in [0, 1); None solves it in every epoch such that `count` samples are kept, with r at
            most `limit`: then a small count is out of reach and more is kept.
        limit: highest r that is solved for, and so 1 / (1 - limit) the largest weight.
    Raises:
        ValueError: if r is outside [0, 1).
    Source: InfoBatch, Qin et al. 2024, arXiv:2303.04947, Eq. 4 and section 3.2. Differs: the paper flips a coin for
        each sample; here the number of survivors is fixed and their choice random, with the same probability for each.
    """

    prune_probability: float | None = None
    limit: float = 0.9
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, value in (("prune_probability", self.prune_probability), ("limit", self.limit)):
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is a probability in [0, 1), got {value}")

    def __call__(self, book: ScoreBook, count: int, generator: Generator) -> Selection:
        score = book.score.numpy()
        seen = ~np.isnan(score)
        # summed in float64, compared in float32: the mean of equal scores must not come out a hair above them
        mean = np.float32(score.mean(where=seen, dtype=np.float64)) if seen.any() else np.nan
        low = seen & (score < mean)
        candidates = int(np.count_nonzero(low))
        r = self.prune_probability
        if r is None:
            r = min((book.size - count) / candidates, self.limit) if candidates else 0.0
        expected = round((1 - r) * candidates, 6)
        survivors = int(expected)
        survivors += float(torch.rand((), generator=generator, dtype=torch.float64)) < expected - survivors
        kept = ~low
        kept[low] = _random_mask(candidates, survivors, generator)
        index = _positions(kept)
        weight = torch.ones(len(index))
        weight[torch.from_numpy(low[kept])] = 1 / (1 - r)
        return Selection(index, weight)


def highest(values: Tensor, count: int, generator: Generator) -> Tensor:
    """Positions of the `count` highest values, ascending; NaN counts as highest and equals are drawn at random.

    Args:
        values: (N,) numbers on the CPU.
        count: how many, in [0, N].
        generator: decides between equals.
    Returns:
        (count,) int64 positions.
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
    places = count - int(np.count_nonzero(chosen))
    chosen[ties] = _random_mask(int(np.count_nonzero(ties)), places, generator)
    return _positions(chosen)


def random_subset(size: int, count: int, generator: Generator) -> Tensor:
    """`count` of `size` positions, ascending, each subset with the same probability; int64."""
    return _positions(_random_mask(size, count, generator))


def quotas(sizes: Tensor, count: int, generator: Generator) -> list[int]:
    """Places per class: equal, what a small class leaves goes to the others, an odd rest to classes drawn at random.

    Args:
        sizes: (C,) samples per class, int64 on the CPU.
        count: places, at most the sum of sizes.
        generator: draws the classes that get an odd rest.
    """
    places = torch.zeros_like(sizes)
    left = count
    while left:
        open_classes = (places < sizes).nonzero().squeeze(1)
        share = left // len(open_classes)
        if share == 0:
            lucky = open_classes[torch.randperm(len(open_classes), generator=generator)[:left]]
            places[lucky] += 1
            break
        given = torch.minimum(sizes[open_classes] - places[open_classes], torch.tensor(share))
        places[open_classes] += given
        left -= int(given.sum())
    return places.tolist()


def _greedy(values: Tensor, count: int, generator: Generator, balance: Tensor | None) -> Tensor:
    if balance is None:
        return highest(values, count, generator)
    if balance.shape != values.shape or balance.is_floating_point():
        raise ValueError(
            f"balance must hold one class id for each of the {len(values)} samples, "
            f"got {balance.dtype} of shape {tuple(balance.shape)}"
        )
    chosen = np.zeros(len(values), dtype=np.bool_)
    labels = balance.cpu()
    _, sizes = torch.unique(labels, return_counts=True)
    members = torch.argsort(labels, stable=True).split(sizes.tolist())
    for positions, places in zip(members, quotas(sizes, count, generator), strict=True):
        chosen[positions[highest(values[positions], places, generator)].numpy()] = True
    return _positions(chosen)


def _random_mask(size: int, count: int, generator: Generator) -> np.ndarray:
    """(size,) bool with `count` of them set, uniformly."""
    if count >= size:
        return np.ones(size, dtype=np.bool_)
    if count <= 0:
        return np.zeros(size, dtype=np.bool_)
    keys = torch.empty(size, dtype=torch.int32).random_(generator=generator).numpy()
    threshold = np.partition(keys, count)[count]
    chosen = keys < threshold
    missing = count - int(np.count_nonzero(chosen))
    if missing:  # equal keys at the edge: draw again among them
        ties = keys == threshold
        chosen[ties] = _random_mask(int(np.count_nonzero(ties)), missing, generator)
    return chosen


def _positions(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask))
