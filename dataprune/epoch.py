"""What happens in one epoch: scores that wait for the score book, who trained which sample, and how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import checks, distributed
from .errors import CheckpointError, PlanError
from .scores import ScoreBook

if TYPE_CHECKING:
    from .policies import Policy

NOBODY = -1
_EARLIER = -2  # some rank of a run with another number of ranks


class Epoch:
    """The running epoch. `Pruner.select` and `load_state_dict` replace it whole.

    Pending scores stay where they were computed until `flush`; recording never waits for a device or a rank. A sample
    belongs to the first rank that trained it: what other ranks record of it is padding and does not count, while
    repetitions on its own rank count in order. So flushing in parts equals flushing once.

    Args:
        size: samples in the dataset, N. Two bytes are kept for each.
        values: shape of one sample's score: () for a number, (V,) for a row, (-1,) for one as long as the first.
        number: 0-based; None before the first epoch is selected.
    Attributes:
        owner: (N,) int16, rank that trained each sample, negative for none.
        recorded: samples recorded by this rank, repetitions included.
        largest: samples in the largest batch; a ragged tail is smaller.
        foreign: records of samples that another rank had trained already.
        begun: whether batches have been handed out.
        exhausted: whether a sampler has handed out all of it.
        ended: whether a loop that recorded some of it came to its end; what it left out will not be trained.
        share: samples of each rank, None where no selection was made.
        tail: samples of all ranks that the loader drops at its end; None where that is not known.
    """

    kind: type[np.signedinteger] = np.int16  # of the owners

    def __init__(self, size: int, values: tuple[int, ...] = (), number: int | None = None):
        self.size = size
        self.values = values
        self.number = number
        self.share: int | None = None
        self.owner = np.full(size, NOBODY, dtype=self.kind)
        self.recorded = 0
        self.largest = 0
        self.foreign = 0
        self.begun = False
        self.exhausted = False
        self.ended = False
        self.tail: int | None = None
        self._warned = False
        self._opening: Tensor | None = None  # the first batch recorded of it
        self._again = False  # whether an iteration has begun since, and nothing was recorded in it yet
        self._bounds: tuple[int, int] | None = None  # lowest and highest position of the last batch, on the CPU
        self._first: int | None = None  # position that a resumed epoch begins with, until something is recorded
        self._resumed: np.ndarray | None = None  # (N,) bool: trained before the state was loaded
        self._unsynced: np.ndarray | None = None  # (N,) bool: of these, what only this rank knows of
        self._index = torch.empty(0, dtype=torch.int64)
        self._score = torch.empty(0, *(max(0, value) for value in values))
        self._length = 0
        self._begin = 0  # pending records when the last iteration began

    def next(self, number: int) -> Epoch:
        """A new epoch that takes over the buffers of this one, which is over."""
        epoch = Epoch(self.size, self.values, number)
        epoch._index, epoch._score = self._index, self._score
        epoch._warned = self._warned  # once a run
        return epoch

    # -- recording --------------------------------------------------------------------------------------------------

    def record(self, index: Int[Tensor, " b"], score: Float[Tensor, "b *values"]) -> None:
        """Append a batch. On the CPU it is checked here, on other devices when it is flushed.

        Raises:
            IndexError: if an index is outside [0, size).
            ValueError: if a score is NaN or infinite.
        """
        bounds = checks.check_index(index, self.size) if index.is_cpu else None
        if score.is_cpu:
            checks.check_scores(score)
        begin, end = self._length, self._length + index.numel()
        if self.values != score.shape[1:]:
            self.values = tuple(score.shape[1:])
            self._score = torch.empty(0, *self.values)
        if self._first is not None:
            self._check_first(index)
        if not self._warned:
            self._check_repeated(index, bounds)
        if end > len(self._score) or self._index.device != index.device or self._score.device != score.device:
            self._index = _room(self._index, index.device, begin, end)
            self._score = _room(self._score, score.device, begin, end)
        self._index[begin:end], self._score[begin:end] = index, score
        self._length = end
        self.recorded += end - begin
        self.largest = max(self.largest, end - begin)

    def _check_first(self, index: Tensor) -> None:
        """Warn where a resumed loop leaves out the batch that it should begin with."""
        if self._first not in index.tolist():
            checks.warn(
                f"epoch {self.number} is resumed, but the loop leaves out the first batches that it was given: the "
                "pruner's state leaves out already what was trained. Do not skip batches as well "
                "(accelerate.skip_first_batches, or a loop's own counter)"
            )
        self._first = None

    def _check_repeated(self, index: Tensor, bounds: tuple[int, int] | None) -> None:
        """Warn where a batch on the CPU is recorded twice running, or more is recorded than the epoch has."""
        if self._opening is None and index.is_cpu:
            self._opening = index.to(torch.int64, copy=True)
        elif self._opening is not None and self._again and index.is_cpu and torch.equal(index.long(), self._opening):
            self._warned = True
            checks.warn(
                f"epoch {self.number} begins again after {self.recorded} of its samples were trained, and trains them "
                "again: the loop left the epoch early, as next(iter(loader)) in every step does. Call "
                "loader.sampler.set_epoch(epoch) before each epoch to move on to the next"
            )
            return
        self._again = False
        alike, self._bounds = bounds is not None and bounds == self._bounds, bounds  # the bounds are a quick first look
        if alike and torch.equal(index.long(), self._index[max(self._begin, self._length - len(index)) : self._length]):
            self._warned = True
            checks.warn(
                f"a batch of {len(index)} samples is recorded twice running in epoch {self.number}: a second pass over "
                "a batch, as SAM and L-BFGS make one, calls pruner.loss(..., record=False)"
            )
        elif self.share is not None and self.recorded + len(index) > self.share + self.largest:  # for a filled-up batch
            self._warned = True
            checks.warn(
                f"{self.recorded + len(index)} samples are recorded for epoch {self.number}, which has {self.share} "
                "on this rank: the loop left the epoch early and began it again, records a batch more than once (two "
                "views of a sample are one: record the mean of their losses), or repeats stored batches as "
                "itertools.cycle does, so that the loader never begins the next epoch; or a framework has replaced the "
                "sampler"
            )

    def waiting(self) -> tuple[Tensor, Tensor]:
        """Index and score of what was recorded since the last flush, where they were computed."""
        return self._index[: self._length], self._score[: self._length]

    def pending(self) -> tuple[Tensor, Tensor]:
        """Index and score of what was recorded since the last flush, on the CPU; from a GPU they are unchecked."""
        index, score = self.waiting()
        return index.cpu(), score.cpu()

    def flush(self, book: ScoreBook, smoothing: float, parts: list[distributed.Part], planned: Tensor | None) -> None:
        """Move what all ranks recorded into the book.

        Args:
            book: takes the scores.
            smoothing: weight of a new score.
            parts: one per rank, from `distributed.exchange`.
            planned: positions that this epoch was to train; None where any are fine.
        Raises:
            PlanError: if a sample was trained that the plan does not name.
        """
        index = torch.cat([part.index for part in parts])
        score = torch.cat([part.score for part in parts])
        if planned is not None and len(planned) < self.size:
            allowed = np.zeros(self.size, dtype=np.bool_)
            allowed[planned.numpy()] = True
            strange = int(np.count_nonzero(~allowed[index.numpy()]))
            if strange:
                raise PlanError(
                    f"{strange} of {len(index)} samples recorded in epoch {self.number} were not selected for it: the "
                    "loop begins the next epoch before it has recorded the last batch of this one, `index` does not "
                    "hold positions in the dataset (take it from the batch), or a framework has replaced the sampler. "
                    "Keep PruneSampler as the loader's sampler (Lightning: use_distributed_sampler=False; Ray: "
                    "add_dist_sampler=False)"
                )
        if len(parts) > 1:
            kept = torch.from_numpy(claim(parts, self.owner))
            self.foreign += int((~kept).sum())
            index, score = index[kept], score[kept]
        else:
            self.owner[index.numpy()] = 0
        if len(index):
            book.record(index, score, smoothing)
        self._length = self._begin = 0

    # -- progress ---------------------------------------------------------------------------------------------------

    def begin(self, *, tail: int | None, first: int | None = None) -> None:
        """An iteration over the epoch begins; `tail` as in the attributes, `first` the position it begins with."""
        self._first = first
        self.tail, self.exhausted, self.ended, self.begun = tail, False, False, True
        self._begin = self._length
        self._again = self.recorded > 0

    def started(self) -> bool:
        """Whether any sample of it was trained and flushed."""
        return bool((self.owner != NOBODY).any())

    def trained(self, index: Int[Tensor, " k"]) -> np.ndarray:
        """(K,) bool: flushed in this epoch, by any rank."""
        return self.owner[index.numpy()] != NOBODY

    def complete(self, index: Int[Tensor, " k"] | None) -> bool:
        """Whether all of these samples have been recorded, but for those that the loader drops; None for all."""
        missing = self._missing(torch.arange(self.size) if index is None else index)
        if self.tail is not None:
            return missing <= self.tail
        return missing <= 0 or (self.exhausted and self._ragged(missing))

    @property
    def was_loaded(self) -> bool:
        """Whether a state was loaded in the middle of it."""
        return self._resumed is not None

    def over(self, index: Int[Tensor, " k"] | None) -> bool:
        """Whether a new iteration belongs to the next epoch, which records these samples; None for all.

        Where it is not known how many samples a loader drops, one that begins again has dropped the ragged rest.
        """
        if self.ended:
            return True
        missing = self._missing(torch.arange(self.size) if index is None else index)
        return missing <= (self.tail or 0) or (self.tail is None and self.begun and self._ragged(missing))

    def leaves_out(self, missing: int) -> bool:
        """Whether a loop that came to its end has recorded fewer samples than it was given, the dropped tail aside."""
        return self.exhausted and (missing > self.tail if self.tail is not None else not self._ragged(missing))

    def _missing(self, index: Tensor) -> int:
        """Of the selected samples, how many are not trained yet."""
        ranks = distributed.world_size()
        if self._resumed is None and self.recorded * ranks < len(index) - (self.tail or 0) - ranks * self.largest:
            return len(index) - self.recorded * ranks  # at least
        trained = self.owner != NOBODY
        flushed = int(np.count_nonzero(trained[index.numpy()]))
        trained[self.pending()[0].numpy()] = True
        pending = int(np.count_nonzero(trained[index.numpy()])) - flushed
        return len(index) - flushed - ranks * pending  # the other ranks have trained as many as this one

    def _ragged(self, missing: int) -> bool:
        return missing < distributed.world_size() * self.largest

    def remaining(self, index: Int[Tensor, " k"]) -> int:
        """Of the selected samples, how many were left to be trained when the epoch began or was resumed."""
        if self._resumed is None or self._unsynced is None:
            return len(index)
        at = index.numpy()
        unsynced = int(np.count_nonzero(self._unsynced[at])) * distributed.world_size()
        return max(0, len(at) - int(np.count_nonzero(self._resumed[at])) - unsynced)

    def left(self, index: Int[Tensor, " k"]) -> Int[Tensor, " r"]:
        """Without what all ranks know to have been trained before a state was loaded."""
        return index if self._resumed is None else index[torch.from_numpy(~self._resumed)[index]]

    def left_here(self, share: Int[Tensor, " k"]) -> Int[Tensor, " r"]:
        """A rank's share without what it alone knows to have been trained before a state was loaded."""
        return share if self._unsynced is None else share[torch.from_numpy(~self._unsynced)[share]]

    def share_of(
        self, index: Int[Tensor, " k"], rank: int, world_size: int, *, resume: bool = True
    ) -> Int[Tensor, " s"]:
        """A rank's share of the positions; with `resume` of those that were not recorded before a state was loaded.

        Every rank gets equally many: up to world_size - 1 positions at the end are those of the beginning again.
        """
        rest = self.left(index) if resume else index
        padding = -len(rest) % world_size
        if padding:
            rest = torch.cat([rest, index.repeat(-(-padding // len(index)))[:padding]])
        share = rest[rank::world_size]
        return self.left_here(share) if resume else share  # after the split, which is alike on all ranks

    def close(self, index: Int[Tensor, " k"], book: ScoreBook, policy: Policy) -> Int[Tensor, " u"]:
        """Check what was recorded of the selected positions, and of the others for a policy that reads them too.

        Returns:
            Positions that this epoch and one before handed out and that were not recorded: they seem to be unreadable.
        Raises:
            PlanError: if much less was recorded than was handed out.
        """
        missing = index[torch.from_numpy(~self.trained(index))]
        known = book.score[missing].isinf()  # to be unreadable
        checks.check_trained(self, len(index), missing[~known])
        if policy.forwards and self.complete(index):
            others = complement(index, self.size)
            checks.check_forwarded(self.number, len(others), int(np.count_nonzero(~self.trained(others))))
        leaves_out = policy.reads_scores and self.leaves_out(len(missing))
        return book.give_up(missing) if leaves_out else missing[:0]

    # -- resuming ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values (copies)."""
        index, score = self.pending()
        return {
            "epoch": self.number,
            "tail": self.tail,
            "exhausted": self.exhausted,
            "largest": self.largest,
            "rank": distributed.rank(),
            "world_size": distributed.world_size(),
            "owner": torch.from_numpy(self.owner.copy()),
            "pending_index": index.clone(),
            "pending_score": score.clone(),
        }

    @classmethod
    def resumed(cls, state: dict[str, Any], size: int, values: tuple[int, ...]) -> Epoch:
        """Restore what `state_dict` gave, checked by `checks.check_state`.

        Raises:
            CheckpointError: if it is of another rank, and holds what the other ranks do not know.
        """
        here = (distributed.rank(), distributed.world_size())
        if len(state["pending_index"]) and (state["rank"], state["world_size"]) != here:
            raise CheckpointError(
                f"this state was saved by rank {state['rank']} of {state['world_size']} without what the other ranks "
                "had recorded: call pruner.sync() on every rank before state_dict()"
            )
        epoch = cls(size, values, state["epoch"])
        epoch.owner = state["owner"].numpy().copy()
        if state["world_size"] != here[1]:
            epoch.owner[epoch.owner != NOBODY] = _EARLIER
        if len(state["pending_index"]):
            epoch.record(state["pending_index"], state["pending_score"])
        epoch.largest = state["largest"]
        epoch.tail, epoch.exhausted = state["tail"], state["exhausted"]
        resumed = epoch.owner != NOBODY
        unsynced = np.zeros(size, dtype=np.bool_)
        unsynced[state["pending_index"].numpy()] = True
        epoch._resumed, epoch._unsynced = resumed, unsynced & ~resumed
        return epoch


def complement(index: Int[Tensor, " k"], size: int) -> Int[Tensor, " r"]:
    """The positions below `size` that are not in `index`, ascending."""
    others = np.ones(size, dtype=np.bool_)
    others[index.numpy()] = False
    return torch.from_numpy(np.flatnonzero(others))


def claim(parts: list[distributed.Part], owner: np.ndarray) -> np.ndarray:
    """Give every sample to the first rank that recorded it, and tell which records come from their owner.

    Args:
        parts: one per rank, in rank order.
        owner: (N,) int16, the rank a sample belongs to; where it is -1, nobody, this decides and writes it.
    Returns:
        Bool mask over the joined parts.
    """
    ranks = np.concatenate([np.full(len(part.index), rank, dtype=np.int16) for rank, part in enumerate(parts)])
    steps = np.concatenate([np.arange(len(part.index)) for part in parts])
    index = torch.cat([part.index for part in parts]).numpy()
    free = owner[index] == NOBODY
    # in order of (step, rank), backwards: numpy lets the last assignment stand, which is the first record
    order = np.lexsort((ranks, steps))[::-1]
    order = order[free[order]]
    owner[index[order]] = ranks[order]
    return owner[index] == ranks


def _room(buffer: Tensor, device: torch.device, used: int, needed: int) -> Tensor:
    """A buffer on `device` with room for `needed` values, the first `used` kept."""
    larger = torch.empty(max(needed, 2 * len(buffer), 1024), *buffer.shape[1:], dtype=buffer.dtype, device=device)
    larger[:used] = buffer[:used]
    return larger
