"""RePB: samples below the mean loss of their own batch are dropped, and weighed by how rarely they were selected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from .. import distributed, policies, schedules
from ..criteria import Declared
from ..hashing import Key
from ..pruner import Pruner
from ..recipes import Run, by_probability, compose
from ..scores import ScoreBook
from ..selection import Selection
from ._groups import GroupBook

_NUMBERS = 1 << 24  # that float32 holds exactly; windows are counted from 0 again after so many


@dataclass
class loss_and_window(Declared):
    """Give the loss of every sample and the number of the window of batches that it was trained in, (B, 2).

    It counts the batches of this rank; its state is saved with the pruner's.

    Args:
        window: batches in a window, at least 1.
    Source: Zhou et al. 2026 (RePB), ICLR 2026. Differs: the last window of an epoch goes on in the next.
    """

    window: int = 1
    values = (2,)
    reads = "losses"

    def __post_init__(self) -> None:
        schedules.check_whole("window", self.window)
        self._batches = 0

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        number = self._batches // self.window * distributed.world_size() + distributed.rank()
        self._batches += 1
        losses = losses.float()
        return torch.stack([losses, torch.full_like(losses, number % _NUMBERS)], dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        """Batches so far."""
        return {"batches": torch.tensor(self._batches)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; ValueError if it is missing."""
        if "batches" not in state:
            raise ValueError("the saved state has no number of batches for `loss_and_window`")
        self._batches = int(state["batches"])


@dataclass(frozen=True)
class local_window(policies.soft_prune):
    """Drop with probability r the samples below the mean of their window, and those that were not selected last.

    A sample weighs E / n, where n of the E epochs so far have selected it. Unseen samples are never dropped.

    Args:
        prune_probability: as for `soft_prune`.
        limit: as for `soft_prune`.
    Source: Zhou et al. 2026 (RePB), ICLR 2026: local window pruning, uniform resampling, cumulative temporal
        reweighting. Differs: the paper flips a coin for each sample; here the number of survivors is fixed.
    """

    limit: float = 0.99

    def book(self, size: int) -> ScoreBook:
        return GroupBook(size)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        assert isinstance(book, GroupBook)
        score, last = book.score.numpy(), book.last.numpy() & ~np.isnan(book.score.numpy())
        _, window, sizes = np.unique(book.group.numpy()[last], return_inverse=True, return_counts=True)
        # summed in float64, compared in float32, as in `soft_prune`
        means = (np.bincount(window, weights=score[last]) / sizes).astype(np.float32) if len(sizes) else sizes
        low = ~np.isnan(score)
        low[last] = score[last] < means[window]
        index, _ = self.thinned(low, count, key)
        drawn = book.drawn[index]
        return Selection(index, torch.where(drawn > 0, key.epoch / drawn, 1.0).float())


def repb(size: int, *, prune_probability: float | None = None, window: int = 1, **run: Unpack[Run]) -> Pruner:
    """Samples below the mean loss of their own batch are dropped with a probability; those rarely selected weigh more.

    Args:
        keep: solves the probability anew in each epoch, at most 0.99: where few samples are below the mean, more than
            `keep` is trained, and `stats()` says how much.
        budget: as `keep`, and with the same limit.
        prune_probability: r in [0, 1), the paper's own parameter, in place of keep and budget.
        window: batches over which the mean is taken, at least 1.
    Source: Zhou et al. 2026, "Inconsistency biases in dynamic data pruning" (RePB), ICLR 2026. Differs: a fixed number
        of survivors in place of a coin for each sample, and `keep`, are this project's.
    """
    run = by_probability(prune_probability, size, run)
    return compose(size, loss_and_window(window), local_window(prune_probability), **run)
