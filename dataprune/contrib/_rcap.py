"""RCAP: places for each class by its loss, and in a class samples drawn by theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Float

from .. import policies
from ..hashing import Key
from ..pruner import Pruner
from ..recipes import Run, compose
from ..scores import ScoreBook
from ..selection import Selection
from ._classes import Classes, loss_and_class
from ._groups import GroupBook

_RACE = 4  # draw of a position's hash


@dataclass(frozen=True)
class loss_quotas(policies.Policy):
    """Draw samples by the softmax of their losses in their class; a class has places by the share of it that was drawn.

    Args:
        beta: temperature, above 0: losses are divided by it.
        clip: highest loss that counts, at least 0; the logarithm of the number of classes by default.
    Source: Hassan et al. 2025 (RCAP), arXiv:2606.11761, as their code has it. Differs: they round the places of every
        class up; a class that was not drawn at all counts there as without loss, here as one that was drawn whole.
    """

    beta: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.beta, bool) or not isinstance(self.beta, Real) or not 0 < self.beta < math.inf:
            raise ValueError(f"beta is the temperature of a softmax, a positive number, got {self.beta!r}")
        if self.clip is not None and not 0 <= self.clip < math.inf:
            raise ValueError(f"clip is the highest loss that counts, at least 0, got {self.clip}")

    def book(self, size: int) -> ScoreBook:
        return GroupBook(size)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        assert isinstance(book, GroupBook)
        classes = Classes(book)
        clip = math.log(max(1, classes.known.sum())) if self.clip is None else self.clip
        scaled = book.score.numpy().clip(0, clip).astype(np.float64) / self.beta
        highest = np.full(len(classes.known), -np.inf)
        np.fmax.at(highest, classes.of, scaled)
        odds = np.exp(scaled - highest[classes.of])
        drawn = classes.sums(odds * book.last.numpy()) / classes.sums(odds)
        shares = np.sqrt(np.where(drawn > 0, drawn, 1.0) * classes.sums(np.ones(book.size)) / book.size)
        # the highest of log-odds with Gumbel noise are drawn one after another by their odds
        return classes.select(shares, scaled - np.log(-np.log(_uniform(book.size, key))), count, key)


def _uniform(size: int, key: Key) -> Float[np.ndarray, " n"]:
    """Random numbers in (0, 1), one for each position."""
    return ((key.hash(torch.arange(size), _RACE).numpy().view(np.uint64) >> np.uint64(11)) + 0.5) * 2.0**-53


def rcap(size: int, *, beta: float = 1.0, clip: float | None = None, **run: Unpack[Run]) -> Pruner:
    """Samples drawn by their loss, in every class as many as its loss asks for: for the classes that are worst.

    Args:
        beta: temperature, above 0; the lower it is, the more the highest losses of a class are preferred.
        clip: highest loss that counts; the logarithm of the number of classes by default.
    Source: Hassan et al. 2025 (RCAP), arXiv:2606.11761. Differs: the number of samples is exact, there about `keep`.
    """
    return compose(size, loss_and_class(), loss_quotas(beta, clip), **run)
