"""The order in which prompts have their turn: one shuffled epoch after another, as trainers have it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..hashing import bits

_ORDER = 1 << 34  # sets the stream of orders apart from those of policies


class Walk:
    """Goes through all prompts in random order, again and again.

    Args:
        size: prompts.
        seed: decides the orders.
    Attributes:
        epoch: passes that were begun, less one; -1 before the first.
        rest: prompts of this epoch that had no turn yet, in order.
        taken: whether a prompt is in the running step already; it has no second turn in it.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.epoch = -1
        self.rest: Int[Tensor, " r"] = torch.zeros(0, dtype=_whole(size))
        self.taken: Bool[Tensor, " n"] = torch.zeros(size, dtype=torch.bool)

    def ahead(self, most: int) -> Int[Tensor, " k"]:
        """The next prompts of this epoch, or of the next where this one is over: at least one, at most `most`.

        They keep their turn until `advance`.
        """
        while True:
            if not len(self.rest):
                self._begin()
            ids = self.rest[:most].long()
            taken = self.taken[ids].nonzero()[:, 0]
            if not len(taken):
                return ids
            if taken[0]:
                return ids[: taken[0]]
            self.advance(1)  # it is in the step: this turn is lost

    def advance(self, count: int) -> None:
        """The first `count` prompts ahead have had their turn."""
        self.rest = self.rest[count:]

    def next(self, count: int) -> Int[Tensor, " count"]:
        """The next `count` prompts, which have their turn with this, and are `taken`."""
        parts = []
        while count:
            parts.append(self.ahead(count))
            self.advance(len(parts[-1]))
            self.taken[parts[-1]] = True
            count -= len(parts[-1])
        return torch.cat(parts)

    def grow(self, size: int) -> None:
        """Let prompts [self.size, size) have their turn among the rest of this epoch."""
        new = torch.arange(self.size, size)
        self.taken = torch.cat([self.taken, torch.zeros(len(new), dtype=torch.bool)])
        if self.epoch >= 0:
            self.rest = self._shuffled(torch.cat([self.rest.long(), new]), size).to(_whole(size))
        self.size = size

    def _begin(self) -> None:
        """Shuffle all prompts; those in the running step go last, so that they need not wait for their turn in vain."""
        self.epoch += 1
        order = self._shuffled(torch.arange(self.size), 0)
        if bool(self.taken.any()):
            order = torch.cat([order[~self.taken[order]], order[self.taken[order]]])
        self.rest = order.to(_whole(self.size))

    def _shuffled(self, ids: Int[Tensor, " k"], draw: int) -> Int[Tensor, " k"]:
        return ids[bits(self.seed + _ORDER, self.epoch, ids, draw).argsort()]


def _whole(size: int) -> torch.dtype:
    """The smallest type for positions."""
    return torch.int32 if size <= torch.iinfo(torch.int32).max else torch.int64
