"""The pruner: scores in, a selection out, once an epoch."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from . import checks, distributed
from .criteria import Criterion
from .epoch import Ledger
from .errors import CheckpointError
from .policies import Policy
from .schedules import Schedule, check_fraction
from .scores import ScoreBook
from .selection import Selection, pack, unpack

SCHEMA = 1  # of state_dict


class Pruner:
    """Chooses the samples of every epoch from the scores that training gives.

    Args:
        size: samples in the dataset, N.
        criterion: scores a batch, see `criteria`.
        policy: selects from the book, see `policies`.
        schedule: fraction kept in each epoch, see `schedules`.
        epochs: epochs of the run; `select` raises beyond them.
        smoothing: weight of a new score against the remembered one, in (0, 1].
        every: epochs that a selection is kept for, counted from the first pruned epoch; a change of the number of
            samples to keep always selects anew.
        seed: feeds two independent streams, one for selections and one for the order within an epoch.
    Attributes:
        book: the `ScoreBook`, as of the last `select` or `sync`.
        selected: the epoch that `select` was last called for, None before.
        counts: samples that the schedule asks for, in every epoch.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        size: int,
        criterion: Criterion,
        policy: Policy,
        schedule: Schedule,
        *,
        epochs: int,
        smoothing: float = 1.0,
        every: int = 1,
        seed: int = 0,
    ):
        for name, value in (("size", size), ("epochs", epochs), ("every", every)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not 0 < smoothing <= 1:
            raise ValueError(f"smoothing is the weight of a new score, in (0, 1], got {smoothing}")
        self.size = int(size)
        self.criterion = criterion
        self.policy = policy
        self.schedule = schedule
        self.epochs = int(epochs)
        self.smoothing = smoothing
        self.every = int(every)
        self.seed = int(seed)
        self.book = getattr(policy, "book", ScoreBook)(self.size, variance=getattr(policy, "variance", False))
        self.loads = 0  # how often a state was loaded: samplers take up the new place
        self.counts = [self._count(epoch) for epoch in range(self.epochs)]
        self._first_pruned = next((e for e, count in enumerate(self.counts) if count < self.size), 0)
        self._ledger = self._new_ledger()
        self._selection: Selection | None = None
        self.selected: int | None = None  # the epoch that the selection is for
        self._weight: Tensor | None = None  # (size,) on the device of the losses; None while all are one
        self._overlap: float | None = None
        self._resumed: np.ndarray | None = None  # (size,) trained before the state was loaded, in this epoch
        self._own: np.ndarray | None = None  # (size,) of these, what only this rank knows of: it was not synced
        self._tail: int | None = None  # samples a rank drops at the end of this epoch, where the loader is known
        self._begun = False  # whether batches of this epoch have been handed out
        self._exhausted = False  # whether a sampler has handed out all of this epoch
        self._unplanned = 0  # samples recorded while no epoch was selected yet

    # -- planning ---------------------------------------------------------------------------------------------------

    def epoch_sizes(self) -> list[int]:
        """Planned samples of every epoch; an upper bound where the policy decides by the scores how many it keeps."""
        exact = getattr(self.policy, "exact", True)
        return [count if exact else self.size for count in self.counts]

    def planned_steps(
        self, batch_size: int, *, world_size: int = 1, accumulate: int = 1, drop_last: bool = False
    ) -> int:
        """Optimizer steps of the whole run: what a learning-rate schedule should span.

        Args:
            batch_size: samples per step and rank (per micro-batch with `accumulate`).
            world_size: ranks that share the samples; every rank takes equally many.
            accumulate: micro-batches per optimizer step; what is left at an epoch's end makes a step of its own.
            drop_last: whether a last, smaller batch is dropped.
        Returns:
            The number of steps, exact for fixed budgets, an upper bound where `epoch_sizes` is one.
        """
        return sum(
            epoch_steps(count, batch_size, world_size=world_size, accumulate=accumulate, drop_last=drop_last)
            for count in self.epoch_sizes()
        )

    def remaining(self, epoch: int) -> int:
        """Samples of an epoch still to be trained, on all ranks: as planned, and exact once it is selected."""
        if self._selection is None or epoch != self.selected:
            return self.epoch_sizes()[epoch]
        if self._resumed is None or self._own is None:
            return len(self._selection.index)
        index = self._selection.index.numpy()
        # the other ranks have trained as many as this one
        own = int(np.count_nonzero(self._own[index])) * distributed.world_size()
        return max(0, len(index) - int(np.count_nonzero(self._resumed[index])) - own)

    @property
    def epoch(self) -> int:
        """The epoch that training is in: that of the last selection, or the next where all of it has been trained.

        A resumed loop starts here: `for epoch in range(pruner.epoch, epochs)`.
        """
        if self.selected is None:
            return 0
        return self.selected + 1 if self._complete() else self.selected

    # -- selecting --------------------------------------------------------------------------------------------------

    def select(self, epoch: int) -> Selection:
        """The samples of an epoch. Collective: with several ranks, all must call it.

        The first call for an epoch takes in what was recorded; further calls return the same selection.

        Args:
            epoch: 0-based.
        Returns:
            Positions, ascending unless the policy orders them, and loss weights; alike on every rank.
        Raises:
            ValueError: if epoch is negative or not below `epochs`.
            PlanError: if what was trained is not what was planned, or the ranks disagree.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(
                f"epoch {epoch} is outside this pruner's {self.epochs} epochs (0 to {self.epochs - 1}): "
                "build it with epochs=... of the whole run"
            )
        if self._selection is not None and epoch == self.selected:
            return self._selection
        self._flush(epoch)
        trained = self._ledger.trained()
        if self._selection is not None and trained.any():
            planned = len(self._selection.index)
            checks.check_trained(
                self.selected,
                planned,
                planned - int(np.count_nonzero(trained[self._selection.index.numpy()])),
                self._ledger.foreign,
                ranks=distributed.world_size(),
                largest=self._ledger.largest,
                exhausted=self._exhausted,
            )
        elif self._selection is not None and self._begun and not getattr(self.policy, "blind", False):
            checks.check_scored(self.selected, self.book.score)
        if self._due(epoch):
            self._replace(self._choose(epoch))
        self.selected = epoch
        self._ledger.clear()
        self._resumed, self._own, self._tail, self._exhausted = None, None, None, False
        self._begun = False
        assert self._selection is not None
        return self._selection

    def sync(self) -> None:
        """Exchange what is pending, so that any rank's `state_dict` holds all. Collective: all ranks must call it."""
        self._flush(-1)

    def batches(
        self, epoch: int, batch_size: int, *, drop_last: bool = True, device: torch.device | str | None = None
    ) -> Iterator[Int[Tensor, " b"]]:
        """Index tensors of an epoch's batches, in random order, for data that is held as tensors.

        With several ranks each gets its own share; in an epoch resumed half-way, what is left of it.

        Args:
            epoch: 0-based.
            batch_size: samples per batch and rank.
            drop_last: drop a last, smaller batch: it would be an optimizer step on few samples.
            device: where the indices go, and the weights, once for the whole epoch; the CPU by default.
        Raises:
            ValueError: if an epoch is smaller than one batch, and would be dropped whole.
        """
        ranks = distributed.world_size()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        share = -(-len(self.select(epoch).index) // ranks)
        if drop_last:
            checks.check_batch_size(f"epoch {epoch}", share, batch_size)
        order = self.order(epoch, distributed.rank(), ranks)
        tail = len(order) % batch_size if drop_last else 0
        order = order[: len(order) - tail]
        self.begin(epoch, tail=tail * ranks)
        if self._weight is not None and device is not None:
            self._weight = self._weight.to(device)  # now, when the device has nothing to do, not in the first step
        return iter(order.to(device).split(batch_size) if len(order) else ())

    def order(
        self, epoch: int, rank: int, world_size: int, *, shuffle: bool = True, resume: bool = True
    ) -> Int[Tensor, " k"]:
        """One rank's positions in the order they are trained. Collective, as `select` is.

        Every rank gets equally many: up to world_size - 1 samples at the end are those of the beginning again.

        Args:
            epoch: 0-based.
            rank: whose share, in [0, world_size).
            world_size: how many ranks share the epoch.
            shuffle: in random order; else in that of the selection.
            resume: leave out what was trained before a state was loaded.
        """
        index = self.select(epoch).index
        if shuffle:
            index = index[torch.randperm(len(index), generator=self._generator("order", epoch))]
        rest = index
        if resume and self._resumed is not None:
            rest = index[torch.from_numpy(~self._resumed)[index]]
        padding = -len(rest) % world_size
        if padding:
            rest = torch.cat([rest, index.repeat(-(-padding // len(index)))[:padding]])
        share = rest[rank::world_size]
        if resume and self._own is not None:  # after the split, which must be alike on all ranks
            share = share[torch.from_numpy(~self._own)[share]]
        return share

    # -- recording --------------------------------------------------------------------------------------------------

    def loss(
        self, index: Int[Tensor, " b"], losses: Float[Tensor, " b"], outputs: Any = None, targets: Any = None
    ) -> Float[Tensor, ""]:
        """Record a batch, and return what to back-propagate: the mean of weight[index] * losses.

        Args:
            index: positions of the batch in the dataset.
            losses: one loss per sample, attached to the graph.
            outputs: what the criterion reads beside the losses: logits, usually.
            targets: as for `outputs`.
        Returns:
            A scalar.
        Raises:
            TypeError, ValueError, IndexError: as `update`.
        """
        self.update(index, losses, outputs, targets)
        if self._weight is None:
            return losses.mean()
        if self._weight.device != losses.device:
            self._weight = self._weight.to(losses.device, non_blocking=losses.is_cuda)
        at = index.to(losses.device, torch.int64, non_blocking=True)  # as uint8 it would be taken for a mask
        return (self._weight[at] * losses).mean()

    def update(
        self, index: Int[Tensor, " b"], losses: Float[Tensor, " b"], outputs: Any = None, targets: Any = None
    ) -> None:
        """Record a batch's scores. It waits for no device and no other rank.

        Args:
            index: positions of the batch in the dataset, whole numbers.
            losses: one loss per sample.
            outputs: what the criterion reads beside the losses.
            targets: as for `outputs`.
        Raises:
            TypeError: if index does not hold whole numbers or an argument is no tensor.
            ValueError: if losses are reduced, of another length than index, or not finite.
            IndexError: if an index is outside the dataset.
            PlanError: if more than an epoch is recorded, and `select` was never called, by no sampler either.
        """
        checks.check_batch(index, losses)
        if len(index) == 0:
            return
        if self._selection is None:
            self._unplanned += len(index)
            most = -(-self.size // distributed.world_size()) + max(self._ledger.largest, len(index))
            checks.check_planned(self._unplanned, most)
        with torch.no_grad():
            score = self.criterion(losses.detach(), outputs, targets)
        if score.shape != (*index.shape, *self._ledger.values):
            raise ValueError(f"the criterion gave scores of shape {tuple(score.shape)} for {len(index)} samples")
        self._ledger.record(index, score)

    # -- looking ----------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """How the selection goes, as plain numbers.

        Returns:
            `epoch`; `reached_keep`, the share of the data in the selection; `overlap`, the share of it that was in the
            selection before (None for the first); `never_seen`, samples drawn in no selection yet; `draws`, where entry
            i counts the samples drawn i times.
        """
        if self._selection is None:
            return {"epoch": None, "reached_keep": None, "overlap": None, "never_seen": self.size, "draws": [self.size]}
        draws = np.bincount(self.book.drawn.numpy()).tolist()
        reached = len(self._selection.index) / self.size
        return {
            "epoch": self.selected,
            "reached_keep": reached,
            "overlap": self._overlap,
            "never_seen": draws[0],
            "draws": draws,
        }

    # -- resuming ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors and plain values. Never collective.

        With several ranks call `sync()` on all of them first; then any rank's state holds all. Without it a state can
        only be loaded by its own rank.
        """
        if distributed.world_size() == 1:
            self._flush(-1)
        index, score = self._ledger.pending()
        state: dict[str, Any] = {
            "schema": SCHEMA,
            "size": self.size,
            "seed": self.seed,
            "plan": self._plan(),
            "epoch": self.selected,
            "overlap": self._overlap,
            "tail": self._tail,
            "exhausted": self._exhausted,
            "largest": self._ledger.largest,
            "rank": distributed.rank(),
            "world_size": distributed.world_size(),
            "owner": torch.from_numpy(self._ledger.owner.copy()),
            "pending_index": index.clone(),
            "pending_score": score.clone(),
            "selection": None,
            "weight": None,
            **self.book.state_dict(),
        }
        if self._selection is not None:
            state["selection"] = pack(self._selection.index, self.size)
            if self._weight is not None:
                state["weight"] = self._selection.weight.clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off. Never collective; every rank must load.

        Raises:
            CheckpointError: if the state is of another dataset, schema or rank, or not a pruner's.
        """
        if not isinstance(state, dict) or "schema" not in state or "score" not in state:
            raise CheckpointError("this is not the state of a pruner: pass what `state_dict()` returned")
        if state["schema"] != SCHEMA:
            raise CheckpointError(
                f"this state has schema {state['schema']}, this version reads schema {SCHEMA}: resume with the version "
                "that wrote it, or start again"
            )
        if state.get("size") != self.size:
            raise CheckpointError(f"this state is of {state.get('size')} samples, this pruner of {self.size}")
        if state.get("plan") != self._plan():
            raise CheckpointError(
                "this state is of a pruner with other arguments (method, keep, epochs, warmup, anneal, smoothing ...): "
                "build this one as that one was"
            )
        state = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}
        checks.check_state(state, self.size, self.epochs, self._ledger.values)
        here = (distributed.rank(), distributed.world_size())
        if len(state["pending_index"]) and (state["rank"], state["world_size"]) != here:
            raise CheckpointError(
                f"this state was saved by rank {state['rank']} of {state['world_size']} without what the other ranks "
                "had recorded: call pruner.sync() on every rank before state_dict()"
            )
        try:
            self.book.load_state_dict(state)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        self.seed = state["seed"]
        self._ledger = self._new_ledger()
        self._ledger.restore(state["owner"], same_ranks=state["world_size"] == here[1])
        if len(state["pending_index"]):
            self._ledger.record(state["pending_index"], state["pending_score"])
        self._ledger.largest = state["largest"]
        self._selection, self._weight = None, None
        if state["selection"] is not None:
            index = unpack(state["selection"], self.size)
            weight = state["weight"]
            self._hold(Selection(index, torch.ones(len(index)) if weight is None else weight.clone()))
        self.selected = state["epoch"]
        self._overlap = state["overlap"]
        self._tail, self._exhausted, self._begun = state["tail"], state["exhausted"], False
        self._resumed = self._ledger.trained()
        self._own = np.zeros(self.size, dtype=np.bool_)
        self._own[state["pending_index"].numpy()] = True
        self._own &= ~self._resumed
        self.loads += 1

    # -- inside -----------------------------------------------------------------------------------------------------

    def begin(self, epoch: int, *, tail: int | None) -> None:
        """For samplers: an iteration over `epoch` begins.

        Args:
            epoch: that `select` was last called for.
            tail: samples, of all ranks, that the loader drops at the end of it; None where the sampler cannot know.
        """
        self._tail, self._exhausted, self._begun = tail, False, True

    def end(self, epoch: int) -> None:
        """For samplers: all samples of `epoch` have been handed out."""
        if epoch == self.selected:
            self._exhausted = True

    def _new_ledger(self) -> Ledger:
        return Ledger(self.size, getattr(self.criterion, "values", ()))

    def _count(self, epoch: int) -> int:
        keep = self.schedule(epoch)
        check_fraction(f"schedule({epoch})", keep)
        return max(1, int(keep * self.size + 0.5))

    def _due(self, epoch: int) -> bool:
        if self._selection is None or self.selected is None or self.counts[epoch] != self.counts[self.selected]:
            return True
        return self._block(epoch) != self._block(self.selected)

    def _block(self, epoch: int) -> int:
        return (epoch - self._first_pruned) // self.every

    def _choose(self, epoch: int) -> Selection:
        count = self.counts[epoch]
        if count == self.size and not getattr(self.policy, "always", False):
            return Selection.of(torch.arange(self.size))
        # drawn from where the block begins, so that it does not matter in which of its epochs it is first asked for
        start = self._first_pruned + self._block(epoch) * self.every
        selection = self.policy(self.book, count, self._generator("selection", start))
        checks.check_selection(selection, self.size, count, exact=getattr(self.policy, "exact", True))
        return selection

    def _replace(self, selection: Selection) -> None:
        if self._selection is not None:
            before = np.zeros(self.size, dtype=np.bool_)
            before[self._selection.index.numpy()] = True
            self._overlap = int(np.count_nonzero(before[selection.index.numpy()])) / len(selection.index)
        self.book.drawn[selection.index] += 1
        self._hold(selection)

    def _hold(self, selection: Selection) -> None:
        self._selection = selection
        self._weight = None
        if not bool((selection.weight == 1).all()):
            self._weight = torch.ones(self.size)
            self._weight[selection.index] = selection.weight

    def _generator(self, stream: str, epoch: int) -> Generator:
        digest = hashlib.sha256(f"{self.seed}/{stream}/{epoch}".encode()).digest()
        return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def _flush(self, epoch: int) -> None:
        """Take in what all ranks recorded; `epoch` says what for, -1 for nothing but that."""
        index, score = self._ledger.pending()
        # batches on a GPU are checked only now; the other ranks must hear of it, or they would wait for ever
        problem = checks.problem(index, score, self.size)
        alone = distributed.world_size() == 1
        parts = distributed.exchange([] if alone else [*self._header(epoch), int(problem is not None)], index, score)
        if problem is not None:
            raise problem
        if not alone:
            headers = [part.header for part in parts]
            checks.check_ranks(headers)
            self._exhausted = any(header[4] for header in headers)
            self._ledger.largest = max(header[5] for header in headers)
        planned = None if self._selection is None else self._selection.index
        self._ledger.flush(self.book, self.smoothing, parts, planned)

    def _header(self, epoch: int) -> list[int]:
        plan = f"{self._plan()} {self.seed}"
        chosen = 0 if self._selection is None else checks.checksum(self._selection.index)
        state = [epoch, zlib.crc32(plan.encode()), chosen, checks.checksum(self.book.score, self.book.drawn)]
        return [*state, int(self._exhausted), self._ledger.largest]

    def _plan(self) -> str:
        """What decides how many are selected when, and by what kind of rule, as one short text."""
        parts = [getattr(part, "__qualname__", type(part).__qualname__) for part in (self.criterion, self.policy)]
        parts.append(getattr(self.policy, "plan", ""))
        counts = hashlib.sha256(repr(self.counts).encode()).hexdigest()[:16]
        return f"{self.size} {self.epochs} {counts} {self.smoothing} {self.every} {' '.join(parts).rstrip()}"

    def _complete(self) -> bool:
        """Whether all of the current epoch has been trained, but for what the loader drops."""
        if self._selection is None:
            return False
        ranks = distributed.world_size()
        trained = self._ledger.trained()
        flushed = int(np.count_nonzero(trained[self._selection.index.numpy()]))
        trained[self._ledger.pending()[0].numpy()] = True
        pending = int(np.count_nonzero(trained[self._selection.index.numpy()])) - flushed
        missing = len(self._selection.index) - flushed - ranks * pending
        if self._tail is not None:
            return missing <= self._tail
        return missing <= 0 or (self._exhausted and missing < ranks * self._ledger.largest)


def epoch_steps(samples: int, batch_size: int, *, world_size: int, accumulate: int, drop_last: bool) -> int:
    """Optimizer steps of an epoch of so many samples; arguments as in `Pruner.planned_steps`."""
    for name, value in (("batch_size", batch_size), ("world_size", world_size), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    share = -(-samples // world_size)
    batches = share // batch_size if drop_last else -(-share // batch_size)
    return -(-batches // accumulate)
