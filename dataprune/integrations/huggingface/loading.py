"""A Hugging Face Trainer's loader, rebuilt around a pruner's sampler; batches carry their positions."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, SubsetRandomSampler

from ...indexed import Indexed, IndexedCollate
from ...loading import PruneSampler

INDEX = "dataprune_index"  # in a batch on its way from the loader to compute_loss; no model sees it

TAKEN_OVER = ("num_workers", "pin_memory", "persistent_workers", "multiprocessing_context", "prefetch_factor",
              "in_order", "worker_init_fn", "timeout")  # fmt: skip


class WholeEpochs(PruneSampler):
    """Yields an epoch from its beginning even where the pruner has resumed in it: the Trainer skips batches itself.

    Attributes:
        trains: whether this is the sampler that training iterates. Any other yields the running selection (before the
            run, all samples) and leaves the pruner as it is: a callback looks at the data.
    """

    trains = False

    def __len__(self) -> int:
        return super().__len__() if self.trains else len(self._share())

    def __iter__(self) -> Iterator[int]:
        if not self.trains:
            return iter(self._share())
        positions: Any = super().__iter__()
        positions.load_state_dict({"epoch": self.epoch, "position": 0})
        return positions

    def _share(self) -> list[int]:
        """This rank's samples of the running selection; selects nothing."""
        if self.pruner.selected is None:
            return list(range(self.pruner.size))[self.rank :: self.world_size]
        return self.order(self.pruner.selected, resume=False).tolist()


def rebuilt(loader: Any, sampler: WholeEpochs, accelerator: Any, *, indexed: bool) -> DataLoader:
    """The Trainer's loader with another sampler, which has the batch size, on the Trainer's device.

    Where columns are removed, the loader's dataset or collator does that already.

    Args:
        loader: as the Trainer has built it.
        sampler: in place of its own.
        accelerator: the Trainer's.
        indexed: whether batches carry their positions.
    Raises:
        TypeError: if the loader's sampler chooses samples itself.
    """
    from accelerate.data_loader import prepare_data_loader

    check_sampler(_sampler_of(loader), sampler.pruner.size)
    pruned = DataLoader(
        Indexed(loader.dataset),
        batch_size=sampler.batch_size,
        sampler=sampler,
        drop_last=sampler.drop_last,
        collate_fn=_Collate(loader.collate_fn, indexed),
        **{name: getattr(loader, name) for name in TAKEN_OVER},
    )
    # one process: the sampler has sharded already, in equal shares; accelerate would shard batches
    return prepare_data_loader(
        pruned,
        device=accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        non_blocking=accelerator.non_blocking,
    )


def train_on(loader: Any) -> WholeEpochs:
    """Say that a loader which `rebuilt` made is the one that training iterates; returns its sampler."""
    loader.batch_sampler.sampler.trains = loader.collate_fn.indexed = True
    return loader.batch_sampler.sampler


def check_sampler(sampler: Any, size: int) -> None:
    """Raise TypeError unless a Trainer's sampler yields every sample once: at random, ascending, or by length."""
    seeded = type(sampler).__module__.startswith("accelerate.")  # in the place of a RandomSampler
    plain = seeded or type(sampler) in (RandomSampler, SequentialSampler)
    plain = plain or (type(sampler) is SubsetRandomSampler and set(sampler.indices) == set(range(size)))
    plain = plain or type(sampler).__name__ == "LengthGroupedSampler"  # its lengths are used in the epoch's order
    if not plain or len(sampler) != size or getattr(sampler, "replacement", False):
        raise TypeError(
            f"the Trainer's sampler ({type(sampler).__name__}) chooses or orders samples itself, which pruning would "
            "undo: leave out _get_train_sampler, or whatever else sets it. For a subset, give pruner and Trainer "
            "torch.utils.data.Subset(dataset, indices); to draw equally from all classes, the method's balance="
        )


def _sampler_of(loader: Any) -> Any:
    """What a prepared loader takes positions from; its batch sampler where that orders them itself."""
    batches = loader.batch_sampler
    while hasattr(batches, "batch_sampler"):  # accelerate's share of a rank
        batches = batches.batch_sampler
    return getattr(batches, "sampler", batches)


class _Collate:
    """The Trainer's batch, a dictionary, with the positions under INDEX where it is `indexed`."""

    def __init__(self, collate: Any, indexed: bool):
        self._collate = IndexedCollate(collate)
        self.indexed = indexed

    def __call__(self, pairs: list[tuple[int, Any]]) -> Any:
        index, batch = self._collate(pairs)
        if not isinstance(batch, MutableMapping):
            name = type(batch).__name__
            raise TypeError(f"the Trainer's batches are dictionaries, but data_collator returned a {name}")
        if self.indexed:
            batch[INDEX] = index
        return batch
