"""A Hugging Face Trainer's loader, rebuilt around a pruner's sampler; batches carry their positions."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from ...indexed import Indexed, IndexedCollate
from ...loading import PruneSampler

INDEX = "dataprune_index"  # in a batch on its way from the loader to compute_loss; no model sees it

TAKEN_OVER = ("num_workers", "pin_memory", "persistent_workers", "multiprocessing_context", "prefetch_factor",
              "in_order", "worker_init_fn", "timeout")  # fmt: skip


class WholeEpochs(PruneSampler):
    """Yields an epoch from its beginning even where the pruner has resumed in it: the Trainer skips batches itself."""

    def __iter__(self) -> Iterator[int]:
        positions: Any = super().__iter__()
        positions.load_state_dict({"epoch": self.epoch, "position": 0})
        return positions


def rebuilt(loader: Any, sampler: WholeEpochs, accelerator: Any) -> DataLoader:
    """The Trainer's loader with another sampler, which has the batch size, on the Trainer's device.

    Where columns are removed, the loader's dataset or collator does that already.
    """
    from accelerate.data_loader import prepare_data_loader

    pruned = DataLoader(
        Indexed(loader.dataset),
        batch_size=sampler.batch_size,
        sampler=sampler,
        drop_last=sampler.drop_last,
        collate_fn=partial(_collate, IndexedCollate(loader.collate_fn)),
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


def _collate(collate: IndexedCollate, pairs: list[tuple[int, Any]]) -> Any:
    """The Trainer's batch, a dictionary, with the positions under INDEX."""
    index, batch = collate(pairs)
    if not isinstance(batch, MutableMapping):
        name = type(batch).__name__
        raise TypeError(f"the Trainer's batches are dictionaries, but data_collator returned a {name}")
    batch[INDEX] = index
    return batch
