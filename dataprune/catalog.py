"""The shards of a data set, and an id for every row of them that never changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from .errors import UsageError
from .schedules import check_whole


class Catalog:
    """Numbers the rows of shards: the id of a row is the number of rows in all shards before it, plus its place.

    Ids stay as they are where shards are appended. Several ranks share the shards: each owns a run of them.

    Args:
        rows: rows of every shard, in the order in which ids are given; a shard may be empty.
        names: of the shards, such as their paths; different from one another. By default there are none.
    Attributes:
        rows: tuple of the rows of every shard.
        names: tuple of the names, or None.
    Raises:
        ValueError: if a number of rows is no whole number of at least 0, there is no row at all, or names are of
            another number or repeated.
    Example:
        >>> catalog = Catalog([3, 4], names=["a.parquet", "b.parquet"])
        >>> len(catalog), catalog.ids(1), catalog.locate(5)
        (7, (3, 7), (1, 2))
    """

    def __init__(self, rows: Sequence[int], names: Sequence[str] | None = None):
        for shard, count in enumerate(rows):
            check_whole(f"rows of shard {shard}", count, least=0)
        self.rows = tuple(map(int, rows))
        self.names = None if names is None else tuple(map(str, names))
        if not sum(self.rows):
            raise ValueError(f"the {len(self.rows)} shards of a catalog hold no row: give the rows of every shard")
        if self.names is not None and len(self.names) != len(self.rows):
            raise ValueError(f"{len(self.names)} names for {len(self.rows)} shards: give one a shard")
        if self.names is not None and len(set(self.names)) < len(self.names):
            twice = next(name for place, name in enumerate(self.names) if name in self.names[:place])
            raise ValueError(f"the shard {twice!r} is named twice: its rows would have two ids")
        self._base = np.concatenate([[0], np.cumsum(self.rows, dtype=np.int64)])  # (S + 1,) first id of every shard

    def __len__(self) -> int:
        return int(self._base[-1])

    def __repr__(self) -> str:
        return f"Catalog({len(self)} rows in {len(self.rows)} shards)"

    def ids(self, shard: int) -> tuple[int, int]:
        """The ids of a shard's rows, as (first, stop): half-open. IndexError if there is no such shard."""
        if not 0 <= shard < len(self.rows):
            raise IndexError(f"there is no shard {shard}: the catalog has shards 0 to {len(self.rows) - 1}")
        return int(self._base[shard]), int(self._base[shard + 1])

    def locate(self, id: int) -> tuple[int, int]:
        """Where a row is, as (shard, row in the shard). IndexError if there is no such id."""
        if not 0 <= id < len(self):
            raise IndexError(f"there is no id {id}: the catalog has ids 0 to {len(self) - 1}")
        shard = int(np.searchsorted(self._base, id, side="right")) - 1
        return shard, int(id - self._base[shard])

    def owned(self, rank: int, world_size: int) -> range:
        """The shards that a rank owns: a run of them, with as nearly equally many rows on all ranks as shards allow.

        Args:
            rank: whose, in [0, world_size).
            world_size: how many ranks share the shards; each gets one at least.
        Raises:
            UsageError: if there are fewer shards than ranks.
        """
        shards = len(self.rows)
        if shards < world_size:
            raise UsageError(
                f"{world_size} ranks cannot share {shards} shards, for each rank owns whole shards: write the data in "
                f"at least {world_size} shards, better several for each rank, or train with at most {shards} ranks"
            )
        bounds = [0]
        for place in range(1, world_size):
            near = int(np.abs(self._base - len(self) * place // world_size).argmin())
            bounds.append(min(max(near, bounds[-1] + 1), shards - world_size + place))
        bounds.append(shards)
        return range(bounds[rank], bounds[rank + 1])

    @property
    def fingerprint(self) -> str:
        """A short text that tells catalogs apart by the rows and names of their shards; the rows are not read."""
        return hashlib.sha256(json.dumps([self.rows, self.names]).encode()).hexdigest()[:32]
