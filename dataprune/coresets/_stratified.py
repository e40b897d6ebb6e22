"""Coverage-centric selection: random samples of every level of difficulty."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from .. import policies
from ..hashing import Key
from ..selection import Selection
from . import budget
from .ranking import choose

_ROWS = 1 << 16  # scores put into bins at a time: their float64 copy stays in the cache


def stratified(
    scores: Float[Tensor, " n"] | budget.Array,
    *,
    keep: float,
    bins: int = 50,
    cutoff: float = 0.0,
    seed: int = 0,
    labels: Integer[Tensor, " n"] | budget.Array | None = None,
    balance: budget.Balance = "none",
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Coverage-centric selection (CCS): drop the hardest samples, and draw the others evenly over bins of the score.

    The floor(cutoff * N) highest scores are dropped. The others are put into bins of equal width from their lowest to
    their highest score. Bins are filled from the smallest up, each with min(its samples, places left // bins left)
    samples drawn at random; empty bins count. Bins of equal size are taken in random order.

    Args:
        scores: one finite number per sample, highest is hardest (negate the area under the margin).
        bins: how many bins, in [1, 65535].
        cutoff: β, the fraction of the hardest samples that is dropped, in [0, 1). The paper's β for CIFAR-10 with 30,
            50, 70, 80, 90 % pruned: 0, 0, 0.1, 0.1, 0.3; CIFAR-100: 0.1, 0.2, 0.2, 0.4, 0.5; ImageNet with 80, 90 %
            pruned: 0.2, 0.3.
        seed: decides between equal scores and which samples of a bin are drawn.
        balance: "none", or "class": everything above is done class by class, with the same number of places for each.
    Raises:
        ValueError: if bins or cutoff is out of range, or keep asks for more samples than the cutoff leaves.
    Example:
        >>> stratified(torch.arange(10.0), keep=0.5, bins=5).index // 2  # one of each bin
        tensor([0, 1, 2, 3, 4])

    Source: Zheng et al. 2023, arXiv:2210.15809, Algorithm 1. Differs: the highest score belongs to the last bin also
        where it is negative; the published code widens the last bin by a factor of 1.0001 instead.
    """
    scores = budget.check_scores(scores)
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= 65535:
        raise ValueError(f"bins is a whole number in [1, 65535], got {bins!r}")
    if not 0 <= cutoff < 1:
        raise ValueError(f"cutoff is the fraction of the hardest samples dropped, in [0, 1), got {cutoff!r}")
    if len(scores) and not all(bool(edge.isfinite()) for edge in torch.aminmax(scores)):
        raise ValueError("stratified needs finite scores: infinite ones have no bin of equal width")

    def dropped(size: int) -> int:
        return int(round(cutoff * size, 9))

    def capacity(size: int) -> int:
        return size - dropped(size)

    def rule(values: Tensor, count: int, key: Key) -> Tensor:
        return _stratify(values, count, bins, dropped(len(values)), key)

    # masks and strata, where there is a cutoff a partition; float64 chunks, and the samples that `_draw` is unsure of
    size, each = len(scores), scores.element_size() + (12 if cutoff else 5)
    memory = size * each + 48 * min(size, _ROWS) + 24 * min(size, int(20 * bins + 12 * (bins * size) ** 0.5))
    return choose("stratified", scores, rule, keep, labels, balance, seed, max_memory, capacity=capacity, memory=memory)


def _stratify(values: Tensor, count: int, bins: int, dropped: int, key: Key) -> Tensor:
    """Draw `count` positions evenly over bins of all but the `dropped` highest values."""
    array = values.numpy()
    low, high, excluded = float(array.min()), float(array.max()), None
    if dropped:
        excluded = np.zeros(len(array), dtype=np.bool_)
        excluded[policies.highest(values, dropped, key).numpy()] = True
        high = float(array.max(where=~excluded, initial=-np.inf))
    # bin of each sample; `bins` where it is dropped
    strata = np.empty(len(array), dtype=np.uint8 if bins < 256 else np.uint16)
    sizes = np.zeros(bins + 1, dtype=np.int64)
    buffer = np.empty(min(len(array), _ROWS))
    for start in range(0, len(array), _ROWS):
        rows = slice(start, start + _ROWS)
        # in float64, and multiplied first: whole numbers on an edge stay there
        place = np.subtract(array[rows], low, out=buffer[: len(array) - start], dtype=np.float64)
        place *= bins
        place /= high - low if high > low else 1
        strata[rows] = np.minimum(place, bins - 1, out=place)
        if excluded is not None:
            strata[rows][excluded[rows]] = bins
        sizes += np.bincount(strata[rows], minlength=bins + 1)
    del excluded
    places = np.zeros(bins + 1, dtype=np.int64)
    shuffled = torch.randperm(bins, generator=key.generator()).numpy()
    for done, stratum in enumerate(shuffled[np.argsort(sizes[shuffled], kind="stable")]):
        places[stratum] = min(int(sizes[stratum]), count // (bins - done))
        count -= int(places[stratum])
    return _draw(strata, places, sizes, key)


def _draw(strata: np.ndarray, places: np.ndarray, sizes: np.ndarray, key: Key) -> Tensor:
    """Draw `places[s]` members of each stratum s at random; ascending positions.

    Every sample draws a uniform number. Samples far below the share of their stratum are in, those far above are out,
    and only the few in between are resolved per stratum. If too few or too many are in between, all numbers are drawn
    again, which leaves the draw uniform: which members are in does not depend on how many are.
    """
    share = places / np.maximum(sizes, 1)
    margin = 6 * np.sqrt(share * (1 - share) / np.maximum(sizes, 1)) + 10 / np.maximum(sizes, 1)
    low = np.where(share < 1, share - margin, 2).astype(np.float32)
    high = np.select([share == 0, share < 1], [-1, share + margin], 2).astype(np.float32)
    generator = key.generator()
    while True:
        chosen = np.zeros(len(strata), dtype=np.bool_)
        between = []
        drawn = np.zeros(len(places), dtype=np.int64)
        for start in range(0, len(strata), _ROWS):
            chunk = strata[start : start + _ROWS]
            number = torch.rand(len(chunk), generator=generator).numpy()
            near = np.flatnonzero(number < np.take(high, chunk))
            certain = number[near] < np.take(low, chunk[near])
            drawn += np.bincount(chunk[near][certain], minlength=len(places))
            chosen[start + near[certain]] = True
            between.append(start + near[~certain])
        unsure = np.concatenate(between)
        stratum = strata[unsure]
        missing, able = places - drawn, np.bincount(stratum, minlength=len(places))
        if (missing >= 0).all() and (missing <= able).all():
            break
    for members, more in zip(np.split(unsure[np.argsort(stratum, kind="stable")], np.cumsum(able)), missing):
        drawn_last = torch.randperm(len(members), generator=generator)[: int(more)]
        chosen[members[drawn_last.numpy()]] = True
    return torch.from_numpy(np.flatnonzero(chosen))
