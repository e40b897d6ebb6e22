"""Coresets from features: what is typical of its class, and what covers the space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import policies
from ..errors import UsageError, suggest
from ..selection import Selection
from .budget import (
    MAX_MEMORY,
    Balance,
    check_balance,
    chunk_rows,
    count_of,
    equal_places,
    members_of,
    proportional_places,
)
from .farthest import Euclidean, Space, SymmetricDivergence, check_rows, farthest_first, plan
from .inputs import check_features, check_labels

_CACHED = 1 << 16  # numbers whose float64 copy stays in the cache


def moderate(
    features: Float[Tensor, "n d"],
    *,
    keep: float,
    labels: Int[Tensor, " n"],
    center: Literal["mean", "median"] = "mean",
    balance: Balance = "none",
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """The samples whose distance to the centre of their class is closest to the median distance.

    Args:
        features: one row per sample, of any floating-point type, on any device.
        keep: fraction kept, in (0, 1].
        labels: class ids.
        center: "mean" of the class, or its coordinate-wise "median".
        balance: "none": one median over all samples, and the closest to it whatever their class. "class": each class
            has its own median and the same number of places, as far as it has samples.
        seed: decides between equals.
        max_memory: bytes this may use beyond its input.
    Returns:
        max(1, floor(keep * N + 0.5)) ascending positions with weight one.
    Raises:
        ValueError: if features are not (N, D), floating point and finite, keep is outside (0, 1], labels are missing or
            do not fit, a class would stay empty under balance="class", or the memory needed is above max_memory.
    Example:
        >>> moderate(torch.tensor([[-5.0], [-2.0], [0.0], [1.0], [6.0]]), keep=0.2, labels=torch.zeros(5).int()).index
        tensor([1])

    Source: Xia et al. 2023, "Moderate coreset", ICLR 2023, section 3 (the mean; its code takes the median). Differs:
        closeness is the difference of distances; the published code takes equally many ranks on both sides of the
        median.
    """
    features = check_features("features", features)
    size, width = features.shape
    count = count_of(size, keep)
    ids = check_labels(labels, size, needed_by="moderate")
    assert ids is not None
    check_balance(balance, ids)
    if center not in ("mean", "median"):
        raise UsageError(suggest(str(center), ["mean", "median"], what="center"))
    classes, members = members_of(ids)
    largest = max(len(positions) for positions in members)
    # one column of the largest class is sorted at a time, if no more fits
    fixed = 56 * size + 16 * len(classes) * width + (32 * largest if center == "median" else 0) + 12 * count
    rows = chunk_rows("moderate", fixed=fixed, row=40 * width, size=size, max_memory=max_memory)
    check_rows("features", features, rows)
    generator = torch.Generator().manual_seed(seed)
    distance = torch.empty(size, dtype=torch.float64)
    for positions in members:
        centre = (_mean if center == "mean" else _median)(features, positions, rows)
        for part in positions.split(min(rows, max(1, _CACHED // width))):
            distance[part] = (features[part.to(features.device)].double() - centre).norm(dim=1).cpu()
    chosen = np.zeros(size, dtype=np.bool_)
    groups = [torch.arange(size)] if balance == "none" else members
    places = [count] if balance == "none" else equal_places(classes, [len(one) for one in members], count, generator)
    for positions, share in zip(groups, places):
        values = distance[positions].numpy()
        near = torch.from_numpy(-np.abs(values - np.median(values)))
        chosen[positions[policies.highest(near, share, generator)].numpy()] = True
    return Selection.of(torch.from_numpy(np.flatnonzero(chosen)))


def k_center(
    features: Float[Tensor, "n d"],
    *,
    keep: float,
    seed: int = 0,
    first: int | None = None,
    labels: Int[Tensor, " n"] | None = None,
    balance: Balance = "none",
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """k-center, greedily: again and again the sample that is farthest from all chosen ones.

    Euclidean distance, in float32; in float64 from where float32 can no longer tell distances, or where torch is
    allowed less than float32 (TF32). The result covers all samples with at most twice the smallest possible radius.

    Args:
        features: as for `moderate`.
        keep: as for `moderate`.
        seed: draws the first sample, and decides between equals.
        first: position of the first sample, instead of a random one; only with balance="none".
        labels: class ids; needed where balance is "class", else unused.
        balance: "none", or "class": each class is covered on its own, with the same number of places, as far as it has
            samples.
        max_memory: as for `moderate`.
    Returns:
        max(1, floor(keep * N + 0.5)) positions with weight one, in the order in which they were chosen (class by class
        under balance="class"): the first k of them are the k-center of k samples.
    Raises:
        ValueError: as for `moderate`, or if first is no position.
    Example:
        >>> k_center(torch.tensor([[0.0], [1.0], [4.0], [10.0]]), keep=0.75, first=0).index
        tensor([0, 3, 2])

    Source: Sener and Savarese 2018, arXiv:1708.00489, Algorithm 1. Differs: one random first sample where the paper
        starts from a labelled pool; without its mixed-integer refinement.
    """
    features = check_features("features", features)
    return _cover("k_center", features, features.shape[1], Euclidean, keep, seed, first, labels, balance, max_memory)


def contextual_diversity(
    outputs: Float[Tensor, "n c"],
    *,
    keep: float,
    seed: int = 0,
    first: int | None = None,
    labels: Int[Tensor, " n"] | None = None,
    balance: Balance = "none",
    space: Literal["auto", "logits", "probabilities"] = "auto",
    floor: float = 1e-12,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """k-center under the symmetric divergence KL(p‖q) + KL(q‖p) of class probabilities.

    Args:
        outputs: logits or probabilities, one row per sample, of any floating-point type, on any device.
        keep: as for `moderate`.
        seed: as for `k_center`.
        first: as for `k_center`.
        labels: as for `k_center`.
        balance: as for `k_center`.
        space: what outputs are; "auto" takes them as probabilities where no number is negative and every row sums to
            one (within 1 %), else as logits.
        floor: probabilities are raised to this, so that the divergence is finite; in (0, 1).
        max_memory: as for `moderate`.
    Returns:
        As for `k_center`.
    Raises:
        ValueError: as for `k_center`; if floor is out of range, or probabilities are asked for and these are none.
    Example:
        >>> contextual_diversity(torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1]]), keep=0.6, first=0).index
        tensor([0, 2])

    Source: Agarwal et al. 2020, arXiv:2008.05723, section 3.2. Differs: one distribution per sample, as in
        classification; the paper mixes those of all pixels or boxes. Probabilities are clamped.
    """
    outputs = check_features("outputs", outputs)
    if space not in ("auto", "logits", "probabilities"):
        raise UsageError(suggest(str(space), ["auto", "logits", "probabilities"], what="space"))
    if not 0 < floor < 1:
        raise ValueError(f"floor is the smallest probability, in (0, 1), got {floor!r}")
    found = space != "logits" and _are_probabilities(outputs)
    if space == "probabilities" and not found:
        raise ValueError('outputs are no probabilities (negative, or rows that do not sum to one): space="logits"?')

    def divergence(values: Tensor, rows: int, members: Tensor | None) -> SymmetricDivergence:
        return SymmetricDivergence(values, rows, members, logits=not found, floor=floor)

    name, width = "contextual_diversity", 2 * outputs.shape[1]
    return _cover(name, outputs, width, divergence, keep, seed, first, labels, balance, max_memory)


def herding(
    features: Float[Tensor, "n d"],
    *,
    keep: float,
    labels: Int[Tensor, " n"],
    balance: Balance = "none",
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """Per class, greedily the sample that brings the mean of the chosen ones closest to the mean of the class.

    After i choices it is argmin ‖(i + 1)·μ − Σ chosen − h‖ over the samples h that are left.

    Args:
        features: as for `moderate`.
        keep: as for `moderate`.
        labels: class ids.
        balance: "none": every class keeps its share, in proportion to its size. "class": the same number of places for
            every class, as far as it has samples.
        seed: decides between equals, and which class gets an odd place.
        max_memory: as for `moderate`.
    Returns:
        max(1, floor(keep * N + 0.5)) positions with weight one: class by class, in ascending order of the class ids,
        and within a class in the order in which they were chosen.
    Raises:
        ValueError: as for `moderate`; a class must not stay empty with either balance.
    Example:
        >>> herding(torch.tensor([[0.0], [3.0], [4.0], [9.0]]), keep=0.5, labels=torch.zeros(4).int()).index
        tensor([2, 1])

    Source: Welling 2009, "Herding dynamical weights to learn"; per class as in Rebuffi et al. 2017, arXiv:1611.07725,
        Algorithm 4. Differs: features are not normalised to length one, and no sample is taken twice.
    """
    features = check_features("features", features)
    size, width = features.shape
    count = count_of(size, keep)
    ids = check_labels(labels, size, needed_by="herding")
    assert ids is not None
    check_balance(balance, ids)
    generator = torch.Generator().manual_seed(seed)
    classes, members = members_of(ids)
    sizes = [len(positions) for positions in members]
    divide = equal_places if balance == "class" else proportional_places
    places = divide(classes, sizes, count, generator)
    largest = max(sizes)
    rows = chunk_rows("herding", fixed=96 * size + 64 * width, row=40 * width, size=size, max_memory=max_memory)
    # a whole class is copied where it fits (beside a chunk), else read again for every choice
    whole = max_memory - 96 * size - 64 * width - 40 * width * rows >= 4 * width * largest
    check_rows("features", features, rows)
    chosen = []
    for positions, share in zip(members, places):
        shuffled = positions[torch.randperm(len(positions), generator=generator)]  # argmin takes the first of equals
        chosen.append(shuffled[_herd(features, shuffled, share, rows, whole=whole)])
    return Selection.of(torch.cat(chosen))


def _herd(features: Tensor, members: Tensor, count: int, rows: int, *, whole: bool) -> Tensor:
    """Places in `members` of `count` choices, in order."""
    mean = _mean(features, members, rows)
    at = members.to(features.device)
    high = mean.float()
    low = (mean - high).float()  # what float32 cannot hold of the mean would add up over the choices

    def centred(part: slice) -> Tensor:
        chunk = features[at[part]]
        if chunk.dtype == torch.float64:
            return (chunk - mean).float()
        return chunk.float().sub_(high).sub_(low)

    parts = [slice(start, start + rows) for start in range(0, len(members), rows)]
    if whole:
        copy = torch.empty(len(members), features.shape[1], device=features.device)
        for part in parts:
            copy[part] = centred(part)
        read = copy.__getitem__
        parts = [slice(0, len(members))]
    else:
        read = centred
    norm = torch.cat([torch.linalg.vecdot(block, block) for block in map(read, parts)])
    if not bool(norm.isfinite().all()):
        raise ValueError("features are so large that their squares overflow float32: divide them by a constant")
    # with z = h − μ, the norm to minimise is ‖Σ z chosen + z‖², of which ‖z‖² + 2⟨Σ z chosen, z⟩ depends on z
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


def _cover(
    name: str,
    values: Tensor,
    width: int,
    make: Callable[[Tensor, int, Tensor | None], Space],
    keep: float,
    seed: int,
    first: int | None,
    labels: Tensor | None,
    balance: Balance,
    max_memory: int,
) -> Selection:
    """Farthest-first traversal of all rows, or class by class."""
    size = len(values)
    count = count_of(size, keep)
    ids = check_labels(labels, size)
    check_balance(balance, ids)
    if first is not None:
        if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < size:
            raise ValueError(f"first is the position of a sample, in [0, {size - 1}], got {first!r}")
        if balance == "class":
            raise ValueError('first is one position, but balance="class" starts once in every class: leave it out')
    rows = plan(name, size, width, values.element_size(), count, max_memory)
    check_rows("features" if name == "k_center" else "outputs", values, rows)
    generator = torch.Generator().manual_seed(seed)
    if balance == "none" or ids is None:
        space = make(values, rows, None)
        return Selection.of(farthest_first(space, size, count, first, generator, rows=rows, max_memory=max_memory))
    classes, members = members_of(ids)
    places = equal_places(classes, [len(positions) for positions in members], count, generator)
    chosen = []
    for positions, share in zip(members, places):
        space = make(values, rows, positions.to(values.device))
        picks = farthest_first(space, len(positions), share, None, generator, rows=rows, max_memory=max_memory)
        chosen.append(positions[picks])
    return Selection.of(torch.cat(chosen))


def _mean(features: Tensor, positions: Tensor, rows: int) -> Tensor:
    """(D,) mean of some rows, float64."""
    total = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for part in positions.to(features.device).split(rows):
        total += features[part].sum(dim=0, dtype=torch.float64)
    return total / len(positions)


def _median(features: Tensor, positions: Tensor, rows: int) -> Tensor:
    """(D,) coordinate-wise median of some rows, float64: the mean of the middle two where their number is even."""
    at = positions.to(features.device)
    columns = max(1, rows * features.shape[1] // len(positions))
    middle = [(len(positions) - 1) // 2, len(positions) // 2]
    parts = []
    for start in range(0, features.shape[1], columns):
        ordered = features[:, start : start + columns][at].sort(dim=0).values
        parts.append(ordered[middle].double().mean(dim=0))
    return torch.cat(parts)


def _are_probabilities(outputs: Tensor) -> bool:
    rows = max(1, (1 << 22) // outputs.shape[1])
    return all(
        bool((chunk >= 0).all()) and bool(((chunk.sum(dim=1, dtype=torch.float64) - 1).abs() < 1e-2).all())
        for chunk in outputs.split(rows)
    )
