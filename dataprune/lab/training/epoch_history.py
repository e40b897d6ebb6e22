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
    """A line of history.jsonl."""

    epoch: int  # 0-based
    samples: int  # trained in this epoch
    steps: int  # of the run so far
    lr: float  # of the last step
    loss: float | None  # mean over the samples, None where there were none
    train_accuracy: float | None  # likewise; None where a task has no accuracy
    selected: int
    reached_keep: float
    overlap: float | None  # fraction also selected in the epoch before
    never_seen: float  # fraction of samples never selected so far
    val_accuracy: float | None = None  # main metric on the validation split, if there is one

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
    on all ranks. The samples followed depend on the size alone, so that runs can be compared.
    """

    def __init__(self, size: int):
        self.size = size
        self.followed = choose(size, min(FOLLOWED, size), "samples to follow")
        self.switches = torch.zeros(size, dtype=torch.int32)  # changes between selected and left out, in pruned epochs
        widths = {"scores": len(SHARES), "losses": len(SHARES), "single": len(self.followed)}
        self._rows = {name: torch.empty(0, width) for name, width in widths.items()}  # a row an epoch
        self._losses: list[Tensor] = []  # of the running epoch
        self._earlier = torch.empty(0)  # of its part before a checkpoint that the run went on from
        self._before: Tensor | None = None  # (N,) bool: what the last epoch selected, where it was a pruned one

    def record(self, losses: Float[Tensor, " b"]) -> None:
        """Record the losses of a batch; on any device."""
        self._losses.append(losses.detach().float())

    def close(self, selected: Int[Tensor, " k"]) -> None:
        """End an epoch that selected these samples."""
        self._append("losses", _quantiles(self._pending()))
        self._losses, self._earlier = [], torch.empty(0)
        before, self._before = self._before, None
        if len(selected) < self.size:
            self._before = torch.zeros(self.size, dtype=torch.bool)
            self._before[selected] = True
            if before is not None:
                self.switches += self._before != before

    def note_scores(self, score: Float[Tensor, " n"]) -> None:
        """Record the scores after the last closed epoch; a second call for one epoch changes nothing.

        Call it when all ranks' scores of that epoch are in the book: after the next `select`, or a `sync`.
        """
        if len(self._rows["scores"]) == len(self._rows["losses"]):
            return
        self._append("scores", _quantiles(score))
        self._append("single", score[self.followed].float())

    def tables(self) -> dict[str, Tensor]:
        """Tables to write: `scores` and `losses` (T, 5) quantiles, `single` (T, F) scores of the `followed` (F,)."""
        return {"shares": torch.tensor(SHARES, dtype=torch.float32), "followed": self.followed, **self._rows}

    def state_dict(self) -> dict[str, Any]:
        """The whole state, with the running epoch."""
        return {
            **self._rows,
            "switches": self.switches,
            "before": None if self._before is None else torch.from_numpy(np.packbits(self._before.numpy())),
            "pending": self._pending(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; ValueError if it has another number of samples."""
        if state["switches"].shape != (self.size,):
            raise ValueError(f"the trajectories are of {len(state['switches'])} samples, this run has {self.size}")
        self._rows = {name: state[name] for name in self._rows}
        self.switches, before = state["switches"], state["before"]
        if before is not None:
            before = torch.from_numpy(np.unpackbits(before.numpy(), count=self.size).astype(np.bool_))
        self._before = before
        self._losses, self._earlier = [], state["pending"]

    def _pending(self) -> Float[Tensor, " b"]:
        return torch.cat([self._earlier, torch.cat(self._losses).cpu()]) if self._losses else self._earlier

    def _append(self, name: str, row: Float[Tensor, " w"]) -> None:
        self._rows[name] = torch.cat([self._rows[name], row[None]])


def _quantiles(values: Tensor) -> Float[Tensor, " q"]:
    """Quantiles of the values that are not NaN; NaN where all are."""
    numbers = values[~values.isnan()].double().numpy()
    return torch.from_numpy(np.quantile(numbers if len(numbers) else [np.nan], SHARES)).float()
