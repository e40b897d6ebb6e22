"""SeTa: a random part of a window of loss clusters, which slides from easy to hard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from jaxtyping import Float, Int

from .. import criteria, policies, schedules
from ..hashing import Key
from ..pruner import Pruner
from ..recipes import Run, compose
from ..scores import ScoreBook
from ..selection import Selection

_MOST = 1 << 20  # scores that are clustered; of twice as many every second, in their order
_CELLS = 1 << 10  # of neighbouring scores that are clustered; a matrix of pairs of them is made


@dataclass(frozen=True)
class sliding_window(policies.Policy):
    """Select at random from a window of score clusters, which moves up a cluster in every epoch, and begins again.

    Where the window holds fewer samples than are asked for, those of the nearest clusters outside it are drawn too.
    Unseen samples come first.

    Args:
        clusters: of the scores, by k-means, at least 1.
        window: share of the clusters that are in the window, in (0, 1].
        stop: epoch from which on all samples are drawn from; None for never.
    Source: Zhou et al. 2025 (SeTa), arXiv:2503.13385, as their code has it. Differs: there a random part is clustered,
        and what is in the window is selected, few or many; here all are clustered, and the part of the window that is
        drawn gives the number that is asked for. K-means there begins at random, and may end in another optimum.
    """

    clusters: int = 10
    window: float = 0.5
    stop: int | None = None

    def __post_init__(self) -> None:
        schedules.check_whole("clusters", self.clusters)
        if isinstance(self.window, bool) or not 0 < self.window <= 1:
            raise ValueError(f"window is a share of the clusters, in (0, 1], got {self.window}")
        if self._width() < 1:
            raise ValueError(f"window={self.window} of {self.clusters} clusters is none of them: raise it")

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        if self.stop is not None and key.epoch >= self.stop:
            return Selection.of(policies.random_subset(book.size, count, key))
        score = book.score.numpy()
        first = key.epoch % (self.clusters - self._width() + 1)
        last = first + self._width() - 1
        cluster = np.searchsorted(borders(score, self.clusters), score)
        outside = np.maximum(np.maximum(first - cluster, cluster - last), 0).astype(np.float32)
        return Selection.of(policies.highest(torch.from_numpy(np.where(np.isnan(score), np.nan, -outside)), count, key))

    def _width(self) -> int:
        return round(self.clusters * self.window)


def borders(score: Float[np.ndarray, " n"], clusters: int) -> Float[np.ndarray, " c-1"]:
    """Highest score of every cluster of k-means but the last, ascending; -inf where there is none. NaN is left out.

    The clusters have the least sum of squared distances there can be, by dynamic programming: of up to a thousand
    scores exactly, of more over a thousand cells of neighbours, which are as dense as the cube root of the scores.

    Source: Fisher 1958, "On grouping for maximum homogeneity"; the cells: Panter and Dite 1951. Differs: nothing.
    """
    values = np.sort(score[~np.isnan(score)])
    values = values[:: max(1, len(values) // _MOST)].astype(np.float64)
    ends = _cells(values)
    totals = np.zeros((3, len(ends)))  # number, sum, sum of squares up to the end of a cell
    totals[0] = ends
    centered = values - values.mean() if len(values) else values
    for row, power in zip(totals[1:], (centered, centered**2)):
        row[1:] = np.cumsum(power)[ends[1:] - 1]
    number, first, second = totals[:, None, :] - totals[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(number > 0, second - first**2 / number, np.where(number < 0, np.inf, 0.0))
    least, begins = cost[0], []  # of the first clusters up to a cell; where the last of these begins
    for _ in range(clusters - 1):
        sums = least[:, None] + cost
        begins.append(sums.argmin(axis=0))
        least = sums.min(axis=0)
    cuts, end = [], len(ends) - 1
    for begin in reversed(begins):
        end = int(begin[end])
        cuts.append(ends[end])
    return np.concatenate([[-np.inf], values])[cuts[::-1]]


def _cells(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """Where cells of neighbouring values end, the beginning of the first included."""
    if len(values) <= _CELLS:
        return np.arange(len(values) + 1)
    # the density between two neighbours is one over their distance
    mass = np.cumsum(np.diff(values) ** (2 / 3))
    ends = np.searchsorted(mass, np.arange(1, _CELLS) / _CELLS * mass[-1]) + 1
    return np.unique(np.concatenate([[0], ends, [len(values)]]))


def seta(
    size: int, *, clusters: int = 10, window: float = 0.5, partial_anneal: float = 0.125, **run: Unpack[Run]
) -> Pruner:
    """Random samples of half of the loss clusters, a window that slides from easy to hard, and begins again.

    Args:
        clusters: of the losses.
        window: share of the clusters that are in the window, in (0, 1].
        partial_anneal: share of epochs at the end in which as many samples are drawn from all clusters, in [0, 1].
    Source: Zhou et al. 2025 (SeTa), arXiv:2503.13385. Differs: `keep` decides how large the random part is; there it is
        given, and the clusters decide how much is kept.
    """
    if not 0 <= partial_anneal <= 1:
        raise ValueError(f"partial_anneal is a share of the epochs at the end, in [0, 1], got {partial_anneal}")
    stop = None
    if "epochs" in run:  # else an error, of `compose`
        schedules.check_whole("epochs", run["epochs"])
        stop = schedules.full_from(run["epochs"], partial_anneal)
    return compose(size, criteria.loss, sliding_window(clusters, window, stop), **run)
