"""What a run notes of its scores, losses and selections, epoch by epoch, for the report to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.named import choose

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the samples that lie below a quantile
FOLLOWED = 24  # samples whose score is kept of every epoch


class Trajectories:
    """A few numbers of every epoch, and of every sample how often it came and went.

    Nothing waits for a device while an epoch runs: losses stay where they were computed until it ends. With several
    ranks the losses are this rank's, and all else is alike on all of them.

    Args:
        size: samples in the dataset, N.
    Attributes:
        followed: positions whose scores are kept; they depend on the size alone, so that runs can be compared.
        switches: (N,) how often a sample changed between selected and left out, from one pruned epoch to the next.
    """

    def __init__(self, size: int):
        self.size = size
        self.followed = choose(size, min(FOLLOWED, size), "samples to follow")
        self.switches = torch.zeros(size, dtype=torch.int32)
        self._rows: dict[str, list[Tensor]] = {"scores": [], "losses": [], "single": []}
        self._losses: list[Tensor] = []  # of the running epoch
        self._earlier = torch.empty(0)  # of its part before a checkpoint that the run went on from
        self._before: Tensor | None = None  # (N,) bool: what the last epoch selected, where it was a pruned one

    def record(self, losses: Float[Tensor, " b"]) -> None:
        """Losses of a batch; on any device."""
        self._losses.append(losses.detach().float())

    def close(self, selected: Int[Tensor, " k"]) -> None:
        """End an epoch that trained these samples."""
        self._rows["losses"].append(_quantiles(self._pending()))
        self._losses, self._earlier = [], torch.empty(0)
        now = None
        if len(selected) < self.size:
            now = torch.zeros(self.size, dtype=torch.bool)
            now[selected] = True
            if self._before is not None:
                self.switches += now != self._before
        self._before = now

    def note_scores(self, score: Float[Tensor, " n"]) -> None:
        """Scores as they are after the last closed epoch; a second call for one epoch changes nothing.

        To be called when all ranks' scores of that epoch are in the book: after the next `select`, or a `sync`.
        """
        if len(self._rows["scores"]) == len(self._rows["losses"]):
            return
        self._rows["scores"].append(_quantiles(score))
        self._rows["single"].append(score[self.followed].float())

    def tables(self) -> dict[str, Tensor]:
        """What is written: `scores` and `losses` (T, 5) quantiles, `single` (T, F) scores of the `followed` (F,)."""
        return {
            "shares": torch.tensor(SHARES, dtype=torch.float32),
            "followed": self.followed,
            **{
                name: torch.stack(rows) if rows else torch.empty(0, self._width(name))
                for name, rows in self._rows.items()
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """All of it, the running epoch too."""
        tables = self.tables()
        return {
            **{name: tables[name] for name in self._rows},
            "switches": self.switches,
            "before": None if self._before is None else torch.from_numpy(np.packbits(self._before.numpy())),
            "pending": self._pending(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: if it is of another number of samples.
        """
        if state["switches"].shape != (self.size,):
            raise ValueError(f"the trajectories are of {len(state['switches'])} samples, this run has {self.size}")
        self._rows = {name: list(state[name]) for name in self._rows}
        self.switches, before = state["switches"], state["before"]
        if before is not None:
            before = torch.from_numpy(np.unpackbits(before.numpy(), count=self.size).astype(np.bool_))
        self._before = before
        self._losses, self._earlier = [], state["pending"]

    def _pending(self) -> Float[Tensor, " b"]:
        return torch.cat([self._earlier, torch.cat(self._losses).cpu()]) if self._losses else self._earlier

    def _width(self, name: str) -> int:
        return len(self.followed) if name == "single" else len(SHARES)


def _quantiles(values: Tensor) -> Float[Tensor, " q"]:
    """Of those that are numbers; NaN where none is."""
    numbers = values.double().numpy()
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        return torch.full((len(SHARES),), torch.nan, dtype=torch.float32)
    return torch.from_numpy(np.quantile(numbers, SHARES)).float()
