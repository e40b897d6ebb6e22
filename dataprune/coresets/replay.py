"""Training on a coreset: by how much each of its samples counts, and in what batches."""

from __future__ import annotations

import warnings

from jaxtyping import Float
from torch import Tensor

from ..selection import Selection

_HEAVY = 20  # times the mean: from here on a weight is warned of


def weighted(selection: Selection, scores: Float[Tensor, " n"], *, raw: bool = False) -> Selection:
    """The same samples, each weighted by its score: importance-aware training on a coreset.

    Args:
        selection: of any selector.
        scores: of the whole dataset; those of the selected samples must be finite and not negative.
        raw: use the scores as they are. By default they are scaled to mean 1, so that the learning rate keeps its
            meaning.
    Raises:
        ValueError: if a selected sample has no such score, or all have 0.
    Example:
        >>> import torch
        >>> weighted(Selection.of(torch.tensor([0, 2])), torch.tensor([1.0, 5.0, 3.0])).weight
        tensor([0.5000, 1.5000])

    Source: Zhang et al. 2024, arXiv:2311.13613, Eq. 13. Differs: scaled to mean 1 over the coreset unless `raw`; the
        authors' code multiplies the mean loss of a batch by the mean score of the batch.
    """
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
    """The same samples with their weights scaled to mean 1; CRAIG's own sum to N, 1 / keep times the learning rate.

    Raises:
        ValueError: if all weights are 0.
    """
    mean = selection.weight.double().mean()
    if not mean > 0:
        raise ValueError("all weights are 0: there is nothing to train on")
    return Selection(selection.index, (selection.weight.double() / mean).float())


def small_batch(batch_size: int, keep: float) -> int:
    """TDDS's rule for small coresets: half the batch size where 20 % or less is kept, a quarter at 10 % or less.

    Args:
        batch_size: of training on all the data.
        keep: fraction kept.
    Example:
        >>> [small_batch(128, keep) for keep in (0.3, 0.2, 0.1)]
        [128, 64, 32]

    Source: Zhang et al. 2024, arXiv:2311.13613, section 5.1. Differs: the paper names 80 % and 90 % pruned alone; what
        lies between and beyond is read as above.
    """
    return max(1, batch_size // (4 if keep <= 0.1 + 1e-9 else 2 if keep <= 0.2 + 1e-9 else 1))
