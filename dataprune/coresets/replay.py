"""Training on a coreset: sample weights and batch size."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ..errors import check_known
from ..selection import Selection
from .budget import Array, as_tensor

_HEAVY = 20  # times the mean: larger weights give a warning


def weighted(
    selection: Selection,
    scores: Float[Tensor, " n"] | Array,
    *,
    raw: bool = False,
    variant: Literal["official", "paper"] = "official",
) -> Selection:
    """Weight a coreset by its scores: importance-aware training.

    With s the scores of the whole dataset, the loss of a batch is

        official: mean(w) · mean(losses),  w = (s − min s) / (max s − min s)    (`Selection.by_batch`)
        paper:    mean(w · losses),        w = s                                (Eq. 13)

    Args:
        scores: scores of the whole dataset; those of the selected samples must be finite, for "paper" not negative, and
            not all equal, for "paper" not all 0, or ValueError is raised.
        raw: use w as it is, not scaled to mean 1 over the coreset, which keeps the meaning of the learning rate: those
            of "official" are mostly far below 1.
        variant: "official" is what the authors' code does (with `raw`). It trains about as without weights. "paper" may
            diverge: a sample can weigh hundreds of times the mean, which the mean over a batch levels out.
    Example:
        >>> import torch
        >>> weighted(Selection.of(torch.tensor([0, 2])), torch.tensor([1.0, 5.0, 2.0]), variant="paper").weight
        tensor([0.6667, 1.3333])
        >>> weighted(Selection.of(torch.tensor([1, 2])), torch.tensor([1.0, 5.0, 2.0]))
        Selection(2 samples, weighted by batch)

    Source: Zhang et al. 2024, arXiv:2311.13613, Eq. 13, and its code. Differs: scaled to mean 1 unless `raw`.
    """
    check_known(variant, ("official", "paper"), what="variant")
    scores = as_tensor("scores", scores)
    if scores.ndim != 1 or int(selection.index.max()) >= len(scores):
        raise ValueError(
            f"scores must hold one number for each sample of the dataset, got {tuple(scores.shape)} and positions up "
            f"to {int(selection.index.max())}"
        )
    scores, official = scores.detach().cpu().double(), variant == "official"
    weight = scores[selection.index]
    if not bool((weight.isfinite() & (official | (weight >= 0))).all()):
        raise ValueError(
            'scores that weight losses must be finite for all selected samples, and with variant="paper" not negative, '
            "as those of AUM are for some"
        )
    if official:
        low, high = scores[scores.isfinite()].aminmax()
        if low == high:
            raise ValueError(f"all scores are {float(low):g}: normalised by their range they weight nothing")
        weight = (weight - low) / (high - low)
    unscaled = Selection(selection.index, weight.float(), by_batch=official)
    result = mean_one(unscaled)
    if not official and float(result.weight.max()) > _HEAVY:
        warnings.warn(
            f"one sample weighs {float(result.weight.max()):.0f} times the mean: training may diverge; lower the "
            'learning rate, take variant="official", or leave the weights out',
            stacklevel=2,
        )
    return unscaled if raw else result


def mean_one(selection: Selection) -> Selection:
    """Scale the weights to mean 1: those of CRAIG sum to N, which multiplies the learning rate by 1 / keep."""
    mean = selection.weight.double().mean()
    if not mean > 0:
        raise ValueError("all weights are 0: there is nothing to train on")
    return replace(selection, weight=(selection.weight.double() / mean).float())


def small_batch(batch_size: int, keep: float) -> int:
    """Reduce the batch size as TDDS does for small coresets: to a half at 20 % kept or less, a quarter at 10 % or less.

    Example:
        >>> small_batch(128, keep=0.2)
        64

    Source: Zhang et al. 2024, arXiv:2311.13613, section 5.1. Differs: the paper gives 80 % and 90 % pruned only; other
        fractions follow from these.
    """
    return max(1, batch_size // (4 if keep <= 0.1 + 1e-9 else 2 if keep <= 0.2 + 1e-9 else 1))
