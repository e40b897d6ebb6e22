"""What is remembered of every sample."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .hashing import Key

_DRAW = 3  # of a position's hash; policies use those below


class ScoreBook:
    """Scores, their variance and how often each sample was drawn; all tensors are (size,), on the CPU.

    Args:
        size: samples in the dataset, N.
        variance: whether a moving variance is kept beside the score (4 more bytes per sample).
    Attributes:
        score: float32, NaN until a sample is first scored; the first score is stored as it is. Infinite where a sample
            was handed out and not recorded, as where it cannot be read.
        drawn: int32, how often a sample was in a selection, counted once when the selection is made.
    Source: the moving averages of Raju et al. 2021, arXiv:2111.12621, sections 4.2 and 4.3. Differs: nothing.
    """

    score: Float[Tensor, " n"]
    drawn: Int[Tensor, " n"]

    def __init__(self, size: int, *, variance: bool = False):
        self.size = size
        self.score = torch.full((size,), torch.nan, dtype=torch.float32)
        self.drawn = torch.zeros(size, dtype=torch.int32)
        self._variance = torch.zeros(size, dtype=torch.float32) if variance else None

    @property
    def variance(self) -> Float[Tensor, " n"]:
        """float32, 0 until the second score; AttributeError where the book was made without it."""
        if self._variance is None:
            raise AttributeError(
                "this book keeps no variance: a policy that reads it returns ScoreBook(size, variance=True) from `book`"
            )
        return self._variance

    def record(self, index: Int[Tensor, " k"], new: Float[Tensor, " k"], smoothing: float = 1.0) -> None:
        """Take in new scores, in order: score <- (1 - smoothing) * score + smoothing * new.

        The variance moves first, by the score before its update: v <- (1 - smoothing) * v + smoothing * (new -
        score)^2. A repeated index counts as often as it occurs, so recording in parts equals recording at once.
        """
        for rows in rounds(index, self.size):
            at, value = index[rows], new[rows]
            old = self.score[at]
            seen = old.isfinite()
            if self._variance is not None:
                before = self._variance[at]
                self._variance[at] = torch.where(
                    seen, (1 - smoothing) * before + smoothing * (value - old) ** 2, before
                )
            self.score[at] = torch.where(seen, (1 - smoothing) * old + smoothing * value, value)

    def give_up(self, missing: Int[Tensor, " k"]) -> Int[Tensor, " u"]:
        """Mark samples as unreadable, of those that an epoch has not recorded, and return those that were so already.

        They have no score: an unseen sample comes first, and these would do so for ever.
        """
        score = self.score[missing]
        self.score[missing[score.isnan()]] = torch.inf
        return missing[score.isinf()]

    def without_unreadable(self, key: Key) -> ScoreBook:
        """This book for a policy: an unreadable sample has the score of another, drawn anew for each selection."""
        unreadable = self.score.isinf().nonzero()[:, 0]
        scored = self.score[self.score.isfinite()]
        if not len(unreadable):
            return self
        book = copy.copy(self)
        drawn = scored[key.hash(unreadable, _DRAW) % len(scored)] if len(scored) else torch.nan
        book.score = self.score.index_put((unreadable,), torch.as_tensor(drawn))
        return book

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, by name (copies)."""
        state = {"score": self.score.clone(), "drawn": self.drawn.clone()}
        if self._variance is not None:
            state["variance"] = self._variance.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; ValueError if a tensor is missing or of another size."""
        for name, current in self.state_dict().items():
            saved = state.get(name)
            if saved is None or saved.shape != current.shape:
                count = "no values" if saved is None else f"{len(saved)} values"
                raise ValueError(f"the saved state has {count} for `{name}`, this pruner needs {self.size}")
        self.score = state["score"].clone()
        self.drawn = state["drawn"].clone()
        if self._variance is not None:
            self._variance = state["variance"].clone()


def rounds(index: Tensor, size: int) -> Iterator[Tensor | slice]:
    """Rows of `index` in parts without repetition: the first occurrence of every index, then the second ..."""
    mask = np.zeros(size, dtype=np.bool_)
    mask[index.numpy()] = True
    if np.count_nonzero(mask) == len(index):
        yield slice(None)
        return
    order = torch.argsort(index, stable=True)
    grouped = index[order]
    begins = torch.ones_like(grouped, dtype=torch.bool)
    begins[1:] = grouped[1:] != grouped[:-1]
    start = begins.nonzero().squeeze(1)
    position = torch.arange(len(index))
    occurrence = position - start[begins.cumsum(0) - 1]
    yield from order[occurrence.argsort(stable=True)].split(occurrence.bincount().tolist())
