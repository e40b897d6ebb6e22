"""The pruner: scores in, a selection out, once an epoch."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import checks, criteria, distributed
from .content import fingerprint
from .criteria import Criterion, Reads
from .epoch import Epoch, complement
from .errors import CheckpointError
from .hashing import Key
from .plan import Plan, brief, check_plan, plan_of
from .policies import Policy, declared
from .schedules import Schedule, check_fraction, check_whole, epoch_steps
from .scores import ScoreBook
from .selection import Selection, pack, unpack

SCHEMA = 2  # of state_dict; 1 drew equal samples in another order
_OWN = "criterion."  # before the names of a criterion's own state
_ORDER = 1 << 32  # set apart the stream of orders from that of selections


class Pruner:
    """Chooses the samples of every epoch from the scores that training gives.

    Args:
        size: samples in the dataset, N.
        criterion: scores a batch, see `criteria`.
        policy: selects from the book, see `policies`; a plain function (book, count, key) as well.
        schedule: fraction kept in each epoch, see `schedules`.
        epochs: epochs of the run; `select` raises beyond them.
        smoothing: weight of a new score against the remembered one, in (0, 1].
        every: epochs that a selection is kept for, counted from the first pruned epoch; a change of the number of
            samples to keep always selects anew.
        seed: feeds two independent streams, one for selections and one for the order within an epoch.
    Attributes:
        book: the `ScoreBook`, as of the last `select` or `sync`.
        counts: samples that the schedule asks for, in every epoch.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        size: int,
        criterion: Criterion,
        policy: Policy | Callable[[ScoreBook, int, Key], Selection],
        schedule: Schedule,
        *,
        epochs: int,
        smoothing: float = 1.0,
        every: int = 1,
        seed: int = 0,
    ):
        for name, value in (("size", size), ("epochs", epochs), ("every", every)):
            check_whole(name, value)
        if not 0 < smoothing <= 1:
            raise ValueError(f"smoothing is the weight of a new score, in (0, 1], got {smoothing}")
        self.size = int(size)
        self.criterion = criterion
        self.policy = declared(policy)
        self.schedule = schedule
        self.epochs = int(epochs)
        self.smoothing = smoothing
        self.every = int(every)
        self.seed = int(seed)
        self.book, self._epoch = self._empty()
        self.loads = 0  # how often a state was loaded: samplers take up the new place
        self.counts = [self._count(epoch) for epoch in range(self.epochs)]
        self._first_pruned = next((e for e, count in enumerate(self.counts) if count < self.size), 0)
        self._carries_losses = criteria.carries_losses(criterion)
        self._logits = checks.Logits(expected=criteria.reads_logits(criterion))
        self._selection: Selection | None = None
        self._weight: Tensor | None = None  # (size,) on the device of the losses; None while all are one
        self._unweighed: int | None = 0  # weighted batches that were recorded; None once they were weighted
        self._overlap: float | None = None
        self._recorded = False  # whether anything was ever recorded
        self._unreadable = False  # whether samples that cannot be read were warned of
        self._unrecorded = 0  # loops over all batches of the first epoch in which nothing was
        self._data: str | None = None  # fingerprint of the dataset, where a loader has bound it
        self._saved_data: str | None = None  # that of the loaded state
        self._closed = False  # whether the loader yields the last epoch again, after the run

    def __repr__(self) -> str:
        return (
            f"Pruner({self.size}, {brief(self.criterion)}, {brief(self.policy)}, {brief(self.schedule)}, "
            f"epochs={self.epochs}, smoothing={self.smoothing}, every={self.every}, seed={self.seed})"
        )

    @property
    def reads(self) -> Reads:
        """What it needs of a training step: "losses", "probabilities", "classes" or "features" too, or "nothing"."""
        return criteria.reads(self.criterion) if self.policy.reads_scores else "nothing"

    @property
    def selected(self) -> int | None:
        """The epoch that `select` was last called for, None before."""
        return self._epoch.number

    # -- planning ---------------------------------------------------------------------------------------------------

    def epoch_sizes(self) -> list[int]:
        """Planned samples of every epoch; an upper bound where the policy decides by the scores how many it keeps."""
        return [count if self.policy.exact else self.size for count in self.counts]

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
        return self._epoch.remaining(self._selection.index)

    @property
    def epoch(self) -> int:
        """The epoch that training is in: that of the last selection, or the next where all of it has been trained.

        A resumed loop starts here: `for epoch in range(pruner.epoch, epochs)`.
        """
        if self.selected is None or self._selection is None:
            return 0
        return self.selected + self._epoch.complete(self._planned())

    @property
    def next_epoch(self) -> int:
        """The epoch that a new iteration over a loader belongs to: the running one until its samples are recorded.

        It is at most `epochs`, which says that the run is over.
        """
        if self.selected is None or self._selection is None:
            return 0
        # a loop that was interrupted while it forwarded goes on with that
        return self.selected + self._epoch.over(self._planned() if self._epoch.was_loaded else self._selection.index)

    def bind(self, dataset: Any) -> None:
        """Keep the dataset's fingerprint in the state, and refuse the scores of another. Loaders and trainers call it.

        Args:
            dataset: map-style dataset, that positions refer to.
        Raises:
            CheckpointError: if a state was loaded, or samples were recorded, whose positions refer to another.
        """
        data = fingerprint(dataset)
        checks.check_data(self._data if self.begun else None, data)
        checks.check_data(self._saved_data, data)
        self._data = data

    @property
    def begun(self) -> bool:
        """Whether any sample was recorded, or a later epoch than the first selected."""
        return self._recorded or bool(self.selected)

    @property
    def recorded(self) -> int:
        """Samples of the running epoch that this process has recorded, repetitions included."""
        return self._epoch.recorded

    # -- selecting --------------------------------------------------------------------------------------------------

    def select(self, epoch: int) -> Selection:
        """The samples of an epoch. Collective: with several ranks, all must call it.

        The first call for an epoch takes in what was recorded; further calls return the same selection.

        Args:
            epoch: 0-based.
        Returns:
            Positions, ascending unless the policy orders them, and loss weights; alike on every rank.
        Raises:
            ValueError: if epoch is no whole number, negative or not below `epochs`.
            PlanError: if what was trained is not what was planned, or the ranks disagree.
        """
        checks.check_epoch(epoch, self.epochs)
        if self._selection is not None and epoch == self.selected:
            return self._selection
        self._flush(epoch)
        self._check_trained(epoch)
        if self._due(epoch):
            self._replace(self._choose(epoch))
        assert self._selection is not None
        self._epoch = self._epoch.next(epoch)
        self._epoch.share = self._share()
        self._closed = False
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
        share = -(-len(self.select(epoch)) // ranks)
        if drop_last:
            checks.check_batch_size(f"epoch {epoch}", share, batch_size)
        order = self.order(epoch, distributed.rank(), ranks)
        tail = len(order) % batch_size if drop_last else 0
        order = order[: len(order) - tail]
        self._epoch.begin(tail=tail * ranks)
        if self._weight is not None and device is not None:
            self._weight = self._weight.to(device)  # now, when the device has nothing to do, not in the first step
        return iter(order.to(device).split(batch_size) if len(order) else ())

    def order(
        self,
        epoch: int,
        rank: int,
        world_size: int,
        *,
        shuffle: bool = True,
        resume: bool = True,
        arrange: Callable[[Tensor], Tensor] | None = None,
    ) -> Int[Tensor, " k"]:
        """One rank's positions in the order they are trained. Collective, as `select` is.

        Every rank gets equally many: up to world_size - 1 samples at the end are those of the beginning again.

        Args:
            epoch: 0-based.
            rank: whose share, in [0, world_size).
            world_size: how many ranks share the epoch.
            shuffle: in random order; else in that of the selection.
            resume: leave out what was trained before a state was loaded.
            arrange: puts the positions of the whole epoch, of all ranks, into another order.
        """
        index = self.select(epoch).index
        if shuffle:
            index = index[torch.randperm(len(index), generator=Key(self.seed + _ORDER, epoch).generator())]
        index = index if arrange is None else arrange(index)
        return self._epoch.share_of(index, rank, world_size, resume=resume)

    def left_out(
        self, epoch: int, batch_size: int, *, device: torch.device | str | None = None
    ) -> Iterator[Int[Tensor, " b"]]:
        """Index tensors of what an epoch leaves out, for a method that needs scores of all samples in every epoch.

        The loop forwards them without gradients after the epoch's steps, and calls `update`. None for other methods,
        nor in the last epoch. Collective, as `select` is; ranks share the samples, and get equally many.

        Args:
            epoch: 0-based.
            batch_size: samples per batch and rank; the last batch is smaller.
            device: where the indices go; the CPU by default.
        """
        index = self.select(epoch).index
        if self._planned() is not None or len(index) == self.size:
            return iter(())
        others = complement(index, self.size)
        share = self._epoch.share_of(others, distributed.rank(), distributed.world_size())
        return iter(share.to(device).split(batch_size) if len(share) else ())

    # -- recording --------------------------------------------------------------------------------------------------

    def loss(
        self,
        index: Int[Tensor, " b"],
        losses: Float[Tensor, " b"],
        outputs: Any = None,
        targets: Any = None,
        *,
        record: bool = True,
    ) -> Float[Tensor, ""]:
        """Record a batch, and return what to back-propagate: the mean of weight[index] * losses.

        Args:
            index: positions of the batch in the dataset.
            losses: one loss per sample, attached to the graph.
            outputs: what the criterion reads beside the losses: logits, usually.
            targets: as for `outputs`.
            record: False in a second pass over a batch that was recorded, as SAM and L-BFGS make one.
        Returns:
            A scalar.
        Raises:
            TypeError, ValueError, IndexError: as `update`.
        """
        self._unweighed = None
        if record:
            self.update(index, losses, outputs, targets)
        else:
            checks.check_batch(index, losses)
        if self._weight is None:
            return losses.mean()
        return (self.weight(index, losses.device) * losses).mean()

    def weight(self, index: Int[Tensor, " b"], device: torch.device | str | None = None) -> Float[Tensor, " b"]:
        """Loss multipliers of a batch, by the running epoch's selection.

        Args:
            index: positions of the batch in the dataset.
            device: where the multipliers are needed; that of `index` by default.
        Returns:
            Ones, unless the method re-weights; 1 also for samples outside the selection. Of a selection `by_batch`
            their mean, for every sample: over this rank's batch, and where gradients are accumulated the micro-batch.
        """
        self._unweighed = None
        device = index.device if device is None else torch.device(device)
        if self._weight is None:
            return torch.ones(len(index), device=device)
        if self._weight.device != device:
            self._weight = self._weight.to(device, non_blocking=device.type == "cuda")
        index = index.to(device, torch.int64, non_blocking=device.type == "cuda")  # uint8 would be a mask
        weight = self._weight[index]
        assert self._selection is not None
        return weight.mean().repeat(len(weight)) if self._selection.by_batch else weight

    @property
    def weighted(self) -> bool:
        """Whether the running epoch's selection weights its samples differently from 1."""
        return self._weight is not None

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
            ValueError: if losses are reduced, of another length than index, or not finite, or outputs no logits.
            IndexError: if an index is outside the dataset.
            PlanError: if more than an epoch is recorded, and `select` was never called, by no sampler either; if all
                epochs of the run have been trained.
        """
        checks.check_batch(index, losses)
        if not index.numel():
            return
        if self._selection is None:
            most = -(-self.size // distributed.world_size()) + max(self._epoch.largest, len(index))
            checks.check_planned(self._epoch.recorded + len(index), most)
        checks.check_open(self._closed, self.epochs)
        self._logits.look(outputs)
        detached, values = losses.detach(), self._epoch.values
        with torch.no_grad():
            score = self.criterion(detached, outputs, targets)
            if not checks.fits(score.shape, (*index.shape, *values)):
                raise ValueError(f"the criterion gave scores of shape {tuple(score.shape)} for {len(index)} samples")
            if not self._carries_losses:  # so that a loss that is not finite is refused, wherever it was computed
                score = torch.add(score, detached.reshape(-1, *(1 for _ in values)) if values else detached, alpha=0)
            self._epoch.record(index, score)
        self._recorded = True
        if self._weight is not None and self._unweighed is not None and losses.requires_grad:  # it is trained
            self._unweighed += 1
            if self._unweighed == 2:  # the first may be weighted after it was recorded
                checks.warn_unweighed()

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
        shares = {"reached_keep": len(self._selection) / self.size, "overlap": self._overlap}
        return {"epoch": self.selected, **shares, "never_seen": draws[0], "draws": draws}

    # -- resuming ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors and plain values. Never collective.

        With several ranks call `sync()` on all of them first; then any rank's state holds all. Without it a state can
        only be loaded by its own rank.
        """
        if distributed.world_size() == 1:
            self._flush(-1)
        return {
            "schema": SCHEMA,
            "size": self.size,
            "seed": self.seed,
            "plan": json.dumps(self._plan),
            "data": self._saved_data if self._data is None else self._data,
            "overlap": self._overlap,
            "selection": None if self._selection is None else pack(self._selection.index, self.size),
            "weight": None if self._selection is None or self._weight is None else self._selection.weight.clone(),
            **({"by_batch": True} if self._selection is not None and self._selection.by_batch else {}),
            **self._epoch.state_dict(),
            **self.book.state_dict(),
            **{_OWN + name: value for name, value in criteria.state_of(self.criterion).items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off. Never collective; every rank must load.

        Raises:
            CheckpointError: if the state is of another dataset, schema or rank, of a pruner with other arguments (each
                is named, with both values), or not a pruner's.
        """
        checks.check_schema(state, "pruner", SCHEMA, "score")
        if state.get("size") != self.size:
            raise CheckpointError(f"this state is of {state.get('size')} samples, this pruner of {self.size}")
        check_plan(state.get("plan"), self._plan)
        state = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in state.items()}
        values = criteria.values(self.criterion)
        checks.check_state(state, self.size, self.epochs, values)
        if self._data is not None:
            checks.check_data(state["data"], self._data)
        epoch = Epoch.resumed(state, self.size, values)
        try:
            self.book.load_state_dict(state)
            own = {name.removeprefix(_OWN): value for name, value in state.items() if name.startswith(_OWN)}
            criteria.load_state(self.criterion, own)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        self.seed = state["seed"]
        self._selection, self._weight = None, None
        if state["selection"] is not None:
            index = unpack(state["selection"], self.size)
            weight = torch.ones(len(index)) if state["weight"] is None else state["weight"].clone()
            self._hold(Selection(index, weight, state.get("by_batch", False)))
        self._overlap = state["overlap"]
        self._saved_data = state["data"]
        self._epoch = epoch
        epoch.share = None if self._selection is None else self._share()
        self._recorded = bool(self.book.score.isfinite().any()) or len(state["pending_index"]) > 0
        self._closed = False
        self.loads += 1

    # -- inside -----------------------------------------------------------------------------------------------------

    def begin(self, epoch: int, *, tail: int | None, closed: bool = False, first: int | None = None) -> None:
        """For samplers: an iteration over `epoch` begins.

        Args:
            epoch: that `select` was last called for.
            tail: samples, of all ranks, that the loader drops at the end of it; None where the sampler cannot know.
            closed: whether the run is over, so that nothing may be recorded any more.
            first: position that is handed out first, where an epoch is resumed.
        """
        if epoch == self.selected:
            self._epoch.begin(tail=tail, first=first)
            self._closed = closed

    def end(self, epoch: int, *, before: int | None = None, exhausted: bool = True) -> None:
        """For samplers: all samples of `epoch` have been handed out.

        Args:
            epoch: that `select` was last called for.
            before: `recorded` when they began to be handed out. An iteration that recorded nothing does not end the
                epoch, unless nothing was ever recorded for a method that needs no records. None ends it in any case.
            exhausted: whether missing records are an error, although nothing was recorded while they were handed out:
                workers, or a framework, may have fetched all of them before the first was trained.
        """
        if epoch != self.selected:
            return
        silent = before is not None and self.recorded <= before
        self._epoch.exhausted |= exhausted or not silent
        self._epoch.ended |= not silent or not (self._recorded or self.policy.reads_scores)
        if silent and not self._recorded and self.policy.reads_scores:
            self._unrecorded += 1
            if self._unrecorded == 2:  # once is a look, as at the accuracy before training
                checks.warn_unrecorded(f"all batches of epoch {epoch} were handed out twice")

    def _planned(self) -> Tensor | None:
        """Positions that the running epoch is to record, None for all: a method that forwards what is left out does."""
        all_of_them = self.policy.forwards and self.selected is not None and self.selected + 1 < self.epochs
        return None if all_of_them or self._selection is None else self._selection.index

    def _share(self) -> int:
        """How many of these a rank has."""
        planned = self._planned()
        return -(-(self.size if planned is None else len(planned)) // distributed.world_size())

    def _empty(self) -> tuple[ScoreBook, Epoch]:
        return self.policy.book(self.size), Epoch(self.size, criteria.values(self.criterion))

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
        if count == self.size and not self.policy.when_full:
            return Selection.of(torch.arange(self.size))
        # drawn from where the block begins, so that it does not matter in which of its epochs it is first asked for
        key = Key(self.seed, self._first_pruned + self._block(epoch) * self.every)
        selection = self.policy(self.book.without_unreadable(key), count, key)
        checks.check_selection(selection, self.size, count, exact=self.policy.exact)
        return selection

    def _replace(self, selection: Selection) -> None:
        if self._selection is not None:
            self._overlap = float(np.isin(selection.numpy(), self._selection.numpy(), kind="table").mean())
        self.book.draw(selection.index)
        self._hold(selection)

    def _hold(self, selection: Selection) -> None:
        self._selection, self._weight = selection, None
        if not bool((selection.weight == 1).all()):
            self._weight = torch.ones(self.size)
            self._weight[selection.index] = selection.weight

    def _check_trained(self, following: int) -> None:
        """Raise or warn unless the epoch that ends trained what was selected for it, and was recorded."""
        epoch = self._epoch
        if self._selection is not None and epoch.started():
            again = epoch.close(self._selection.index, self.book, self.policy)
            if len(again) and not self._unreadable:
                self._unreadable = True
                checks.warn_unreadable(again)
        if not self.policy.reads_scores or following == 0 or self._recorded or bool(self.book.score.isfinite().any()):
            return
        if self._selection is not None and epoch.begun:
            checks.warn_unrecorded(f"batches of epoch {epoch.number} were handed out")
        elif self.counts[following] < self.size:
            checks.warn_unrecorded(
                f"epoch {following} is pruned (a loop begins with epoch 0, or where pruner.load_state_dict left off)"
            )

    def _flush(self, epoch: int) -> None:
        """Take in what all ranks recorded; `epoch` says what for, -1 for nothing but that."""
        index, score = self._epoch.pending()
        # batches on a GPU are checked only now; the other ranks must hear of it, or they would wait for ever
        problem = self._logits.problem()
        try:
            checks.check_index(index, self.size)
            checks.check_scores(score)
        except (IndexError, ValueError) as error:
            problem = error
        alone = distributed.world_size() == 1
        parts = distributed.exchange([] if alone else [*self._header(epoch), int(problem is not None)], index, score)
        if problem is not None:
            raise problem
        if not alone:
            headers = [part.header for part in parts]
            checks.check_ranks(headers)
            self._epoch.exhausted = any(header[4] for header in headers)
            self._epoch.largest = max(header[5] for header in headers)
        self._epoch.flush(self.book, self.smoothing, parts, self._planned())

    def _header(self, epoch: int) -> list[int]:
        plan = f"{json.dumps(self._plan)} {self.seed}"
        index = 0 if self._selection is None else checks.checksum(self._selection.index)
        state = [epoch, zlib.crc32(plan.encode()), index, checks.checksum(self.book.score, self.book.drawn)]
        return [*state, int(self._epoch.exhausted), self._epoch.largest]

    @cached_property
    def _plan(self) -> Plan:
        names = ("criterion", "policy", "schedule", "counts", "size", "epochs", "smoothing", "every")
        return plan_of(**{name: getattr(self, name) for name in names})
