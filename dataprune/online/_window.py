"""Choose by scores averaged over the last super-batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import criteria
from ..criteria import Criterion
from ..schedules import check_whole
from .chooser import Chooser, check_ids, widest


def window(keep: float, *, batches: int = 10, criterion: Criterion = criteria.loss, seed: int = 0) -> Chooser:
    """The highest scores, each the mean of what a sample had in the last super-batches: `choose(..., ids=index)`.

    Without ids, or where no sample comes twice in a window, that is the score of this super-batch alone.

    Args:
        keep: fraction of a super-batch that is trained, in (0, 1].
        batches: super-batches in a window, this one inside.
        criterion: scores the rows; by default their losses.
        seed: decides between equal scores.
    Source: after RePB, whose ranks are taken inside a window of batches in which the weights hardly change. Differs:
        what is averaged inside the window, and that the number of rows is fixed, are this project's.
    """
    return Window(criterion, keep, batches=batches, seed=seed)


class Window(Chooser):
    """A chooser by scores averaged over the last super-batches; see `window`."""

    def __init__(self, criterion: Criterion, keep: float, *, batches: int, seed: int):
        check_whole("batches", batches)
        super().__init__(criterion, keep, seed=seed)
        self.batches = batches
        self._ids: list[Tensor] = []
        self._scores: list[Tensor] = []

    def __repr__(self) -> str:
        return f"Window(batches={self.batches}, {super().__repr__()})"

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"ids": list(self._ids), "scores": list(self._scores)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._ids, self._scores = list(state["ids"]), list(state["scores"])

    def _score(self, losses: Tensor, outputs: Any, targets: Any, ids: Any) -> Tensor:
        score = super()._score(losses, outputs, targets, ids)
        if ids is None or not isinstance(score, Tensor) or score.shape != losses.shape:
            return score
        ids = check_ids(ids, len(losses), "").to(score.device)
        self._ids = [*self._ids, ids][-self.batches :]
        self._scores = [*self._scores, score.float()][-self.batches :]
        # a state that was loaded may be on another device
        known, scores = (torch.cat([part.to(ids.device) for part in parts]) for parts in (self._ids, self._scores))
        order = known.argsort()
        known, sums = known[order], F.pad(scores[order].to(widest(scores)).cumsum(0), (1, 0))
        first, behind = torch.searchsorted(known, ids), torch.searchsorted(known, ids, right=True)
        return (sums[behind] - sums[first]) / (behind - first)
