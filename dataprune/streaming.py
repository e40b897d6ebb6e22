"""Pruned streams: the selected rows of shards, each with its id, read in the order in which they are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch.utils.data import IterableDataset, get_worker_info

from .catalog import Catalog
from .errors import DataError, UsageError
from .hashing import Key
from .pruner import Pruner
from .schedules import check_whole
from .sharded import ShardedPruner

_READ = 1000  # rows of a `datasets` stream that are read at a time
_ORDER, _SHARDS = 1 << 33, 1  # set apart the stream of these orders from others; draws of shards from those of rows


def prune_stream(
    dataset: Any,
    pruner: Pruner,
    *,
    batch_size: int | None = None,
    window: int = 4096,
    decode: Callable[[Any], Any] | None = None,
) -> PrunedStream:
    """Stream what a pruner of a `Catalog` selects, as (id, sample).

    Shards come in random order. Their selected rows are read in the order in which they are stored, and shuffled within
    a window. A row that is not selected is not decoded; where a shard is a sequence, it is not read.

    Args:
        dataset: a callable from the number of a shard to its rows, in the order of their ids: a sequence, or an
            iterable that begins anew with each call. Or an `IterableDataset` of Hugging Face datasets, as
            `load_dataset(..., streaming=True)` returns it, whose files are the shards of the catalog.
        pruner: a recipe's, given a `Catalog` in place of a size.
        batch_size: that of the DataLoader: every worker hands out whole batches, and the ragged rest of the epoch is
            dropped. By default all samples are handed out.
        window: samples that are held, decoded, to be shuffled; 1 keeps the order in which they are stored.
        decode: makes a sample of a selected row, such as the transforms that `map` would apply to all.
    Returns:
        A torch IterableDataset for a DataLoader that does not shuffle. Call `set_epoch` before each loop.
    Raises:
        UsageError: if the pruner has no catalog, or the rows of the dataset have no stable ids.
        DataError: if the dataset has other shards than the catalog.
        ValueError: if batch_size or window is no whole number of at least 1.
    """
    if not isinstance(pruner, ShardedPruner):
        raise UsageError(
            "a stream has no positions that all processes know, its pruner needs the shards: build it as "
            "dataprune.memory(dataprune.Catalog(rows_of_each_shard), keep=..., epochs=...)"
        )
    for name, value in (("batch_size", 1 if batch_size is None else batch_size), ("window", window)):
        check_whole(name, value)
    return PrunedStream(_source(dataset, pruner.catalog), pruner, batch_size or 1, window, decode)


class PrunedStream(IterableDataset):
    """What `prune_stream` returns. It goes on where the pruner is: what an epoch has recorded is not handed out again.

    Args:
        read: from a shard and the places of rows in it, ascending, to these rows.
        pruner, batch_size, window, decode: as for `prune_stream`.
    """

    def __init__(
        self,
        read: Callable[[int, Int64[np.ndarray, " k"]], Iterator[Any]],
        pruner: ShardedPruner,
        batch_size: int,
        window: int,
        decode: Callable[[Any], Any] | None,
    ):
        self.pruner: ShardedPruner | None = pruner
        self.batch_size = batch_size
        self.window = window
        self._read = read
        self._decode = decode
        self._share: Share | None = None  # of the next iteration

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, or go on with it. Collective: with several ranks, all must call it, before each loop.

        Args:
            epoch: 0-based; a resumed run begins with `pruner.epoch`.
        Raises:
            PlanError: as `ShardedPruner.part`.
        """
        pruner = self._own("set_epoch")
        left, length = pruner.part(epoch)
        tail = length % self.batch_size
        pruner.begin(epoch, tail=tail)
        key = Key(pruner.seed + _ORDER, epoch)
        first = pruner.first
        bases = {shard: slice(*(id - first for id in pruner.catalog.ids(shard))) for shard in pruner.shards}
        drawn = key.hash(torch.tensor(pruner.shards), _SHARDS).argsort().tolist()
        order = [(pruner.shards[place], bases[pruner.shards[place]]) for place in drawn]
        self._share = Share(order, first, left, pruner.book.selected.copy(), length - tail, key)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        worker = get_worker_info()
        if self._share is None and worker is None:
            pruner = self._own("iterate")
            self.set_epoch(pruner.next_epoch)
        if self._share is None:
            raise UsageError(
                "call stream.set_epoch(epoch) on every rank before each loop over its DataLoader, whose workers cannot "
                "ask the other ranks; and leave persistent_workers off, for workers that stay do not hear of it"
            )
        share, self._share = self._share, None
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        batches = share.length // self.batch_size
        start, stop = (batches * place // count * self.batch_size for place in (number, number + 1))
        return self._shuffled(share, start, stop)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pruner": None}  # a worker that is spawned needs its share alone

    def state_dict(self) -> dict[str, Any]:
        """That of the pruner: what was recorded is the place in the epoch, not what was handed out ahead."""
        return self._own("state_dict").state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the pruner's state, see there."""
        self._own("load_state_dict").load_state_dict(state)
        self._share = None

    def _own(self, name: str) -> ShardedPruner:
        if self.pruner is None or get_worker_info() is not None:
            raise UsageError(
                f"{name} belongs into the main process: a DataLoader's worker has its share of an epoch alone"
            )
        return self.pruner

    def _shuffled(self, share: Share, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        held: list[tuple[int, Any]] = []
        for shard, base, rows in share.places(start, stop):
            for row, sample in zip(rows.tolist(), self._read(shard, rows), strict=True):
                held.append((share.first + base + row, sample if self._decode is None else self._decode(sample)))
                if len(held) == self.window:
                    yield from _mixed(held, share.key)
                    held = []
        yield from _mixed(held, share.key)


@dataclass(frozen=True)
class Share:
    """What a rank hands out in one iteration over an epoch.

    Attributes:
        shards: each with the slice of its rows among those that the rank owns, in the order in which they are read.
        first: id of the first row that the rank owns.
        left: which rows are to be trained; then come those of `selected` again, until there are `length` in all.
        selected: which rows the whole epoch has.
        length: samples handed out, of all workers.
        key: decides the order.
    """

    shards: list[tuple[int, slice]]
    first: int
    left: Bool[np.ndarray, " n"]
    selected: Bool[np.ndarray, " n"]
    length: int
    key: Key

    def places(self, start: int, stop: int) -> Iterator[tuple[int, int, Int64[np.ndarray, " k"]]]:
        """Of samples `start` to `stop`: shard, place of its first row among those that the rank owns, and its rows."""
        yield from self._cut(self.left, start, stop)
        offset = int(np.count_nonzero(self.left))
        lap = int(np.count_nonzero(self.selected))
        while offset < stop:
            yield from self._cut(self.selected, start - offset, stop - offset)
            offset += lap

    def _cut(self, mask: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int, np.ndarray]]:
        before = 0
        for shard, at in self.shards:
            count = int(np.count_nonzero(mask[at]))
            if before < stop and before + count > start:
                rows = np.flatnonzero(mask[at])[max(0, start - before) : stop - before]
                yield shard, at.start, rows
            before += count


def _mixed(held: list[tuple[int, Any]], key: Key) -> Iterator[tuple[int, Any]]:
    order = key.hash(torch.tensor([id for id, _ in held], dtype=torch.int64)).argsort()
    return (held[place] for place in order.tolist())


def _source(dataset: Any, catalog: Catalog) -> Callable[[int, np.ndarray], Iterator[Any]]:
    """From a shard and ascending places in it to the rows there."""
    if type(dataset).__module__.split(".")[0] == "datasets" and hasattr(dataset, "num_shards"):
        return Files(dataset, catalog)
    if callable(dataset):
        return Opened(dataset, catalog)
    if hasattr(dataset, "__getitem__"):
        raise UsageError(
            f"{type(dataset).__name__} has positions: use prune_loader with a pruner of len(dataset), or give a "
            "callable from the number of a shard to its rows"
        )
    raise UsageError(
        f"the rows of a {type(dataset).__name__} have no ids that stay as they are, for it does not say where a shard "
        "begins: give a callable from the number of a shard to its rows, as lambda shard: open(paths[shard])"
    )


@dataclass(frozen=True)
class Opened:
    """Reads shards that a callable opens."""

    open: Callable[..., Any]  # from the number of a shard to its rows
    catalog: Catalog

    def __call__(self, shard: int, rows: Int64[np.ndarray, " k"]) -> Iterator[Any]:
        content: Any = self.open(shard)
        if hasattr(content, "__getitem__") and hasattr(content, "__len__"):
            if len(content) != self.catalog.rows[shard]:
                raise _other_length(shard, f"{len(content)}", self.catalog)
            yield from (content[row] for row in rows.tolist())
            return
        wanted, found = iter(rows.tolist()), 0
        next_row = next(wanted, None)
        for row, item in enumerate(content):
            if row == next_row:
                yield item
                found, next_row = found + 1, next(wanted, None)
                if next_row is None:
                    break
        if found < len(rows):
            raise _other_length(shard, "fewer", self.catalog)


class Files:
    """Reads the shards of an `IterableDataset` of datasets: a file or part of one each."""

    def __init__(self, dataset: Any, catalog: Catalog):
        source = dataset._ex_iterable
        while type(source).__name__ == "SelectColumnsIterable":
            source = source.ex_iterable
        kind = type(source).__name__.removesuffix("ExamplesIterable")
        if kind != "Arrow" or dataset._distributed is not None:
            raise UsageError(
                f"the rows of this stream have no ids that stay as they are ({kind}): give it as "
                "load_dataset(..., streaming=True) returned it, without shuffle, filter, take, skip, interleaving and "
                "split_dataset_by_node, which prune_stream does itself; what `map` did goes into decode="
            )
        if dataset.num_shards != len(catalog.rows):
            raise DataError(
                f"the stream has {dataset.num_shards} shards, the catalog {len(catalog.rows)}: give the rows of each "
                "file in the order of data_files"
            )
        self.dataset = dataset
        self.catalog = catalog

    def __call__(self, shard: int, rows: Int64[np.ndarray, " k"]) -> Iterator[Any]:
        part = self.dataset.shard(num_shards=len(self.catalog.rows), index=shard).with_format("arrow")
        features, before, left = self.dataset.features, 0, rows
        for table in part.iter(batch_size=_READ):
            here = left[left < before + len(table)] - before
            left, before = left[len(here) :], before + len(table)
            for row in table.take(here).to_pylist() if len(here) else ():
                yield row if features is None else features.decode_example(row)
            if not len(left):
                return
        raise _other_length(shard, f"{before}", self.catalog)


def _other_length(shard: int, rows: str, catalog: Catalog) -> DataError:
    name = "" if catalog.names is None else f" ({catalog.names[shard]})"
    return DataError(
        f"shard {shard}{name} has {rows} rows, the catalog says {catalog.rows[shard]}: the scores would go to other "
        "rows. Count the rows again, and begin with a new pruner"
    )
