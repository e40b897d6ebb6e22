"""OrderDP: the highest scores of a random part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack

from .. import criteria, policies
from ..errors import suggest
from ..hashing import Key
from ..pruner import Pruner
from ..recipes import Run, compose
from ..scores import ScoreBook
from ..selection import Selection

_CRITERIA = {"loss": criteria.loss, "memory": criteria.entropy}


@dataclass(frozen=True)
class random_then_top(policies.Policy):
    """Draw a random part of the data, and of it select the highest scores; unseen samples come first.

    Args:
        share: of the data that is drawn, in (0, 1]; where more is to be selected, so much is drawn.
    Source: Jin et al. 2026 (OrderDP), arXiv:2606.08574, as their code has it. Differs: they round both numbers down.
    """

    share: float = 0.8

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not 0 < self.share <= 1:
            raise ValueError(f"share is the part of the data that is drawn at random, in (0, 1], got {self.share}")

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        drawn = policies.random_subset(book.size, max(count, int(self.share * book.size + 0.5)), key)
        return Selection.of(drawn[policies.highest(book.score[drawn], count, key, drawn)])


def orderdp(
    size: int, *, share: float = 0.8, criterion: Literal["loss", "memory"] = "loss", **run: Unpack[Run]
) -> Pruner:
    """The highest losses of a random part of the data, drawn anew in every epoch.

    Args:
        share: of the data that is drawn; above `keep`, or all is random.
        criterion: "loss", the paper's, or "memory", the entropy of the prediction.
    Source: Jin et al. 2026 (OrderDP), arXiv:2606.08574. Differs: "memory" is this project's; the paper gives two rates,
        `share` and keep / share.
    """
    if criterion not in _CRITERIA:
        raise ValueError(suggest(str(criterion), _CRITERIA, what="criterion"))
    return compose(size, _CRITERIA[criterion], random_then_top(share), **run)
