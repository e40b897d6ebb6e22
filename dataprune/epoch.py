"""What was trained in the running epoch: new scores that wait for the score book, and who trained which sample."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import checks, distributed
from .errors import PlanError
from .scores import ScoreBook

_NOBODY = -1
_EARLIER = -2  # some rank of a run with another number of ranks


class Ledger:
    """Pending scores stay where they were computed until `flush`; recording never waits for a device or a rank.

    A sample belongs to the first rank that trained it in an epoch: what other ranks record of it is padding and does
    not count, while repetitions on its own rank count in order. So flushing in parts equals flushing once.

    Args:
        size: samples in the dataset, N. Two bytes are kept for each.
        values: shape of one sample's score: () for a number, (V,) for a row.
    """

    def __init__(self, size: int, values: tuple[int, ...] = ()):
        self.size = size
        self.values = values
        self.owner = np.full(size, _NOBODY, dtype=np.int16)
        self.largest = 0  # samples in the largest batch of this epoch: a ragged tail is smaller
        self.foreign = 0  # records of samples that another rank had trained already
        self._index = torch.empty(0, dtype=torch.int64)
        self._score = torch.empty(0, *values)
        self._length = 0

    def record(self, index: Int[Tensor, " b"], score: Float[Tensor, "b *values"]) -> None:
        """Append a batch. On the CPU it is checked here, on other devices when it is flushed.

        Raises:
            IndexError: if an index is outside [0, size).
            ValueError: if a score is NaN or infinite.
        """
        problem = checks.problem(index if index.is_cpu else None, score if score.is_cpu else None, self.size)
        if problem is not None:
            raise problem
        begin, end = self._length, self._length + len(index)
        if end > len(self._index) or self._index.device != index.device:
            self._index = _room(self._index, index.device, begin, end)
        if end > len(self._score) or self._score.device != score.device:
            self._score = _room(self._score, score.device, begin, end)
        self._index.narrow(0, begin, len(index)).copy_(index, non_blocking=True)
        self._score.narrow(0, begin, len(index)).copy_(score, non_blocking=True)
        self._length = end
        self.largest = max(self.largest, len(index))

    def pending(self) -> tuple[Tensor, Tensor]:
        """Index and score of what was recorded since the last flush, on the CPU; from a GPU they are unchecked."""
        return self._index[: self._length].cpu(), self._score[: self._length].cpu()

    def flush(self, book: ScoreBook, smoothing: float, parts: list[distributed.Part], planned: Tensor | None) -> None:
        """Move what all ranks brought into the book.

        Args:
            book: takes the scores.
            smoothing: weight of a new score.
            parts: one per rank, from `distributed.exchange`.
            planned: positions that this epoch was to train; None where any are fine.
        Raises:
            PlanError: if a sample was trained that the plan does not name.
        """
        index = torch.cat([part.index for part in parts])
        score = torch.cat([part.score for part in parts])
        if planned is not None and len(planned) < self.size:
            allowed = np.zeros(self.size, dtype=np.bool_)
            allowed[planned.numpy()] = True
            strange = int(np.count_nonzero(~allowed[index.numpy()]))
            if strange:
                raise PlanError(
                    f"{strange} of {len(index)} trained samples were not selected for this epoch: a framework has "
                    "replaced the sampler, or `index` does not hold positions in the dataset. Keep PruneSampler as the "
                    "loader's sampler (Lightning: use_distributed_sampler=False; Ray: add_dist_sampler=False) and take "
                    "the index from the batch"
                )
        if len(parts) > 1:
            kept = torch.from_numpy(claim(parts, self.owner))
            self.foreign += int((~kept).sum())
            index, score = index[kept], score[kept]
        else:
            self.owner[index.numpy()] = 0
        if len(index):
            book.record(index, score, smoothing)
        self._length = 0

    def trained(self) -> np.ndarray:
        """(size,) bool: flushed in this epoch, by any rank."""
        return self.owner != _NOBODY

    def clear(self) -> None:
        """Begin an epoch."""
        self.owner.fill(_NOBODY)
        self.largest = 0
        self.foreign = 0

    def restore(self, owner: Int[Tensor, " n"], *, same_ranks: bool) -> None:
        """Take over who trained what, from a saved state; with other ranks than before it counts as anyone's."""
        self.owner = owner.numpy().copy()
        if not same_ranks:
            self.owner[self.owner != _NOBODY] = _EARLIER


def claim(parts: list[distributed.Part], owner: np.ndarray) -> np.ndarray:
    """Give every sample to the first rank that recorded it, and tell which records come from their owner.

    Args:
        parts: one per rank, in rank order.
        owner: (N,) int16, the rank a sample belongs to; where it is -1, nobody, this decides and writes it.
    Returns:
        Bool mask over the joined parts.
    """
    ranks = np.concatenate([np.full(len(part.index), rank, dtype=np.int16) for rank, part in enumerate(parts)])
    steps = np.concatenate([np.arange(len(part.index)) for part in parts])
    index = torch.cat([part.index for part in parts]).numpy()
    free = owner[index] == _NOBODY
    # in order of (step, rank), backwards: numpy lets the last assignment stand, which is the first record
    order = np.lexsort((ranks, steps))[::-1]
    order = order[free[order]]
    owner[index[order]] = ranks[order]
    return owner[index] == ranks


def _room(buffer: Tensor, device: torch.device, used: int, needed: int) -> Tensor:
    """A buffer on `device` with room for `needed` values, the first `used` kept."""
    larger = torch.empty(max(needed, 2 * len(buffer), 1024), *buffer.shape[1:], dtype=buffer.dtype, device=device)
    larger[:used] = buffer[:used]
    return larger
