"""Loaders that yield what a pruner selects, with each sample's position beside it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from . import checks, distributed
from .indexed import Indexed, IndexedCollate
from .pruner import Pruner

_CHUNK = 1 << 16  # positions turned into Python numbers at a time: a list of all costs 40 bytes each


class PruneSampler(Sampler[int]):
    """Yields the positions a pruner selects for an epoch, this rank's share of them.

    Shares are disjoint and of equal length, but for up to world_size - 1 samples that occur twice. Without `set_epoch`
    the sampler goes on to the next epoch when the running one is recorded, or, where nothing is ever recorded for a
    method that needs no records, iterated to its end. Iterations that record nothing advance nothing, nor do abandoned
    ones; after the last epoch they yield that one again. After `pruner.load_state_dict` it goes on where training was.
    Its iterators have `state_dict` and `load_state_dict`, as torchdata's StatefulDataLoader calls them.

    Args:
        pruner: selects.
        rank: whose share; torch.distributed's by default, else 0.
        world_size: how many share; torch.distributed's by default, else 1.
        shuffle: in random order; else in ascending order.
        batch_size: of the loader, where it is known; then the samples that it drops are known too.
        drop_last: whether the loader drops a last, smaller batch.
        lengths: of all samples of the dataset; batches then have samples of similar length, see `grouped`.
        ends_epoch: whether a loop that skips batches ends an epoch when it comes to its end. False where a trainer
            calls `finish`.
    Raises:
        ValueError: if only one of rank and world_size is given, or rank is outside [0, world_size); for lengths of
            another number of samples, or without a batch size or shuffling.
    """

    def __init__(
        self,
        pruner: Pruner,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
        batch_size: int | None = None,
        drop_last: bool = False,
        ends_epoch: bool = True,
        lengths: Sequence[int] | Tensor | None = None,
    ):
        if (rank is None) != (world_size is None):
            raise ValueError("give rank and world_size together, or neither: torch.distributed's are used then")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got rank {rank} of {world_size}")
        self.pruner = pruner
        self.shuffle = shuffle
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.ends_epoch = ends_epoch
        self.lengths: Tensor | None = None
        if lengths is not None:
            # a list of a column of Hugging Face's datasets
            self.lengths = torch.as_tensor(lengths if hasattr(lengths, "dtype") else list(lengths))
            if len(self.lengths) != pruner.size:
                raise ValueError(f"there are {len(self.lengths)} lengths for {pruner.size} samples: give one for each")
            if not shuffle or batch_size is None:
                raise ValueError(
                    "lengths group a random order into batches: shuffle, and give PruneSampler batch_size="
                )
        self._loops = 0  # running loops over a PrunedLoader, which then end the epoch: workers fetch ahead
        self._rank, self._world_size = rank, world_size
        self._epoch: int | None = None  # that `set_epoch` asks for, until it is iterated; None: where the pruner is
        self._loads = pruner.loads
        self._asked: int | None = None  # what `set_epoch` was called with last
        self._looks = 0  # iterations that a framework has counted as epochs, and that recorded nothing

    @property
    def rank(self) -> int:
        return distributed.rank() if self._rank is None else self._rank

    @property
    def world_size(self) -> int:
        return distributed.world_size() if self._world_size is None else self._world_size

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration yields."""
        if self._loads != self.pruner.loads:  # a state was loaded since: its place counts
            self._epoch, self._loads = None, self.pruner.loads
        return self.pruner.next_epoch if self._epoch is None else self._epoch

    def order(self, epoch: int, *, resume: bool) -> Int[Tensor, " k"]:
        """This rank's positions of an epoch, see `Pruner.order`."""
        arrange = None
        if self.lengths is not None and self.batch_size is not None:
            arrange = partial(grouped, lengths=self.lengths, batch=self.batch_size * self.world_size)
        options = {"shuffle": self.shuffle, "resume": resume}
        return self.pruner.order(epoch, self.rank, self.world_size, arrange=arrange, **options)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration yields; saying it twice changes nothing.

        Where a framework counts iterations, as a loader does that Accelerate has prepared, those that recorded nothing,
        looks at the data, are not counted here.
        """
        pruner = self.pruner
        if self._loads != pruner.loads:
            self._asked, self._looks = None, 0
        if self._asked is not None and epoch == self._asked + 1:
            ahead = pruner.selected == pruner.next_epoch < epoch - self._looks
            self._looks += ahead and pruner.recorded == 0
        self._epoch, self._asked, self._loads = epoch - self._looks, epoch, pruner.loads

    def release(self, epoch: int) -> None:
        """An iteration of `epoch` has begun: from now on what is recorded says which is next."""
        if self._epoch == epoch:
            self._epoch = None

    def finish(self, epoch: int) -> None:
        """A trainer says that `epoch` is over: go on to the next, unless `set_epoch` asks for another."""
        self.pruner.end(epoch)
        self.release(epoch)

    def __len__(self) -> int:
        """Samples that the next iteration yields; asks no other rank.

        Where the policy decides how many it keeps, an upper bound until the epoch is selected.
        """
        epoch = min(self.epoch, self.pruner.epochs - 1)
        return math.ceil(self.pruner.remaining(epoch) / self.world_size)

    def __iter__(self) -> Iterator[int]:
        return _Positions(self)


def grouped(index: Int[Tensor, " k"], lengths: Int[Tensor, " n"], batch: int) -> Int[Tensor, " k"]:
    """Bring samples of similar length together, in an order that stays random otherwise.

    Args:
        index: positions, in random order.
        lengths: of all samples.
        batch: samples in a step of all ranks.
    Returns:
        The same positions: pieces of up to 50 batches, each by descending length. The longest sample comes first, so
        that memory runs out at once or not at all; what fills no batch stays last, since a loader may drop it.
    Source: transformers' `LengthGroupedSampler`. Differs: there a last, smaller batch has the shortest samples.
    """
    whole = len(index) - len(index) % batch
    size = batch * min(max(whole // (4 * batch), 1), 50)
    pieces = [piece[lengths[piece].argsort(descending=True, stable=True)] for piece in index[:whole].split(size)]
    index = torch.cat([*pieces, index[whole:]])
    first = int(lengths[index].argmax())
    index[[0, first]] = index[[first, 0]]
    return index


class _Positions(Iterator[int]):
    """One iteration of a PruneSampler; it selects when its first position is asked for."""

    def __init__(self, sampler: PruneSampler):
        self._sampler = sampler
        self._epoch: int | None = None
        self._start: int | None = None  # position in the rank's share to begin at, from a loaded state
        self._position = 0  # in the rank's share of the whole epoch
        self._running: Iterator[int] | None = None

    def __next__(self) -> int:
        if self._running is None:
            self._running = self._run()
        value = next(self._running)
        self._position += 1
        return value

    def state_dict(self) -> dict[str, int | None]:
        """Where this iteration is, as plain numbers."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Begin where another iteration was; before the first position is asked for."""
        self._epoch, self._start = state["epoch"], state["position"]
        self._position = self._start or 0

    def _run(self) -> Iterator[int]:
        sampler, pruner = self._sampler, self._sampler.pruner
        resume = self._start is None
        if not resume and self._epoch is not None and self._epoch < (pruner.selected or 0):
            return  # saved at the end of an epoch, after which the next is selected
        over = self._epoch is None and sampler.epoch == pruner.epochs and pruner.recorded > 0
        if over:  # a look at the data after the run: all of its last epoch
            self._epoch, resume = pruner.epochs - 1, False
        elif self._epoch is None:
            self._epoch = sampler.epoch
        epoch = self._epoch
        order = sampler.order(epoch, resume=resume)
        sampler.release(epoch)
        share = -(-len(pruner.select(epoch)) // sampler.world_size)
        if resume:
            self._position = share - len(order)
        else:
            order = order[self._start :]
        tail = None
        if sampler.batch_size is not None:
            tail = len(order) % sampler.batch_size * sampler.world_size if sampler.drop_last else 0
            if sampler.drop_last:
                checks.check_batch_size(f"epoch {epoch}", share, sampler.batch_size)
        resumed = resume and 0 < len(order) < share
        pruner.begin(epoch, tail=tail, closed=over, first=int(order[0]) if resumed else None)
        before = pruner.recorded
        for start in range(0, len(order), _CHUNK):
            yield from order[start : start + _CHUNK].tolist()
        if sampler.ends_epoch and not sampler._loops:
            pruner.end(epoch, before=before)


class _ToTheEnd:
    """A loader that tells the pruner when all of its batches were handed to the loop: workers fetch ahead of that."""

    sampler: PruneSampler

    _handed_out: tuple[int, int] | None = None  # epoch and `before` of a loop that was given the last batch

    def __iter__(self) -> Iterator[Any]:
        if self._handed_out is not None:  # and left there: it never asked for one batch too many
            self._end(*self._handed_out)
        pruner = self.sampler.pruner
        checks.check_size(len(self.dataset), pruner.size)  # type: ignore[attr-defined]
        pruner.select(min(self.sampler.epoch, pruner.epochs - 1))  # so that the length is exact
        self.sampler._loops += 1
        return self._until_end(super().__iter__())  # type: ignore[misc]

    def _until_end(self, iterator: Iterator[Any]) -> Iterator[Any]:
        sampler, pruner = self.sampler, self.sampler.pruner
        epoch, before, length = 0, 0, 0
        try:
            for number, batch in enumerate(iterator, start=1):
                if number == 1:
                    assert pruner.selected is not None
                    epoch, before, length = pruner.selected, pruner.recorded, len(self)  # type: ignore[arg-type]
                if number == length:
                    self._handed_out = (epoch, before)
                yield batch
            self._end(epoch, before)
        finally:
            sampler._loops -= 1

    def _end(self, epoch: int, before: int) -> None:
        self._handed_out = None
        if self.sampler.ends_epoch:
            self.sampler.pruner.end(epoch, before=before, exhausted=False)


class PrunedLoader(_ToTheEnd, DataLoader):
    """What `prune_loader` returns: a DataLoader that yields (index, batch)."""


def prune_loader(
    loader: DataLoader,
    pruner: Pruner,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    lengths: Sequence[int] | Tensor | None = None,
) -> DataLoader:
    """Your loader, rebuilt to yield what the pruner selects, as (index, batch).

    Everything else is taken over: batch size, workers, collate_fn, pinning, generator. A shuffling loader shuffles,
    from the pruner's seed; a DistributedSampler hands its rank and world size over.

    Args:
        loader: of a map-style dataset, with its own or torch's plain batch sampler.
        pruner: built with size=len(loader.dataset).
        rank: as for `PruneSampler`.
        world_size: as for `PruneSampler`.
        lengths: of all samples of the dataset, as for `PruneSampler`; batches need less padding then.
    Raises:
        TypeError: if this is no loader, the dataset is a stream, or the loader has a sampler of its own that pruning
            would replace.
        ValueError: if the dataset's length is not the pruner's size, or an epoch keeps fewer samples than one batch and
            the loader would drop it.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, Indexed):
        what = "is pruned already" if isinstance(loader, DataLoader) else f"is a {type(loader).__name__}"
        raise TypeError(f"prune_loader(loader, pruner) takes a DataLoader over your dataset; this one {what}")
    dataset = Indexed(loader.dataset)
    checks.check_size(len(dataset), pruner.size)
    batches = loader.batch_sampler
    if batches is None:
        raise TypeError("the loader has batch_size=None: pruning needs to know the batches, give it a batch_size")
    if type(batches).__name__ != "BatchSampler" or not isinstance(batches, BatchSampler):
        raise TypeError(
            f"the loader has a batch sampler of its own ({type(batches).__name__}), which pruning would replace: build "
            "a DataLoader over dataprune.Indexed(dataset) with your batch sampler around dataprune.PruneSampler(pruner)"
        )
    shuffle = _shuffles(batches.sampler, len(dataset))
    if isinstance(batches.sampler, DistributedSampler) and rank is None:
        rank, world_size = batches.sampler.rank, batches.sampler.num_replicas
    sampler = PruneSampler(
        pruner,
        rank=rank,
        world_size=world_size,
        shuffle=shuffle,
        batch_size=batches.batch_size,
        drop_last=batches.drop_last,
        lengths=lengths,
    )
    if batches.drop_last:
        smallest = -(-min(pruner.counts) // sampler.world_size)
        checks.check_batch_size("a pruned epoch", smallest, batches.batch_size)
    options: dict[str, Any] = {name: getattr(loader, name) for name in _TAKEN_OVER if hasattr(loader, name)}
    kind = type(loader)  # torchdata's StatefulDataLoader, say
    pruned = PrunedLoader if kind is DataLoader else type(f"Pruned{kind.__name__}", (_ToTheEnd, kind), {})
    _check_subclass(kind)
    pruner.bind(loader.dataset)
    return pruned(
        dataset,  # type: ignore[arg-type]
        batch_size=batches.batch_size,
        sampler=sampler,
        drop_last=batches.drop_last,
        collate_fn=IndexedCollate(loader.collate_fn),
        **options,
    )


_TAKEN_OVER = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
    "snapshot_every_n_steps",  # of torchdata's StatefulDataLoader
)


def _check_subclass(kind: type[DataLoader]) -> None:
    """Raise TypeError for a subclass of DataLoader that cannot be built anew from a loader's own options."""
    known = {*inspect.signature(DataLoader.__init__).parameters, *_TAKEN_OVER}
    parameters = inspect.signature(kind.__init__).parameters.values()
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    foreign = [p.name for p in parameters if p.name not in known and p.kind not in open_ended]
    if foreign or not any(p.name == "sampler" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        raise TypeError(
            f"{kind.__name__} has arguments of its own ({', '.join(foreign) or 'not those of DataLoader'}), which "
            "prune_loader cannot hand over: build it over dataprune.Indexed(dataset) with "
            "sampler=dataprune.PruneSampler(pruner) and collate_fn=dataprune.IndexedCollate(collate_fn)"
        )


def _shuffles(sampler: Any, size: int) -> bool:
    if type(sampler) is DistributedSampler:
        checks.check_size(len(sampler.dataset), size)  # type: ignore[arg-type]
        return sampler.shuffle
    # StatefulDataLoader brings a RandomSampler of its own
    random = type(sampler) is RandomSampler or (
        type(sampler).__name__ == "RandomSampler" and type(sampler).__module__.startswith("torchdata.")
    )
    if random or type(sampler) is SequentialSampler:
        if len(sampler) != size or getattr(sampler, "replacement", False):
            raise TypeError(
                "the loader draws with replacement, or only part of the data: give it shuffle=True and let the pruner "
                "decide how much is drawn"
            )
        return random
    raise TypeError(
        f"the loader's sampler ({type(sampler).__name__}) chooses samples itself, which pruning would undo: give "
        "prune_loader a loader with shuffle=True or False; for a subset, prune torch.utils.data.Subset(dataset, "
        "indices)"
    )
