"""What a rank keeps of the rows that it owns, and how far it is with them in the running epoch."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import distributed
from .epoch import Epoch
from .scores import ScoreBook

MOST_DRAWN = (1 << 16) - 1  # a sample drawn more often counts as drawn so often


class OwnedBook(ScoreBook):
    """What a rank keeps of the rows that it owns: 7 bytes of each, and one more that says whether it was trained.

    Attributes:
        drawn: uint16; it stays at 65,535.
        selected: bool, whether the running epoch has the sample.
    """

    def __init__(self, size: int):
        self.size = size
        self.score = torch.full((size,), torch.nan, dtype=torch.float32)
        self.drawn = torch.from_numpy(np.zeros(size, dtype=np.uint16))
        self.selected = np.zeros(size, dtype=np.bool_)
        self._variance = None

    def draw(self, index: Int[Tensor, " k"]) -> None:
        drawn = self.drawn.numpy()
        drawn[index.numpy()] += drawn[index.numpy()] < MOST_DRAWN


class OwnedEpoch(Epoch):
    """The running epoch of one rank: its positions begin at `first`, and what the others train is not its business.

    Attributes:
        goal: samples that each rank records in it, padding and what a loader drops included; None until it is begun.
        done: whether it was over when a state was loaded.
    """

    kind = np.int8

    def __init__(self, first: int, size: int, values: tuple[int, ...] = (), number: int | None = None):
        super().__init__(size, values, number)
        self.first = first
        self.goal: int | None = None
        self.done = False

    def next(self, number: int) -> OwnedEpoch:
        epoch = OwnedEpoch(self.first, self.size, self.values, number)
        epoch._index, epoch._score, epoch._warned = self._index, self._score, self._warned
        return epoch

    def record(self, index: Int[Tensor, " b"], score: Float[Tensor, "b *values"]) -> None:
        if index.is_cpu:
            self.check_owned(index)
        super().record(index.long() - self.first, score)

    def check_owned(self, index: Int[Tensor, " b"]) -> None:
        """Raise IndexError unless ids on the CPU are of rows that this rank owns."""
        low, high = map(int, torch.aminmax(index)) if len(index) else (self.first, self.first)
        if low < self.first or high >= self.first + self.size:
            raise IndexError(
                f"index holds ids {low} to {high}, but rank {distributed.rank()} owns {self.first} to "
                f"{self.first + self.size - 1}: a rank trains the shards that it owns (pruner.shards), and passes the "
                "ids that came with the batch"
            )

    def complete(self, index: Tensor | None) -> bool:
        return self.done or (self.goal is not None and self.recorded >= self.goal - (self.tail or 0))

    def over(self, index: Tensor | None) -> bool:
        return self.ended or self.complete(index)
