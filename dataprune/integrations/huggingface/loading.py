"""A Hugging Face Trainer's loader, rebuilt around a pruner's sampler; batches carry their positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from torch.utils.data import DataLoader

from ...loading import Indexed, IndexedCollate, PruneSampler
from ...pruner import Pruner

INDEX = "dataprune_index"  # in a batch on its way from the loader to compute_loss; no model sees it

TAKEN_OVER = (
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "multiprocessing_context",
    "prefetch_factor",
    "in_order",
    "worker_init_fn",
    "timeout",
)


class WholeEpochs(PruneSampler):
    """Yields an epoch from its beginning even where the pruner has resumed in it: the Trainer skips batches itself.

    Args:
        pruner: selects.
        batch_size: of a rank.
        drop_last: whether the loader drops a last, smaller batch.
        shuffle: in random order; else in ascending order.
    """

    def __init__(self, pruner: Pruner, batch_size: int, *, drop_last: bool, shuffle: bool):
        super().__init__(pruner, shuffle=shuffle, batch_size=batch_size, drop_last=drop_last, ends_epoch=False)

    def __iter__(self) -> Iterator[int]:
        positions: Any = super().__iter__()
        positions.load_state_dict({"epoch": self.epoch, "position": 0})
        return positions


class CollateIndex:
    """Collates (position, item) pairs into the batch that `collate` makes, with the positions under INDEX.

    Args:
        collate: the Trainer's; makes a dictionary.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]):
        self._collate = IndexedCollate(collate)

    def __call__(self, pairs: list[tuple[int, Any]]) -> Any:
        index, batch = self._collate(pairs)
        if not isinstance(batch, MutableMapping):
            name = type(batch).__name__
            raise TypeError(f"the Trainer's batches are dictionaries, but data_collator returned a {name}")
        batch[INDEX] = index
        return batch


def rebuilt(given: Any, sampler: WholeEpochs, accelerator: Any) -> DataLoader:
    """The Trainer's loader with another sampler, on the Trainer's device.

    Args:
        given: what the Trainer itself made: columns are removed already from its dataset or by its collator.
        sampler: has the batch size.
        accelerator: the Trainer's.
    """
    from accelerate.data_loader import prepare_data_loader

    loader = DataLoader(
        Indexed(given.dataset),
        batch_size=sampler.batch_size,
        sampler=sampler,
        drop_last=sampler.drop_last,
        collate_fn=CollateIndex(given.collate_fn),
        **{name: getattr(given, name) for name in TAKEN_OVER},
    )
    # one process: the sampler has sharded already, in equal shares; accelerate would shard batches
    return prepare_data_loader(
        loader,
        device=accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=accelerator.device_placement,
        non_blocking=accelerator.non_blocking,
    )
