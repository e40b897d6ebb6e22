"""Instance-dependent early stopping: samples whose loss has come to rest are dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import criteria, policies
from ..hashing import Key
from ..pruner import Pruner
from ..recipes import Run, compose
from ..scores import ScoreBook, rounds
from ..selection import Selection

_EARLIER = 5  # losses before the last: four second differences must exist, of which the last three count


class LossBook(ScoreBook):
    """Remembers the last losses of every sample; its score is the newest one.

    Attributes:
        earlier: (N, 5) float32, those before it, the latest first; NaN where there are none.
    """

    earlier: Float[Tensor, "n 5"]

    def __init__(self, size: int):
        super().__init__(size)
        self.earlier = torch.full((size, _EARLIER), torch.nan)

    def record(self, index: Int[Tensor, " k"], new: Float[Tensor, " k"], smoothing: float = 1.0) -> None:
        for rows in rounds(index, self.size):
            at, last = index[rows], self.score[index[rows]]
            self.earlier[at] = torch.cat(
                [last.where(last.isfinite(), torch.nan)[:, None], self.earlier[at, :-1]], dim=1
            )
            super().record(at, new[rows], smoothing)

    def change(self) -> Float[Tensor, " n"]:
        """Mean of the last three absolute second differences of the loss; NaN until there are four."""
        losses = torch.cat([self.score[:, None], self.earlier], dim=1)
        second = losses[:, :-2] - 2 * losses[:, 1:-1] + losses[:, 2:]
        return second[:, :3].abs().mean(dim=1).where(~second.isnan().any(dim=1), torch.nan)

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"earlier": self.earlier.clone()}


@dataclass(frozen=True)
class still_changing(policies.Policy):
    """Select the samples whose loss still changes; those with fewer than six losses come first.

    Args:
        threshold: samples whose change is not below it are selected too; None selects as many as asked for.
    Source: Yuan et al. 2025 (IES), arXiv:2502.07547, as their code has it. Differs: the number asked for, which keeps
        more than the threshold would, is this project's.
    """

    threshold: float | None = None
    forwards = True

    def __post_init__(self) -> None:
        value = self.threshold
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf):
            raise ValueError(f"threshold is the least change of a loss, at least 0, got {value!r}")

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.threshold is None

    def book(self, size: int) -> ScoreBook:
        return LossBook(size)

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        assert isinstance(book, LossBook)
        change = book.change()
        if self.threshold is not None:
            count = max(count, book.size - int((change < self.threshold).sum()))
        return Selection.of(policies.highest(change, count, key))


def ies(size: int, *, threshold: float | None = None, **run: Unpack[Run]) -> Pruner:
    """The samples whose loss still changes: the highest mean of the last three absolute second differences.

    After the steps of an epoch the loop forwards what was dropped, see `Pruner.left_out`.

    Args:
        threshold: drop only below it, 1e-3 in the paper; then `keep` is a lower bound. None drops all but `keep`.
    Source: Yuan et al. 2025 (IES), arXiv:2502.07547. Differs: `keep` is this project's.
    """
    return compose(size, criteria.loss, still_changing(threshold), **run)
