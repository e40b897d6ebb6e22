"""SemDeDup: no two samples that mean the same."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ... import policies
from ...coresets import budget
from ...errors import check_known
from ...hashing import Key
from ...selection import Selection
from . import _k_means

_BLOCK = 1024  # samples whose similarities are computed at once, if memory allows
_DIGITS = 6  # of similarities and distances: what is equal must not differ by the order in which a sum is taken

_log = logging.getLogger("dataprune.coresets")


def semdedup(
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    clusters: int | None = None,
    prefer: Literal["hard", "easy", "random"] = "hard",
    labels: Integer[Tensor, " n"] | budget.Array | None = None,
    balance: budget.Balance = "none",
    seed: int = 0,
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep the samples that are least like another one: semantic deduplication, with the threshold that keeps K.

    Features are clustered by spherical k-means. In a cluster, samples stand in the order of their distance from its
    centroid, and a sample is a duplicate where its cosine similarity to one before it is above 1 − ε. ε is solved, so
    that as many samples are left as are asked for; it is logged. The first of a cluster is never a duplicate while
    others are left.

    Args:
        clusters: number of clusters; by default √N, rounded up. The paper has 50,000 for 440 million images, and finds
            that it matters little.
        prefer: which of several duplicates stays: "hard", the farthest from the centroid; "easy", the nearest; or a
            "random" one.
    Raises:
        ValueError: if clusters is out of range.
    Example:
        >>> semdedup(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [-1.0, 0.0]]), keep=3, clusters=2).index.shape
        torch.Size([3])

    Source: SemDeDup, Abbas et al. 2023, arXiv:2303.09540, section 3 and its code. Differs: ε follows from the number
        kept, where the paper fixes it; similarities are rounded to six digits, so that equals are drawn at random.
    """
    features = budget.check_features("features", features)
    size, width = features.shape
    count = budget.count_of(size, keep)
    ids = budget.check_balance(balance, labels, size)
    check_known(prefer, ("hard", "easy", "random"), what="prefer")
    clusters = _k_means.count_of(clusters, size)
    fixed, row = _k_means.memory(size, width, clusters)
    block = min(size, _BLOCK)
    row = max(row, 56 * width + 8 * block)
    rows = budget.chunk_rows("semdedup", size, max_memory, fixed=fixed + 24 * size, row=row)
    budget.check_finite("features", features, rows)
    space = _k_means.Rows.of(features, rows, cosine=True)
    similarity = _to_earlier(space, _k_means.cluster(space, clusters, rows, seed), prefer, min(rows, block), seed)
    groups = budget.split(size, count, ids, "equal" if balance == "class" else "none", Key(seed, 0))
    selection = budget.select(-similarity, groups, policies.highest, seed)
    threshold = float(similarity[selection.index].max())
    _log.info("semdedup: with %d clusters, eps is %.6f", clusters, 1 - threshold)
    return selection


def _to_earlier(
    space: _k_means.Rows, found: _k_means.Clusters, prefer: str, block: int, seed: int
) -> Float[Tensor, " n"]:
    """Each sample's largest similarity to one that stands before it in its cluster; −1 for the first."""
    order = torch.randperm(len(found.cluster), generator=torch.Generator().manual_seed(seed))
    if prefer != "random":
        distance = found.distance[order].double().round(decimals=_DIGITS)
        order = order[distance.argsort(stable=True, descending=prefer == "hard")]
    order = order[found.cluster[order].argsort(stable=True)]
    sizes = torch.bincount(found.cluster)
    result = torch.full((len(order),), -1.0)
    for members in order.split(sizes[sizes > 0].tolist()):
        for start in range(0, len(members), block):
            places = members[start : start + block]
            result[places] = _largest(space, members[: start + block], start, block).cpu()
    return result.double().round(decimals=_DIGITS)


def _largest(space: _k_means.Rows, members: Tensor, start: int, block: int) -> Float[Tensor, " b"]:
    """The largest similarity of each of the members from `start` on to those before it."""
    values = space.read(members[start:])
    largest = values.new_full((len(values),), -1.0)
    for first in range(0, len(members), block):
        similarity = values @ space.read(members[first : first + block]).T
        if first == start:
            similarity.masked_fill_(torch.ones_like(similarity, dtype=torch.bool).triu(), -1.0)
        torch.maximum(largest, similarity.amax(dim=1), out=largest)
    return largest
