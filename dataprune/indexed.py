"""Datasets and batches whose samples carry their position."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, default_collate

from . import content


class Indexed(Dataset):
    """A map-style dataset whose samples carry their position: item i is (i, dataset[i]).

    Attributes are those of the dataset: to read one here, or to set it, does so there.

    Args:
        dataset: map-style dataset, of any item structure.
    Raises:
        TypeError: if it is an IterableDataset, whose samples have no positions.
    """

    def __init__(self, dataset: Any):
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        ):
            raise TypeError(
                f"pruning needs a map-style dataset with __len__ and __getitem__, got {type(dataset).__name__}: "
                "samples of a stream have no positions to remember scores by. Load it into a map-style dataset, or "
                "give a stream of shards to dataprune.prune_stream, with a pruner of their Catalog"
            )
        object.__setattr__(self, "dataset", dataset)

    def __getattr__(self, name: str) -> Any:  # of what is not found here
        if name == "dataset" or name.startswith("__"):  # copied or unpickled, and not filled yet
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[int, Any]]:
        many = getattr(self.dataset, "__getitems__", None)
        if many is None:
            return [self[index] for index in indices]
        return list(zip(indices, many(indices), strict=True))


class IndexedCollate:
    """Collates (position, item) pairs into (index, batch): int64 positions, and what `collate` makes of the items.

    The first batch is collated in two orders as well, to see that `collate` keeps that of the samples. Samples that are
    None, as where a file cannot be read, may be dropped by it: their positions go with them.

    Args:
        collate: collates a list of items; torch's default where None.
    Raises:
        TypeError: when called, if `collate` orders or drops samples by itself, so that positions would be those of
            others.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None = None):
        self.collate = default_collate if collate is None else collate
        self._checked = self.collate is default_collate

    def __call__(self, pairs: list[tuple[int, Any]]) -> tuple[torch.Tensor, Any]:
        indices, items = (list(part) for part in zip(*pairs, strict=True))
        readable = [item is not None for item in items]
        if not self._checked:
            self._check(list(itertools.compress(items, readable)))
        batch = self.collate(items)
        if not all(readable) and content.rows(batch) == sum(readable):
            indices = list(itertools.compress(indices, readable))
        return torch.tensor(indices, dtype=torch.int64), batch

    def _check(self, items: list[Any]) -> None:
        reorders = content.reorders(self.collate, items)
        if reorders:
            name = getattr(self.collate, "__qualname__", type(self.collate).__name__)
            raise TypeError(
                f"the collate_fn ({name}) puts the samples of a batch into another order, or drops some: their "
                "positions would belong to others. Let it keep the order (pack_padded_sequence has "
                "enforce_sorted=False), or build the loader over dataprune.Indexed(dataset) with a collate_fn of your "
                "own that orders (position, item) pairs and yields (index, batch)"
            )
        self._checked = reorders is not None
