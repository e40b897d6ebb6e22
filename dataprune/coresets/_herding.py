"""Herding: samples whose mean follows the mean of their class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..hashing import Key
from ..selection import Selection
from . import budget


def herding(
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | budget.Array,
    balance: budget.Balance = "none",
    seed: int = 0,
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep, per class, the samples that greedily bring the mean of the kept ones closest to the mean of the class.

    Choice i + 1 is argmin ‖(i + 1)·μ − Σ chosen − h‖ over the samples h not chosen yet.

    Args:
        balance: "none": every class keeps its share, in proportion to its size. "class": the same number of places for
            every class, as far as it has samples.
    Returns:
        max(1, floor(keep * N + 0.5)) positions with weight one: class by class, in ascending order of the class ids,
        and within a class in the order in which they were chosen.
    Example:
        >>> herding(torch.tensor([[0.0], [3.0], [4.0], [9.0]]), keep=0.5, labels=torch.zeros(4).int()).index
        tensor([2, 1])

    Source: Welling 2009, "Herding dynamical weights to learn"; per class as in Rebuffi et al. 2017, arXiv:1611.07725,
        Algorithm 4. Differs: features are not normalised to length one, and no sample is taken twice.
    """
    features = budget.check_features("features", features)
    size, width = features.shape
    count = budget.count_of(size, keep)
    ids = budget.check_labels(labels, size, "herding")
    budget.check_balance(balance, ids, size)
    generator = torch.Generator().manual_seed(seed)
    groups = budget.split(size, count, ids, "equal" if balance == "class" else "proportional", Key(seed, 0))
    largest = max(len(positions) for positions, _ in groups)
    fixed = 96 * size + 64 * width
    rows = budget.chunk_rows("herding", size, max_memory, fixed=fixed, row=40 * width)
    # a whole class is copied where it fits (beside a chunk), else read again for every choice
    whole = max_memory - fixed - 40 * width * rows >= 4 * width * largest
    budget.check_finite("features", features, rows)
    chosen = []
    for positions, places in groups:
        shuffled = positions[torch.randperm(len(positions), generator=generator)]  # argmin takes the first of equals
        chosen.append(shuffled[_herd(features, shuffled, places, rows, whole=whole)])
    return Selection.of(torch.cat(chosen))


def _herd(features: Tensor, members: Tensor, count: int, rows: int, *, whole: bool) -> Tensor:
    """Choose `count` of `members`; returns their places in `members`, in the order of choice."""
    mean = budget.mean_of(features, members, rows)
    on_device = members.to(features.device)
    high = mean.float()
    low = (mean - high).float()  # the rounding of the mean to float32 would add up over the choices

    def centred(part: slice) -> Tensor:
        chunk = features[on_device[part]]
        if chunk.dtype == torch.float64:
            return (chunk - mean).float()
        return chunk.float().sub_(high).sub_(low)

    read = centred
    parts = [slice(start, start + rows) for start in range(0, len(members), rows)]
    if whole:
        copy = torch.empty(len(members), features.shape[1], device=features.device)
        for part in parts:
            copy[part] = centred(part)
        read, parts = copy.__getitem__, [slice(0, len(members))]
    norm = torch.cat([torch.linalg.vecdot(block, block) for block in map(read, parts)])
    if not bool(norm.isfinite().all()):
        raise ValueError("features are so large that their squares overflow float32: divide them by a constant")
    # with z = h − μ, the norm to minimise is ‖Σ z chosen + z‖², and only ‖z‖² + 2⟨Σ z chosen, z⟩ depends on z
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    value = torch.empty_like(norm)
    chosen: list[int] = []
    views = [(part, norm[part], value[part]) for part in parts]
    for _ in range(count):
        direction = total.float()
        for part, own, out in views:
            torch.addmv(own, read(part), direction, alpha=2, out=out)
        best = int(value.argmin())
        chosen.append(best)
        norm[best] = torch.inf
        total += read(slice(best, best + 1))[0]
    return torch.tensor(chosen, dtype=torch.int64)
