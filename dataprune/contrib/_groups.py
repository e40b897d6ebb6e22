"""A book of samples that belong together."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..scores import ScoreBook


class GroupBook(ScoreBook):
    """Remembers a group of every sample beside its score, such as its class; it takes in rows (score, group).

    Attributes:
        group: (N,) int32, exact below 2**24; -1 until a sample is first scored.
        last: (N,) bool, whether a sample is in the last selection.
    """

    group: Int[Tensor, " n"]
    last: Bool[Tensor, " n"]

    def __init__(self, size: int):
        super().__init__(size)
        self.group = torch.full((size,), -1, dtype=torch.int32)
        self.last = torch.zeros(size, dtype=torch.bool)

    def record(self, index: Int[Tensor, " k"], new: Float[Tensor, "k 2"], smoothing: float = 1.0) -> None:
        super().record(index, new[:, 0], smoothing)
        self.group.numpy()[index.numpy()] = new[:, 1].numpy()  # numpy lets the last of repeated positions stand

    def draw(self, index: Int[Tensor, " k"]) -> None:
        super().draw(index)
        self.last.zero_()
        self.last[index] = True

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"group": self.group.clone(), "last": self.last.clone()}
