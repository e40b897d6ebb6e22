"""What is remembered of every sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class ScoreBook:
    """Scores, their variance and how often each sample was drawn; all tensors are (size,), on the CPU.

    Args:
        size: samples in the dataset, N.
        variance: whether a moving variance is kept beside the score (4 more bytes per sample).
    Attributes:
        score: float32, NaN until a sample is first scored; the first score is stored as it is.
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
                "this book keeps no variance: a policy that reads it says so with an attribute `variance = True`"
            )
        return self._variance

    def record(self, index: Int[Tensor, " k"], new: Float[Tensor, " k"], smoothing: float = 1.0) -> None:
        """Take in new scores, in order: score <- (1 - smoothing) * score + smoothing * new.

        The variance moves first, by the score before its update: v <- (1 - smoothing) * v + smoothing * (new -
        score)^2. A repeated index counts as often as it occurs, so recording in parts equals recording at once.

        Args:
            index: positions in [0, size), int64; may repeat.
            new: scores, float32.
            smoothing: weight of the new score, in (0, 1].
        """
        for rows in rounds(index, self.size):
            at, value = index[rows], new[rows]
            old = self.score[at]
            seen = ~old.isnan()
            if self._variance is not None:
                before = self._variance[at]
                self._variance[at] = torch.where(
                    seen, (1 - smoothing) * before + smoothing * (value - old) ** 2, before
                )
            self.score[at] = torch.where(seen, (1 - smoothing) * old + smoothing * value, value)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, by name (copies)."""
        state = {"score": self.score.clone(), "drawn": self.drawn.clone()}
        if self._variance is not None:
            state["variance"] = self._variance.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: if a tensor is missing or of another size.
        """
        wanted = self.state_dict()
        for name, mine in wanted.items():
            theirs = state.get(name)
            if theirs is None or theirs.shape != mine.shape:
                found = "none" if theirs is None else f"{len(theirs)} values"
                raise ValueError(f"the saved state has {found} for `{name}`, this pruner needs {self.size}")
        self.score = state["score"].clone()
        self.drawn = state["drawn"].clone()
        if self._variance is not None:
            self._variance = state["variance"].clone()


class DriftBook(ScoreBook):
    """Also each sample's last distance, and how far it had moved when the sample last came back from an absence.

    Args:
        size: samples in the dataset, N.
        variance: must be False.
    Attributes:
        distance: float32, as last recorded; NaN before.
        drift: float32, distance on re-entry minus distance on exit; 0 until a sample has come back.
        absent: bool, left out of a selection and not recorded since; the policy sets it.
    """

    def __init__(self, size: int, *, variance: bool = False):
        super().__init__(size, variance=variance)
        self.distance = torch.full((size,), torch.nan)
        self.drift = torch.zeros(size)
        self.absent = torch.zeros(size, dtype=torch.bool)

    def record(self, index: Int[Tensor, " k"], new: Float[Tensor, "k 2"], smoothing: float = 1.0) -> None:
        """Take in rows of (score, distance), in order; of a repeated index the first ends the absence."""
        for rows in rounds(index, self.size):
            at, distance = index[rows], new[rows, 1]
            back = self.absent[at] & ~self.distance[at].isnan()
            self.drift[at] = torch.where(back, distance - self.distance[at], self.drift[at])
            self.distance[at] = distance
            self.absent[at] = False
        super().record(index, new[:, 0].contiguous(), smoothing)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, by name (copies)."""
        extra = {name: getattr(self, name).clone() for name in ("distance", "drift", "absent")}
        return super().state_dict() | extra

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; ValueError if a tensor is missing or of another size."""
        super().load_state_dict(state)  # which checks all of `state_dict`, these too
        self.distance, self.drift, self.absent = (state[name].clone() for name in ("distance", "drift", "absent"))


def rounds(index: Tensor, size: int) -> Iterator[Tensor | slice]:
    """Rows of `index` in parts without repetition: the first occurrence of every index, then the second ...

    Args:
        index: positions in [0, size), int64 on the CPU.
        size: samples in the dataset.
    """
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
    for number in range(int(occurrence.max()) + 1):
        yield order[occurrence == number]
