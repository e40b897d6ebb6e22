"""Gradients of a last linear layer, from errors and features, without storing any of them.

With cross-entropy, a sample's gradient with respect to the last layer's weight and bias is the outer product
g = e·[h, 1]ᵀ of its error e = softmax − onehot (C values) and its features h (D values), so that an inner product of
two gradients is ⟨e_i, e_j⟩·(1 + ⟨h_i, h_j⟩). The 1 is that of the bias, and 0 for a layer without one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..hashing import Key
from ..selection import Selection
from . import budget

CHUNK = 2048  # samples whose products are computed at once: larger chunks leave the cache


def check_gradients(
    errors: Float[Tensor, "n c"] | budget.Array,
    features: Float[Tensor, "n d"] | budget.Array,
    labels: Int[Tensor, " n"] | budget.Array,
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Check gradients as `check_factors`, and class ids in [0, C); return all three on the device of the errors."""
    errors, features = check_factors(errors, features)
    size, classes = errors.shape
    ids = budget.check_labels(labels, size, "a selection from gradients")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels hold {low} to {high}, but errors have the {classes} classes 0 to {classes - 1}")
    return errors, features, ids.to(errors.device)


def check_factors(
    errors: Float[Tensor, "n c"] | budget.Array, features: Float[Tensor, "n d"] | budget.Array, prefix: str = ""
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n d"]]:
    """Check both factors of gradients, and return them detached, on one device and in one dtype, at least float32.

    ValueError, with `prefix` before the names, if there is no sample, or shapes or values do not fit.
    """
    errors = budget.check_features(f"{prefix}errors", errors)
    features = budget.check_features(f"{prefix}features", features)
    if len(errors) != len(features) or not len(errors):
        raise ValueError(
            f"{prefix}errors has {len(errors)} rows, {prefix}features has {len(features)}: one per sample is needed"
        )
    budget.check_finite(f"{prefix}errors", errors, len(errors))
    budget.check_finite(f"{prefix}features", features, len(features))
    dtype = torch.promote_types(torch.promote_types(errors.dtype, features.dtype), torch.float32)
    return errors.to(dtype), features.to(errors.device, dtype)


def match_classes(
    match: Callable[[Tensor, int, Tensor], tuple[Tensor, Tensor]],
    labels: Int[Tensor, " n"],
    keep: float,
    seed: int,
    division: budget.Division = "proportional",
    chosen: Selection | Tensor | budget.Array | None = None,
) -> Selection:
    """Select weighted samples beside `chosen` ones class by class.

    `match` makes indices of members and their weights from members, places, and positions of the class in `chosen`.
    """
    generator = torch.Generator().manual_seed(seed)
    index, weight = [], []
    count, ids = budget.count_of(len(labels), keep), labels.cpu()
    start, rest = budget.pool(chosen, len(labels), count)
    for places_of, places in budget.split(len(rest), count, ids[rest], division, Key(seed, 0)):
        positions = rest[places_of]
        known = start[ids[start] == ids[positions[0]]].to(labels.device)
        # shuffled, as argmax takes the first of equals
        members = positions[torch.randperm(len(positions), generator=generator)].to(labels.device)
        picks, weights = match(members, places, known)
        index.append(members[picks])
        weight.append(weights)
    positions, order = torch.cat(index).sort()
    return Selection(positions.cpu(), torch.cat(weight)[order].float().cpu())


def probabilities(errors: Float[Tensor, "n c"], labels: Int[Tensor, " n"], name: str) -> Float[Tensor, "n c"]:
    """Recover the softmax from errors, e + onehot(labels); ValueError if it is none."""
    result = errors.clone()
    result[torch.arange(len(errors), device=errors.device), labels] += 1
    if float(result.min()) < -1e-2 or float((result.sum(1) - 1).abs().max()) > 1e-2:  # half precision passes
        raise ValueError(f"{name} must be softmax(logits) − onehot(labels): with the labels added, a row is no softmax")
    return result.clamp_(min=0)


def weighted_sum(
    errors: Float[Tensor, "n c"],
    features: Float[Tensor, "n d"],
    weight: Float[Tensor, " n"] | None = None,
    *,
    bias: bool,
) -> Float[Tensor, "c d+1"]:
    """Weighted sum of the gradients: a row per class, the bias in the last column, 0 where there is none."""
    if weight is not None:
        errors = errors * weight[:, None]
    return torch.cat([errors.T @ features, errors.sum(0)[:, None] * bias], dim=1)


def products(
    errors: Float[Tensor, "n c"], features: Float[Tensor, "n d"], matrix: Float[Tensor, "c d+1"]
) -> Float[Tensor, " n"]:
    """Inner product of every gradient with `matrix`."""
    result = errors.new_empty(len(errors))
    for start in range(0, len(errors), CHUNK):
        part = slice(start, start + CHUNK)
        # a row per class: the other way round takes twice as long
        mapped = torch.addmm(matrix[:, -1:], matrix[:, :-1], features[part].T)
        torch.sum(mapped.mul_(errors[part].T), 0, out=result[part])
    return result
