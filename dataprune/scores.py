"""What is remembered of every sample."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .hashing import Key

_DRAW = 4  # of a position's hash; policies use those below
_ROWS = 1 << 14  # of probabilities that are taken in at a time


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

    def draw(self, index: Int[Tensor, " k"]) -> None:
        """Count the positions of a new selection."""
        self.drawn[index] += 1

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
            if saved is None or (saved.shape != current.shape and (len(saved) != self.size or current.numel())):
                count = "no values" if saved is None else f"{len(saved)} values"
                raise ValueError(f"the saved state has {count} for `{name}`, this pruner needs {self.size}")
        for name in self.state_dict():
            setattr(self, "_variance" if name == "variance" else name, state[name].clone())


class PredictionBook(ScoreBook):
    """Scores a sample by the mutual information of its label and the weights, over the snapshots that trained it.

    It is H(E p) - E H(p), in nats. A sample with one snapshot has the highest there can be, log C. Snapshots count
    equally until there are 1 / smoothing of them; from then on older ones fade.

    Attributes:
        mean_prediction: (N, C) float32, C as in the first batch.
        mean_entropy: (N,) float32, mean of the entropies.
        snapshots: (N,) int32, how many there were.
    Source: Houlsby et al. 2011, arXiv:1112.5745, Eq. 2. Differs: snapshots of one training stand for the posterior, and
        n of them count as n / (n - 1), as in the sample variance: few would have less information than many.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self.mean_prediction = torch.empty(size, 0)
        self.mean_entropy = torch.zeros(size)
        self.snapshots = torch.zeros(size, dtype=torch.int32)

    def record(self, index: Int[Tensor, " k"], new: Float[Tensor, "k c"], smoothing: float = 1.0) -> None:
        """Take in class probabilities, in order; ValueError where there were other classes before."""
        classes = new.shape[1]
        if not self.mean_prediction.numel():
            self.mean_prediction = torch.zeros(self.size, classes)
        elif self.mean_prediction.shape[1] != classes:
            raise ValueError(f"outputs have {classes} classes, those before had {self.mean_prediction.shape[1]}")
        for rows in rounds(index, self.size):
            for at, p in zip(index[rows].split(_ROWS), new[rows].split(_ROWS), strict=True):
                self.snapshots[at] += 1
                rate = (1 / self.snapshots[at]).clamp(min=smoothing)
                mean = torch.lerp(self.mean_prediction[at], p, rate[:, None])
                entropy = torch.lerp(self.mean_entropy[at], _entropy(p), rate)
                self.mean_prediction[at], self.mean_entropy[at] = mean, entropy
                known = (_entropy(mean) - entropy) / (1 - rate)
                self.score[at] = torch.where(rate < 1, known, torch.inf).clamp(max=math.log(classes))

    def state_dict(self) -> dict[str, Tensor]:
        names = ("mean_prediction", "mean_entropy", "snapshots")
        return super().state_dict() | {name: getattr(self, name).clone() for name in names}


def _entropy(p: Float[Tensor, "k c"]) -> Float[Tensor, " k"]:
    return torch.special.entr(p).sum(1)


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
