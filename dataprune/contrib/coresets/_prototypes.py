"""Self-supervised prototypes: samples far from, or near to, the centroids of k-means."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Integer
from torch import Tensor

from ... import policies
from ...coresets import budget
from ...errors import check_known
from ...hashing import Key
from ...selection import Selection
from . import _k_means


def prototypes(
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    clusters: int | None = None,
    prefer: Literal["hard", "easy"] = "hard",
    distance: Literal["cosine", "euclidean"] = "cosine",
    labels: Integer[Tensor, " n"] | budget.Array | None = None,
    balance: budget.Balance = "none",
    seed: int = 0,
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep the samples that are farthest from the nearest centroid of k-means, or those that are nearest to it.

    Args:
        clusters: number of clusters; by default that of the classes where labels are given, else √N, rounded up. The
            paper has about as many as classes, and finds that a few times more or fewer changes little.
        prefer: "hard" keeps the farthest, "easy" the nearest. The paper keeps the hard where data is plenty, and the
            easy where little is left.
        distance: "cosine", with spherical k-means, or "euclidean", with k-means of the features as they are.
        balance: "none", or "class": equal places for every class, as far as it has samples; the clusters are those of
            all. The paper balances classes by half.
    Raises:
        ValueError: if clusters is out of range.
    Example:
        >>> import torch
        >>> features = torch.tensor([[0.0], [0.1], [0.4], [9.0], [9.1]])
        >>> prototypes(features, keep=0.2, clusters=2, distance="euclidean").index
        tensor([2])

    Source: Sorscher et al. 2022, arXiv:2206.14486, the "self-supervised prototypes". Differs: the paper's features are
        those of a model trained without labels (SwAV), any are taken here; classes are balanced wholly or not at all;
        the paper does not say whether features are scaled before k-means, with "cosine" they are.
    """
    features = budget.check_features("features", features)
    size, width = features.shape
    count = budget.count_of(size, keep)
    ids = budget.check_balance(balance, labels, size)
    check_known(prefer, ("hard", "easy"), what="prefer")
    check_known(distance, ("cosine", "euclidean"), what="distance")
    clusters = _k_means.count_of(clusters, size, None if ids is None else len(ids.unique()))
    fixed, row = _k_means.memory(size, width, clusters)
    rows = budget.chunk_rows("prototypes", size, max_memory, fixed=fixed + 24 * size, row=row)
    budget.check_finite("features", features, rows)
    space = _k_means.Rows.of(features, rows, cosine=distance == "cosine")
    apart = _k_means.cluster(space, clusters, rows, seed).distance.double().round(decimals=6)
    groups = budget.split(size, count, ids, "equal" if balance == "class" else "none", Key(seed, 0))
    return budget.select(apart if prefer == "hard" else -apart, groups, policies.highest, seed)
