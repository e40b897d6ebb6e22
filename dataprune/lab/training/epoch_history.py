"""The history of a run, epoch by epoch: its records, and distributions of scores and losses for the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ... import files
from ..data.named import choose

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the quantiles
FOLLOWED = 24  # samples whose score is recorded in every epoch


@dataclass(frozen=True)
class EpochRecord:
    """A line of history.jsonl.

    Attributes:
        epoch: 0-based.
        samples: trained in this epoch.
        steps: of the run so far.
        lr: of the last step.
        loss: mean over the samples, None where there were none.
        train_accuracy: likewise; None where a task has no accuracy.
        selected: samples that were selected.
        reached_keep: fraction kept, of a pruned epoch.
        overlap: fraction also selected in the epoch before.
        never_seen: fraction of samples never selected so far.
        val_accuracy: main metric on the validation split, if there is one.
    """

    epoch: int
    samples: int
    steps: int
    lr: float
    loss: float | None
    train_accuracy: float | None
    selected: int
    reached_keep: float
    overlap: float | None
    never_seen: float
    val_accuracy: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without `val_accuracy` where there is none."""
        values = asdict(self)
        if self.val_accuracy is None:
            del values["val_accuracy"]
        return values


def read_history(out: Path) -> list[EpochRecord]:
    """Read the history of a run's folder."""
    return [EpochRecord(**line) for line in files.read_json_lines(out / "history.jsonl")]


class Trajectories:
    """Quantiles of scores and losses in every epoch, the scores of a few samples, and how often each sample switched.

    Losses stay on their device until the epoch ends. With several ranks the losses are this rank's; all else is equal
    on all ranks.

    Args:
        size: samples in the dataset, N.
    Attributes:
        followed: positions whose scores are recorded; they depend on the size alone, so that runs can be compared.
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
        """Record the losses of a batch; on any device."""
        self._losses.append(losses.detach().float())

    def close(self, selected: Int[Tensor, " k"]) -> None:
        """End an epoch that selected these samples."""
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
        """Record the scores after the last closed epoch; a second call for one epoch changes nothing.

        Call it when all ranks' scores of that epoch are in the book: after the next `select`, or a `sync`.
        """
        if len(self._rows["scores"]) == len(self._rows["losses"]):
            return
        self._rows["scores"].append(_quantiles(score))
        self._rows["single"].append(score[self.followed].float())

    def tables(self) -> dict[str, Tensor]:
        """Tables to write: `scores` and `losses` (T, 5) quantiles, `single` (T, F) scores of the `followed` (F,)."""
        return {
            "shares": torch.tensor(SHARES, dtype=torch.float32),
            "followed": self.followed,
            **{
                name: torch.stack(rows) if rows else torch.empty(0, self._width(name))
                for name, rows in self._rows.items()
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """The whole state, with the running epoch."""
        tables = self.tables()
        return {
            **{name: tables[name] for name in self._rows},
            "switches": self.switches,
            "before": None if self._before is None else torch.from_numpy(np.packbits(self._before.numpy())),
            "pending": self._pending(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            ValueError: if it has another number of samples.
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
    """Quantiles of the values that are not NaN; NaN where all are."""
    numbers = values.double().numpy()
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        return torch.full((len(SHARES),), torch.nan, dtype=torch.float32)
    return torch.from_numpy(np.quantile(numbers, SHARES)).float()
