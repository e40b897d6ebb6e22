"""Training on a coreset: sample weights and batch size."""

from __future__ import annotations

import warnings

from jaxtyping import Float
from torch import Tensor

from ..selection import Selection
from .budget import Array, as_tensor

_HEAVY = 20  # times the mean: larger weights give a warning


def weighted(selection: Selection, scores: Float[Tensor, " n"] | Array, *, raw: bool = False) -> Selection:
    """Weight each sample of a coreset by its score: importance-aware training.

    Args:
        scores: scores of the whole dataset; those of the selected samples must be finite and not negative, and not all
            0, or ValueError is raised.
        raw: use the scores as they are, not scaled to mean 1, which keeps the meaning of the learning rate.
    Example:
        >>> import torch
        >>> weighted(Selection.of(torch.tensor([0, 2])), torch.tensor([1.0, 5.0, 3.0])).weight
        tensor([0.5000, 1.5000])

    Source: Zhang et al. 2024, arXiv:2311.13613, Eq. 13. Differs: scaled to mean 1 over the coreset unless `raw`; the
        authors' code multiplies the mean loss of a batch by the mean score of the batch.
    """
    scores = as_tensor("scores", scores)
    if scores.ndim != 1 or int(selection.index.max()) >= len(scores):
        raise ValueError(
            f"scores must hold one number for each sample of the dataset, got {tuple(scores.shape)} and positions up "
            f"to {int(selection.index.max())}"
        )
    weight = scores.detach().cpu()[selection.index].float()
    if not bool((weight.isfinite() & (weight >= 0)).all()):
        raise ValueError(
            "scores that weight losses must be finite and not negative for all selected samples: those of TDDS, EL2N "
            "or forgetting are, those of AUM are not"
        )
    result = mean_one(Selection(selection.index, weight))
    if float(result.weight.max()) > _HEAVY:
        warnings.warn(
            f"one sample weighs {float(result.weight.max()):.0f} times the mean: training may diverge; lower the "
            "learning rate, or leave the weights out",
            stacklevel=2,
        )
    return Selection(selection.index, weight) if raw else result


def mean_one(selection: Selection) -> Selection:
    """Scale the weights to mean 1: those of CRAIG sum to N, which multiplies the learning rate by 1 / keep."""
    mean = selection.weight.double().mean()
    if not mean > 0:
        raise ValueError("all weights are 0: there is nothing to train on")
    return Selection(selection.index, (selection.weight.double() / mean).float())


def small_batch(batch_size: int, keep: float) -> int:
    """Reduce the batch size as TDDS does for small coresets: to a half at 20 % kept or less, a quarter at 10 % or less.

    Example:
        >>> small_batch(128, keep=0.2)
        64

    Source: Zhang et al. 2024, arXiv:2311.13613, section 5.1. Differs: the paper gives 80 % and 90 % pruned only; other
        fractions follow from these.
    """
    return max(1, batch_size // (4 if keep <= 0.1 + 1e-9 else 2 if keep <= 0.2 + 1e-9 else 1))
