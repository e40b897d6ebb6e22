"""Coresets from one score per sample, and the random one; positions ascend, equals are drawn at random."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from .. import policies
from ..selection import Selection
from .budget import MAX_MEMORY, Balance, check_balance, chunk_rows, count_of, equal_places, members_of
from .inputs import check_labels, check_scores

_ROWS = 1 << 16  # scores put into bins at a time: their float64 copy stays in the cache


def top(
    scores: Float[Tensor, " n"],
    *,
    keep: float,
    labels: Int[Tensor, " n"] | None = None,
    balance: Balance = "none",
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """The highest scores.

    Args:
        scores: one number per sample; infinities are allowed.
        keep: fraction kept, in (0, 1].
        labels: class ids; needed where balance is "class".
        balance: "none", or "class": the same number of places for every class, as far as it has samples.
        seed: decides between equal scores.
        max_memory: bytes this may use beyond its input.
    Returns:
        max(1, floor(keep * N + 0.5)) ascending positions with weight one.
    Raises:
        ValueError: if scores hold NaN or are not (N,) floating point, keep is outside (0, 1], labels are missing or do
            not fit, a class would stay empty under balance="class", or the memory needed is above max_memory.
    Example:
        >>> top(torch.tensor([0.1, 0.9, 0.5, 0.7]), keep=0.5).index
        tensor([1, 3])

    Source: Coleman et al. 2020, arXiv:1906.11829, section 3.2, and Paul et al. 2021, arXiv:2107.07075, section 2.
        Differs: the per-class places are not in the papers.
    """
    scores = check_scores(scores)
    return _choose("top", scores, policies.highest, keep, labels, balance, seed, max_memory)


def bottom(
    scores: Float[Tensor, " n"],
    *,
    keep: float,
    labels: Int[Tensor, " n"] | None = None,
    balance: Balance = "none",
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """The lowest scores.

    Args:
        scores: as for `top`.
        keep: as for `top`.
        labels: as for `top`.
        balance: as for `top`.
        seed: as for `top`.
        max_memory: as for `top`.
    Returns:
        max(1, floor(keep * N + 0.5)) ascending positions with weight one.
    Raises:
        ValueError: as for `top`.
    Example:
        >>> bottom(torch.tensor([0.1, 0.9, 0.5, 0.7]), keep=0.5).index
        tensor([0, 2])

    Source: the easy samples of Sorscher et al. 2022, arXiv:2206.14486, section 3. Differs: as for `top`.
    """
    scores = check_scores(scores)

    def lowest(values: Tensor, count: int, generator: Generator) -> Tensor:
        return policies.highest(-values, count, generator)

    return _choose("bottom", scores, lowest, keep, labels, balance, seed, max_memory)


def random(
    size: int | Tensor,
    *,
    keep: float,
    labels: Int[Tensor, " n"] | None = None,
    balance: Balance = "none",
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """A uniformly random subset: what every other coreset has to beat.

    Args:
        size: samples in the dataset, N; or any tensor with a row per sample, so that this stands in for any selector.
        keep: as for `top`.
        labels: as for `top`.
        balance: as for `top`.
        seed: decides the subset.
        max_memory: as for `top`.
    Returns:
        max(1, floor(keep * N + 0.5)) ascending positions with weight one.
    Raises:
        ValueError: as for `top`, or if size is not a whole number above 0.
    Example:
        >>> len(random(100, keep=0.1).index)
        10

    Source: Coleman et al. 2020, arXiv:1906.11829, section 3. Differs: nothing.
    """
    samples = len(size) if isinstance(size, Tensor) and size.ndim else size
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise ValueError(f"size is the number of samples, got {samples!r}")

    def drawn(values: Tensor, count: int, generator: Generator) -> Tensor:
        return policies.random_subset(len(values), count, generator)

    nothing = torch.empty(1, dtype=torch.uint8).expand(max(samples, 0))
    return _choose("random", nothing, drawn, keep, labels, balance, seed, max_memory)


def stratified(
    scores: Float[Tensor, " n"],
    *,
    keep: float,
    bins: int = 50,
    cutoff: float = 0.0,
    seed: int = 0,
    labels: Int[Tensor, " n"] | None = None,
    balance: Balance = "none",
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """Coverage-centric selection (CCS): the hardest are cut off, the rest is drawn evenly over bins of the score.

    The floor(cutoff * N) highest scores are dropped. What is left is put into bins of equal width from its lowest to
    its highest score. Bins are filled from the smallest up, each with min(its samples, places left // bins left)
    samples drawn at random; empty bins count. Bins of equal size are taken in random order.

    Args:
        scores: one finite number per sample, highest is hardest (negate the area under the margin).
        keep: as for `top`.
        bins: how many bins, in [1, 65535].
        cutoff: β, the fraction of the hardest samples that is dropped, in [0, 1). The paper's β for CIFAR-10 with 30,
            50, 70, 80, 90 % pruned: 0, 0, 0.1, 0.1, 0.3; CIFAR-100: 0.1, 0.2, 0.2, 0.4, 0.5; ImageNet with 80, 90 %
            pruned: 0.2, 0.3.
        seed: decides between equal scores and which samples of a bin are drawn.
        labels: as for `top`.
        balance: "none", or "class": everything above is done class by class, with the same number of places for each.
        max_memory: as for `top`.
    Returns:
        max(1, floor(keep * N + 0.5)) ascending positions with weight one.
    Raises:
        ValueError: as for `top`; if scores are infinite, bins or cutoff out of range, or keep asks for more samples
            than the cutoff leaves.
    Example:
        >>> stratified(torch.arange(10.0), keep=0.5, bins=5).index // 2  # one of each bin
        tensor([0, 1, 2, 3, 4])

    Source: Zheng et al. 2023, arXiv:2210.15809, Algorithm 1. Differs: the highest score belongs to the last bin also
        where it is negative; the published code widens the last bin by a factor of 1.0001 instead.
    """
    scores = check_scores(scores)
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= 65535:
        raise ValueError(f"bins is a whole number in [1, 65535], got {bins!r}")
    if not 0 <= cutoff < 1:
        raise ValueError(f"cutoff is the fraction of the hardest samples dropped, in [0, 1), got {cutoff!r}")
    if len(scores) and not all(bool(edge.isfinite()) for edge in torch.aminmax(scores)):
        raise ValueError("stratified needs finite scores: infinite ones have no bin of equal width")

    def dropped(size: int) -> int:
        return int(round(cutoff * size, 9))

    def left(size: int) -> int:
        return size - dropped(size)

    def spread(values: Tensor, count: int, generator: Generator) -> Tensor:
        return _stratify(values, count, bins, dropped(len(values)), generator)

    # masks and strata, where there is a cutoff a partition; float64 chunks, and the samples that `_draw` is unsure of
    size, each = len(scores), scores.element_size() + (12 if cutoff else 5)
    need = size * each + 48 * min(size, _ROWS) + 24 * min(size, int(20 * bins + 12 * (bins * size) ** 0.5))
    return _choose("stratified", scores, spread, keep, labels, balance, seed, max_memory, left=left, need=need)


def _choose(
    name: str,
    values: Tensor,
    choose: Callable[[Tensor, int, Generator], Tensor],
    keep: float,
    labels: Tensor | None,
    balance: Balance,
    seed: int,
    max_memory: int,
    *,
    left: Callable[[int], int] = lambda size: size,
    need: int | None = None,
) -> Selection:
    """Apply (values, count, generator) -> positions to all samples or class by class.

    `left` says how many of some samples it can choose, `need` how many bytes it takes for all of them.
    """
    size = len(values)
    count = count_of(size, keep)
    labels = check_labels(labels, size)
    check_balance(balance, labels)
    grouped = balance == "class"
    if need is None:  # numpy's partition copies the values; ties draw int32 keys and partition these
        need = size * (values.element_size() * 2 + 12)
    chunk_rows(name, fixed=need + 32 * size * grouped + 12 * count, row=0, size=size, max_memory=max_memory)
    # a stream for each selector: with one seed `random` must not draw what `top` and `bottom` draw between equals
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {seed}".encode()))
    if labels is None or not grouped:
        _check_enough(left(size), count, size)
        return Selection.of(choose(values, count, generator))
    classes, members = members_of(labels)
    sizes = [len(positions) for positions in members]
    able = [left(size) for size in sizes]
    _check_enough(sum(able), count, size)
    places = equal_places(classes, able, count, generator, members=sizes)
    chosen = np.zeros(size, dtype=np.bool_)
    for positions, share in zip(members, places):
        chosen[positions[choose(values[positions], share, generator)].numpy()] = True
    return Selection.of(torch.from_numpy(np.flatnonzero(chosen)))


def _check_enough(able: int, count: int, size: int) -> None:
    if able < count:
        raise ValueError(
            f"the cutoff leaves {able} of {size} samples, but keep asks for {count}: lower cutoff or keep (their sum "
            "is at most 1)"
        )


def _stratify(values: Tensor, count: int, bins: int, dropped: int, generator: Generator) -> Tensor:
    """`count` positions, spread over bins of all but the `dropped` highest values."""
    array = values.numpy()
    low, high, out = float(array.min()), float(array.max()), None
    if dropped:
        out = np.zeros(len(array), dtype=np.bool_)
        out[policies.highest(values, dropped, generator).numpy()] = True
        high = float(array.max(where=~out, initial=-np.inf))
    strata = np.empty(len(array), dtype=np.uint8 if bins < 256 else np.uint16)  # sorted by radix; `bins` is "dropped"
    sizes = np.zeros(bins + 1, dtype=np.int64)
    buffer = np.empty(min(len(array), _ROWS))
    for start in range(0, len(array), _ROWS):
        rows = slice(start, start + _ROWS)
        # in float64, and multiplied first: whole numbers on an edge stay there
        place = np.subtract(array[rows], low, out=buffer[: len(array) - start], dtype=np.float64)
        place *= bins
        place /= high - low if high > low else 1
        strata[rows] = np.minimum(place, bins - 1, out=place)
        if out is not None:
            strata[rows][out[rows]] = bins
        sizes += np.bincount(strata[rows], minlength=bins + 1)
    del out
    places = np.zeros(bins + 1, dtype=np.int64)
    shuffled = torch.randperm(bins, generator=generator).numpy()
    for done, stratum in enumerate(shuffled[np.argsort(sizes[shuffled], kind="stable")]):
        places[stratum] = min(int(sizes[stratum]), count // (bins - done))
        count -= int(places[stratum])
    return _draw(strata, places, sizes, generator)


def _draw(strata: np.ndarray, places: np.ndarray, sizes: np.ndarray, generator: Generator) -> Tensor:
    """Ascending positions of `places[s]` random members of each stratum s.

    Every sample draws a number. Those far below the share of their stratum are in, those far above are out, and only
    the few between are sorted out by stratum. Numbers that leave too few or too many between are drawn again: which
    members are in does not depend on how many are.
    """
    share = places / np.maximum(sizes, 1)
    doubt = 6 * np.sqrt(share * (1 - share) / np.maximum(sizes, 1)) + 10 / np.maximum(sizes, 1)
    sure = np.where(share < 1, share - doubt, 2).astype(np.float32)
    open_ = np.select([share == 0, share < 1], [-1, share + doubt], 2).astype(np.float32)
    while True:
        chosen = np.zeros(len(strata), dtype=np.bool_)
        between = []
        got = np.zeros(len(places), dtype=np.int64)
        for start in range(0, len(strata), _ROWS):
            mine = strata[start : start + _ROWS]
            drawn = torch.rand(len(mine), generator=generator).numpy()
            near = np.flatnonzero(drawn < np.take(open_, mine))
            of = mine[near]
            certain = drawn[near] < np.take(sure, of)
            got += np.bincount(of[certain], minlength=len(places))
            chosen[start + near[certain]] = True
            between.append(start + near[~certain])
        unsure = np.concatenate(between)
        of = strata[unsure]
        missing, able = places - got, np.bincount(of, minlength=len(places))
        if (missing >= 0).all() and (missing <= able).all():
            break
    for members, more in zip(np.split(unsure[np.argsort(of, kind="stable")], np.cumsum(able)), missing):
        chosen[members[policies.random_subset(len(members), int(more), generator).numpy()]] = True
    return torch.from_numpy(np.flatnonzero(chosen))
