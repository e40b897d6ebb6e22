"""KAKURENBO: the lowest losses are hidden, but for what is predicted wrong or without confidence."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from .. import policies
from ..criteria import Declared
from ..hashing import Key
from ..pruner import Pruner
from ..recipes import Run, compose
from ..scores import ScoreBook
from ..selection import Selection
from ._classes import class_ids, class_logits
from ._groups import GroupBook


@dataclass(frozen=True)
class loss_and_certainty(Declared):
    """Give the loss of every sample, and 1 where it is predicted right with confidence, else 0, (B, 2).

    Args:
        confidence: least probability of the prediction, in [0, 1].
    Raises:
        ValueError: if confidence is out of range; when called, unless the outputs are logits (B, C) and the targets
            class ids (B,).
    Example:
        >>> loss_and_certainty()(torch.tensor([0.1]), torch.tensor([[0.0, 2.0]]), torch.tensor([1]))
        tensor([[0.1000, 1.0000]])

    Source: Nguyen et al. 2023 (KAKURENBO), arXiv:2310.10102. Differs: the authors' code takes the softmax over the
        batch, not over the classes.
    """

    confidence: float = 0.7
    values = (2,)
    reads = "classes"
    softens = True

    def __post_init__(self) -> None:
        if isinstance(self.confidence, bool) or not isinstance(self.confidence, Real) or not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence is a probability, in [0, 1], got {self.confidence!r}")

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        logits = class_logits(outputs, len(losses))
        probability, predicted = logits.float().softmax(dim=1).max(dim=1)
        right = predicted == class_ids(targets, len(losses)).to(logits.device)
        return torch.stack([losses.float(), (right & (probability >= self.confidence)).float()], dim=1)


@dataclass(frozen=True)
class hide_lowest(policies.Policy):
    """Hide the lowest scores, but for the samples whose group is 0; unseen samples are never hidden.

    Args:
        rate: whether `learning_rate.Progress` is to multiply the learning rate by size / count.
    Source: Nguyen et al. 2023 (KAKURENBO), arXiv:2310.10102. Differs: nothing.
    """

    rate: bool = True
    exact = False
    forwards = True

    @property
    def scales_rate(self) -> bool:  # type: ignore[override]
        return self.rate

    def book(self, size: int) -> ScoreBook:
        return GroupBook(size)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        assert isinstance(book, GroupBook)
        kept = book.group.numpy() != 1
        kept[policies.highest(book.score, count, key).numpy()] = True
        return Selection.of(torch.from_numpy(np.flatnonzero(kept)))


def kakurenbo(size: int, *, confidence: float = 0.7, rate: bool = True, **run: Unpack[Run]) -> Pruner:
    """All but the lowest losses; of these, what is predicted wrong or without confidence stays too.

    After the steps of an epoch the loop forwards what is hidden, see `Pruner.left_out`.

    Args:
        keep: at least so much; the share that may be hidden is 1 - keep.
        budget: as `keep`, a lower bound.
        confidence: least probability of a right prediction that is hidden, in [0, 1].
        rate: whether `learning_rate.Progress` multiplies the learning rate by 1 / keep in a pruned epoch.
    Source: Nguyen et al. 2023 (KAKURENBO), arXiv:2310.10102. Differs: there the share that may be hidden falls when the
        learning rate does.
    """
    return compose(size, loss_and_certainty(confidence), hide_lowest(rate), **run)
