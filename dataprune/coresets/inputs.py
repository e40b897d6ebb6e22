"""What selectors accept: checks of scores, features and labels, raised before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor


def check_scores(scores: Tensor) -> Tensor:
    """(N,) scores on the CPU, in a type numpy knows; ValueError unless they are floating point and free of NaN."""
    _check_tensor("scores", scores)
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating point, got {scores.dtype}: pass scores.float()")
    if scores.ndim != 1:
        raise ValueError(f"scores must be (N,), one number per sample, got {tuple(scores.shape)}")
    scores = scores.detach().cpu()
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    if len(scores) and bool(scores.sum().isnan()) and (bad := int(scores.isnan().sum())):  # ∞ − ∞ is no fault
        raise ValueError(
            f"{bad} of {len(scores)} scores are NaN, the first at position {int(scores.isnan().int().argmax())}: score "
            "these samples, or leave them out"
        )
    return scores


def check_features(name: str, features: Tensor) -> Tensor:
    """(N, D) features without their graph; ValueError unless they are a floating-point matrix with a column."""
    _check_tensor(name, features)
    if not features.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {features.dtype}: pass {name}.float()")
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} must be (N, D), one row per sample, got {tuple(features.shape)}: flatten each sample")
    return features.detach()


def check_labels(labels: Tensor | None, size: int, *, needed_by: str | None = None) -> Tensor | None:
    """(N,) int64 class ids on the CPU, or None; ValueError unless there is one whole number per sample.

    Args:
        labels: class ids, or None.
        size: samples, N.
        needed_by: the selector that cannot do without.
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


def check_finite(name: str, rows: Tensor, start: int) -> None:
    """Raise ValueError if a row holds NaN or infinity, and say which row is the first.

    Args:
        name: what the rows are.
        rows: (B, D) rows.
        start: position of the first of them.
    """
    if not bool(rows.sum().isfinite()) and not bool((good := rows.isfinite().all(dim=1)).all()):
        raise ValueError(
            f"{name} hold NaN or infinity, first at position {start + int((~good).int().argmax())}: leave such samples "
            "out, or extract them anew"
        )


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(value).__name__}: pass torch.as_tensor({name})")
