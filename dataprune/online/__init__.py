"""Choose inside the batch: score a super-batch by a forward pass without gradients, and train its best rows.

    chooser = dataprune.online.memory(keep=0.25)
    for x, y in loader:  # a super-batch
        with chooser.scoring(model):
            logits = model(x)
        rows, weight = chooser.choose(F.cross_entropy(logits, y, reduction="none"), logits, y)
        loss = (weight * F.cross_entropy(model(x[rows]), y[rows], reduction="none")).mean()

Needs no earlier epoch, so it works in a single pass. A forward pass costs about a third of a training step: with `keep`
of the rows trained, a super-batch costs `keep` + 1/3 of what training all of it does, and `stats` counts both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import criteria
from ._divbs import divbs
from ._excess import excess
from ._tokens import tokens
from ._window import window
from .chooser import Chooser

__all__ = ["Chooser", "divbs", "excess", "loss", "memory", "tokens", "uniform", "window"]


def uniform(keep: float, *, seed: int = 0) -> Chooser:
    """Random rows: the baseline that shows what a choice is worth; what it scores is not needed, and counted.

    Args:
        keep: fraction of a super-batch that is trained, in (0, 1].
        seed: decides which.
    Source: none.
    """
    return Chooser(_equal, keep, seed=seed)


def loss(keep: float, *, sample: bool = False, seed: int = 0) -> Chooser:
    """The highest losses. Arguments as for `Chooser`.

    Source: selective backprop, Jiang et al. 2019, arXiv:1910.00762. Differs: the number of rows is fixed.
    """
    return Chooser(criteria.loss, keep, sample=sample, seed=seed)


def memory(
    keep: float, *, distribution: criteria.Distribution | None = None, sample: bool = False, seed: int = 0
) -> Chooser:
    """The highest entropy of the prediction, which no wrong label misleads. Arguments as for `Chooser`.

    Args:
        distribution: of the outputs, as for `criteria.entropy`.
    Source: this project's own; the memory term of Xiao et al., arXiv:2408.16031, Eq. 8, inside a batch.
    """
    criterion = criteria.entropy if distribution is None else criteria.entropy_of(distribution)
    if sample and distribution == "gaussian":
        raise ValueError("sample=True draws in proportion to the scores, and the entropy of a Gaussian can be negative")
    return Chooser(criterion, keep, sample=sample, seed=seed)


def _equal(losses: Tensor, outputs: Any, targets: Any) -> Tensor:
    return torch.ones_like(losses)
