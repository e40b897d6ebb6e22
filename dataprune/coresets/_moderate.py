"""Moderate coreset: the samples at the median distance from the centre of their class."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from .. import policies
from ..errors import check_known
from ..hashing import Key
from ..selection import Selection
from . import budget

_CACHED = 1 << 16  # numbers whose float64 copy stays in the cache


def moderate(
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | budget.Array,
    center: Literal["mean", "median"] = "mean",
    balance: budget.Balance = "none",
    seed: int = 0,
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep the samples whose distance to the centre of their class is closest to the median distance.

    Args:
        center: "mean" of the class, or its coordinate-wise "median".
        balance: "none": one median over all samples, and the closest to it whatever their class. "class": each class
            has its own median and the same number of places, as far as it has samples.
    Example:
        >>> moderate(torch.tensor([[-5.0], [-2.0], [0.0], [1.0], [6.0]]), keep=0.2, labels=torch.zeros(5).int()).index
        tensor([1])

    Source: Xia et al. 2023, "Moderate coreset", ICLR 2023, section 3 (the mean; its code takes the median). Differs:
        closeness is the difference of distances; the published code takes equally many ranks on both sides of the
        median.
    """
    features = budget.check_features("features", features)
    size, width = features.shape
    count = budget.count_of(size, keep)
    ids = budget.check_labels(labels, size, "moderate")
    budget.check_balance(balance, ids, size)
    check_known(center, ("mean", "median"), what="center")
    sizes = torch.unique(ids, return_counts=True)[1]
    # one column of the largest class is sorted at a time, if no more fits
    sorting = 32 * int(sizes.max()) if center == "median" else 0
    fixed = 56 * size + 16 * len(sizes) * width + sorting + 12 * count
    rows = budget.chunk_rows("moderate", size, max_memory, fixed=fixed, row=40 * width)
    budget.check_finite("features", features, rows)
    distance = torch.empty(size, dtype=torch.float64)
    for positions in torch.argsort(ids, stable=True).split(sizes.tolist()):
        middle = budget.mean_of(features, positions, rows) if center == "mean" else _median(features, positions, rows)
        for part in positions.split(min(rows, max(1, _CACHED // width))):
            distance[part] = (features[part.to(features.device)].double() - middle).norm(dim=1).cpu()
    groups = budget.split(size, count, ids, "equal" if balance == "class" else "none", Key(seed, 0))

    def closest_to_median(values: Tensor, count: int, key: Key) -> Tensor:
        return policies.highest(-(values - np.median(values)).abs(), count, key)

    return budget.select(distance, groups, closest_to_median, seed)


def _median(features: Tensor, positions: Tensor, rows: int) -> Tensor:
    """Coordinate-wise median (D,) of some rows, in float64; as many columns at a time as `rows` rows have numbers."""
    on_device = positions.to(features.device)
    parts = features.split(max(1, rows * features.shape[1] // len(positions)), dim=1)
    medians = [np.median(part[on_device].double().cpu().numpy(), axis=0) for part in parts]
    return torch.from_numpy(np.concatenate(medians)).to(features.device)
