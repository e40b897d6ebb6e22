"""Gradients of a last linear layer, from errors and features, without storing any of them.

With cross-entropy, a sample's gradient with respect to the last layer's weight and bias is the outer product
g = e·[h, 1]ᵀ of its error e = softmax − onehot (C values) and its features h (D values), so that an inner product of
two gradients is ⟨e_i, e_j⟩·(1 + ⟨h_i, h_j⟩).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 2048  # samples whose products are computed at once: larger chunks leave the cache


def check(
    errors: Float[Tensor, "n c"], features: Float[Tensor, "n d"], names: tuple[str, str] = ("errors", "features")
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n d"]]:
    """Both tensors, detached, on one device and of one dtype, at least float32.

    Raises:
        TypeError: if one is no floating-point tensor.
        ValueError: if the shapes are not (N, C) and (N, D), there is no sample, or a value is not finite.
    """
    for name, value in zip(names, (errors, features)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {found}")
        if value.ndim != 2 or 0 in value.shape:
            raise ValueError(f"{name} must be a matrix with a row per sample, got shape {tuple(value.shape)}")
        if not torch.isfinite(value.sum()) and (bad := int((~torch.isfinite(value)).any(1).sum())):
            raise ValueError(f"{bad} rows of {name} hold NaN or infinite values")
    if len(errors) != len(features):
        raise ValueError(f"{names[0]} has {len(errors)} rows, {names[1]} has {len(features)}: one per sample is needed")
    dtype = torch.promote_types(torch.promote_types(errors.dtype, features.dtype), torch.float32)
    return errors.detach().to(dtype), features.detach().to(errors.device, dtype)


def check_labels(labels: Int[Tensor, " n"], errors: Float[Tensor, "n c"]) -> Int[Tensor, " n"]:
    """The labels, int64 and where the errors are.

    Raises:
        TypeError: if they are no whole numbers.
        ValueError: if there is not one in [0, C) for each sample.
    """
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype == torch.bool
    ):
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of class ids, got {found}")
    size, classes = errors.shape
    if labels.shape != (size,):
        raise ValueError(f"labels must hold one class id for each of the {size} samples, got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels hold {low} to {high}, but errors have the {classes} classes 0 to {classes - 1}")
    return labels.to(errors.device, torch.int64)


def probabilities(errors: Float[Tensor, "n c"], labels: Int[Tensor, " n"], name: str) -> Float[Tensor, "n c"]:
    """The softmax that the errors were made of: e + onehot(labels).

    Raises:
        ValueError: if it is none: a value below 0, or a row that does not sum to 1.
    """
    result = errors.clone()
    result[torch.arange(len(errors), device=errors.device), labels] += 1
    if float(result.min()) < -1e-2 or float((result.sum(1) - 1).abs().max()) > 1e-2:  # half precision passes
        raise ValueError(f"{name} must be softmax(logits) − onehot(labels): with the labels added, a row is no softmax")
    return result.clamp_(min=0)


def pair_products(
    errors: Float[Tensor, "a c"], features: Float[Tensor, "a d"], others: tuple[Tensor, Tensor]
) -> Float[Tensor, "a b"]:
    """Inner products of gradients with those of `others` = ((B, C) errors, (B, D) features)."""
    product = features @ others[1].T
    product += 1
    product *= errors @ others[0].T
    return product


def weighted_sum(
    errors: Float[Tensor, "n c"], features: Float[Tensor, "n d"], weight: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "c d+1"]:
    """Sum of the gradients, weighted: a row per class, the bias in the last column."""
    if weight is not None:
        errors = errors * weight[:, None]
    return torch.cat([errors.T @ features, errors.sum(0)[:, None]], dim=1)


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
