"""Input checks of the selectors, the number of samples that each keeps, and the places of each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from .. import policies
from ..errors import UsageError, suggest
from ..hashing import Key
from ..schedules import check_fraction

Balance = Literal["none", "class"]
Division = Literal["none", "equal", "proportional"]

_LISTED = 10  # classes that an error lists


def count_of(size: int, keep: float) -> int:
    """Count the samples kept: max(1, floor(keep * size + 0.5)).

    Args:
        size: samples in the dataset, at least 1.
        keep: fraction kept, in (0, 1].
    Raises:
        ValueError: if keep is outside (0, 1] or there is no sample.
    Example:
        >>> count_of(25, 0.1)
        3
    """
    check_fraction("keep", keep)
    if size < 1:
        raise ValueError("there are no samples to choose from: the first tensor is empty")
    return max(1, math.floor(keep * size + 0.5))


def split(
    size: int,
    count: int,
    labels: Integer[Tensor, " n"] | None,
    division: Division,
    key: Key,
    *,
    capacity: Callable[[int], int] = lambda size: size,
) -> list[tuple[Int[Tensor, " m"], int]]:
    """Divide the samples into groups that are selected from separately, and the places among the groups.

    Args:
        size: samples, N.
        count: places in all.
        labels: class ids on the CPU; needed unless division is "none".
        division: "none" for one group of all samples; "equal" for a group per class with equal places, as far as it
            has samples; "proportional" for a group per class with places in proportion to its size, where the largest
            fractions are rounded up.
        key: draws the classes that get an odd place, and decides between equal fractions.
        capacity: samples of a class -> how many of them can be selected; for "equal".
    Returns:
        Ascending positions and places of each group, classes in ascending order.
    Raises:
        ValueError: if a class would get no place.
    Example:
        >>> [places for _, places in split(4, 3, torch.tensor([0, 0, 0, 1]), "proportional", Key(0, 0))]
        [2, 1]
    """
    if division == "none" or labels is None:
        return [(torch.arange(size), count)]
    classes, sizes = torch.unique(labels, return_counts=True)
    if division == "equal":
        capacities = [capacity(members) for members in sizes.tolist()]
        places = policies.quotas(torch.tensor(capacities), count, key)
    else:
        exact = sizes * count
        rounded = exact // size
        rounded[policies.highest(exact % size, count - int(rounded.sum()), key)] += 1
        places = rounded.tolist()
    _check_no_class_empty(classes, sizes.tolist(), places, count)
    return list(zip(torch.argsort(labels, stable=True).split(sizes.tolist()), places))


def check_scores(scores: Tensor) -> Float[Tensor, " n"]:
    """Check scores, and return them on the CPU in a dtype that numpy knows.

    Raises:
        ValueError: if they are not (N,) floating point, or hold NaN.
    """
    _check_floating("scores", scores)
    if scores.ndim != 1:
        raise ValueError(f"scores must be (N,), one number per sample, got {tuple(scores.shape)}")
    scores = scores.detach().cpu()
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    if len(scores) and bool(scores.sum().isnan()) and (bad := int(scores.isnan().sum())):  # ∞ − ∞ is valid
        raise ValueError(
            f"{bad} of {len(scores)} scores are NaN, the first at position {int(scores.isnan().int().argmax())}: score "
            "these samples, or leave them out"
        )
    return scores


def check_features(name: str, features: Tensor) -> Float[Tensor, "n d"]:
    """Check a matrix of features, and return it detached.

    Raises:
        ValueError: if it is not (N, D) floating point with at least one column.
    """
    _check_floating(name, features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} must be (N, D), one row per sample, got {tuple(features.shape)}: flatten each sample")
    return features.detach()


def check_labels(labels: Tensor | None, size: int, *, needed_by: str | None = None) -> Int[Tensor, " n"] | None:
    """Check class ids, and return them as int64 on the CPU, or None.

    Args:
        labels: class ids, or None.
        size: samples, N.
        needed_by: name of the selector that requires labels.
    Raises:
        ValueError: if there is not one whole number per sample, or required labels are missing.
    """
    if labels is None:
        if needed_by:
            raise ValueError(f"{needed_by} needs labels: pass labels=, one class id per sample")
        return None
    _check_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers (torch.int64), got {labels.dtype}")
    if labels.shape != (size,):
        raise ValueError(f"labels must be ({size},), one class id for each sample, got {tuple(labels.shape)}")
    return labels.detach().cpu().long()


def check_balance(balance: str, labels: Tensor | None) -> None:
    """Raise ValueError unless `balance` is "none", or "class" with labels."""
    if balance not in ("none", "class"):
        raise UsageError(suggest(str(balance), ["none", "class"], what="balance"))
    if balance == "class" and labels is None:
        raise ValueError('balance="class" needs labels: pass labels=, one class id per sample')


def _check_floating(name: str, value: Tensor) -> None:
    _check_tensor(name, value)
    if not value.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {value.dtype}: pass {name}.float()")


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}: pass torch.as_tensor({name})")


def _check_no_class_empty(classes: Tensor, sizes: Sequence[int], places: Sequence[int], count: int) -> None:
    empty = [f"{label} ({size} samples)" for label, size, place in zip(classes.tolist(), sizes, places) if not place]
    if empty:
        more = f" and {len(empty) - _LISTED} more" if len(empty) > _LISTED else ""
        raise ValueError(
            f"keep leaves {count} samples for {len(classes)} classes, and none for class "
            f"{', '.join(empty[:_LISTED])}{more}: keep more, or leave these classes out"
        )
