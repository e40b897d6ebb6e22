"""Graph cut: samples that are like all others, and unlike each other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ...coresets import budget
from ...hashing import Key
from ...selection import Selection
from ._k_means import Rows


def graph_cut(
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    redundancy: float = 1.0,
    labels: Integer[Tensor, " n"] | budget.Array | None = None,
    balance: budget.Balance = "none",
    seed: int = 0,
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep the samples that greedily raise Σ over all i and kept j of s_ij − λ · Σ over kept i and j of s_ij the most.

    s is the cosine similarity of features. The gain of a sample j is Σ_i s_ij − λ · (2 · Σ over kept i of s_ij + s_jj).
    Its first sum is a product with the sum of all, and each pick takes one product with the pick from the second: the
    gains are exact, in float64 sums of float32 products, and no matrix of similarities exists. (1 + s) / 2 in the place
    of s, never negative, makes the same picks.

    Args:
        redundancy: λ, at least 0: weight of the similarity among the kept. Up to 1/2 every sample adds to the value;
            with 0 the samples most like all others are kept.
        balance: "none", or "class": the value of each class on its own, with the same number of places for every
            class, as far as it has samples.
    Returns:
        max(1, floor(keep * N + 0.5)) positions with weight one, in the order in which they were chosen (class by class
        under balance="class"): the first k of them are the coreset of k samples.
    Raises:
        ValueError: if redundancy is out of range.
    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.1], [0.0, 1.0]])
        >>> graph_cut(features, keep=0.5, redundancy=2.0).index
        tensor([2, 3])

    Source: Iyer et al. 2021, arXiv:2006.15412, the graph cut, as a coreset in Guo et al. 2022 (DeepCore),
        arXiv:2204.08499, with its λ of 1. Differs: of features, where DeepCore takes gradients of the last layer.
    """
    features = budget.check_features("features", features)
    size, width = features.shape
    count = budget.count_of(size, keep)
    ids = budget.check_balance(balance, labels, size)
    number = isinstance(redundancy, Real) and not isinstance(redundancy, bool)
    if not number or not math.isfinite(redundancy) or redundancy < 0:
        raise ValueError(f"redundancy is the weight of similar pairs, a number of at least 0, got {redundancy!r}")
    groups = budget.split(size, count, ids, "equal" if balance == "class" else "none", Key(seed, 0))
    largest = max(len(positions) for positions, _ in groups)
    fixed = 56 * size + 24 * width
    rows = budget.chunk_rows("graph_cut", size, max_memory, fixed=fixed, row=20 * width)
    # a whole class is copied where it fits (beside a chunk), else read again for every choice
    whole = max_memory - fixed - 20 * width * rows >= 4 * width * largest
    budget.check_finite("features", features, rows)
    space, generator, picks = Rows.of(features, rows, cosine=True), torch.Generator().manual_seed(seed), []
    for positions, places in groups:
        shuffled = positions[torch.randperm(len(positions), generator=generator)]  # argmax takes the first of equals
        picks.append(shuffled[_cut(_Members(space, shuffled, rows, whole=whole), places, redundancy)])
    return Selection.of(torch.cat(picks))


class _Members:
    """Some rows of length one, copied as a whole or read in chunks."""

    def __init__(self, space: Rows, places: Int[Tensor, " m"], rows: int, *, whole: bool):
        self.space, self.places, self.rows = space, places, rows
        self.copy = torch.cat(list(map(space.read, places.split(rows)))) if whole else None

    def chunks(self) -> Iterable[Float[Tensor, "b d"]]:
        if self.copy is not None:
            return self.copy.split(self.rows)
        return map(self.space.read, self.places.split(self.rows))

    def row(self, at: int) -> Float[Tensor, " d"]:
        return self.space.read(self.places[at : at + 1])[0] if self.copy is None else self.copy[at]


def _cut(members: _Members, count: int, redundancy: float) -> Int[Tensor, " k"]:
    """Choose `count` members; returns their places, in the order of choice."""
    total = torch.stack([chunk.sum(dim=0, dtype=torch.float64) for chunk in members.chunks()]).sum(dim=0)
    gain = torch.cat([chunk.double() @ total for chunk in members.chunks()])
    gain -= redundancy * torch.cat([chunk.square().sum(dim=1).round() for chunk in members.chunks()])  # 0 of zeros
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(gain.argmax()))
        row = members.row(chosen[-1])
        gain.sub_(torch.cat([chunk @ row for chunk in members.chunks()]), alpha=2 * redundancy)
        gain[chosen[-1]] = -torch.inf
    return torch.tensor(chosen)
