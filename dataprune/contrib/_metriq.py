"""MetriQ: random samples, in every class as many as its errors ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import numpy as np

from .. import policies
from ..hashing import Key
from ..pruner import Pruner
from ..recipes import Run, compose
from ..scores import ScoreBook
from ..selection import Selection
from ._classes import Classes, right_and_class
from ._groups import GroupBook


@dataclass(frozen=True)
class error_quotas(policies.Policy):
    """Draw samples at random, the same share of every class for each error in a hundred of it.

    The error of a class is that of its samples in the last selection, (wrong + 1) / (drawn + 2) of them.

    Source: Vysogorets et al. 2025 (MetriQ, later DRoP), arXiv:2404.05579, Algorithm 1. Differs: there the error is that
        of a model trained before, on held-out samples, and the selection is made once. Here it is made anew in every
        epoch, by the errors of training, and Laplace's rule keeps a class in that makes none.
    """

    def book(self, size: int) -> ScoreBook:
        return GroupBook(size)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        assert isinstance(book, GroupBook)
        classes, last = Classes(book), book.last.numpy()
        wrong = classes.sums((1 - book.score.numpy()) * last)
        errors = (wrong + 1) / (classes.sums(last) + 2)
        return classes.select(errors * classes.sums(np.ones(book.size)), np.zeros(book.size), count, key)


def metriq(size: int, **run: Unpack[Run]) -> Pruner:
    """Random samples, in every class as many as its errors in training ask for.

    Source: Vysogorets et al. 2025 (MetriQ, later DRoP), arXiv:2404.05579. Differs: there the selection is made once, by
        the errors of a model trained before.
    """
    return compose(size, right_and_class(), error_quotas(), **run)
