"""Ids of rows in shards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune import Catalog, UsageError

ROWS = st.lists(st.integers(0, 5), min_size=1, max_size=12).filter(any)


@given(ROWS)
def test_ids_count_the_rows_of_all_shards_in_order(rows: list[int]) -> None:
    catalog = Catalog(rows)
    places = [(shard, row) for shard, count in enumerate(rows) for row in range(count)]
    assert len(catalog) == len(places)
    assert [catalog.locate(id) for id in range(len(catalog))] == places
    for shard, count in enumerate(rows):
        first, stop = catalog.ids(shard)
        assert [places[id] for id in range(first, stop)] == [(shard, row) for row in range(count)]


@given(ROWS, st.integers(1, 12))
def test_ranks_own_all_shards_and_at_least_one_each(rows: list[int], world_size: int) -> None:
    catalog = Catalog(rows)
    if world_size > len(rows):
        with pytest.raises(UsageError, match="cannot share"):
            catalog.owned(0, world_size)
        return
    owned = [catalog.owned(rank, world_size) for rank in range(world_size)]
    assert all(owned)
    assert [shard for shards in owned for shard in shards] == list(range(len(rows)))


def test_ranks_own_equally_many_rows_where_shards_are_equal() -> None:
    catalog = Catalog([10] * 12)
    assert [len(catalog.owned(rank, 4)) for rank in range(4)] == [3] * 4
    assert [len(Catalog([90, 10, 50, 50]).owned(rank, 2)) for rank in range(2)] == [2, 2]


def test_ids_stay_where_shards_are_appended() -> None:
    before, after = Catalog([3, 4]), Catalog([3, 4, 5])
    assert [before.locate(id) for id in range(7)] == [after.locate(id) for id in range(7)]


def test_the_fingerprint_tells_rows_and_names_apart() -> None:
    catalogs = [Catalog([3, 4]), Catalog([4, 3]), Catalog([3, 4], ["a", "b"]), Catalog([3, 4], ["b", "a"])]
    assert len({catalog.fingerprint for catalog in catalogs}) == 4
    assert Catalog([3, 4]).fingerprint == Catalog((3, 4)).fingerprint


def test_a_wrong_catalog_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of shard 1 must be a whole number of at least 0, got -1"):
        Catalog([1, -1])
    with pytest.raises(ValueError, match="the 0 shards of a catalog hold no row"):
        Catalog([])
    with pytest.raises(ValueError, match="3 names for 2 shards"):
        Catalog([1, 1], ["a", "b", "c"])
    with pytest.raises(ValueError, match="'a' is named twice"):
        Catalog([1, 1], ["a", "a"])


def test_ids_and_shards_that_do_not_exist_are_refused() -> None:
    catalog = Catalog([2, 2])
    for id in (-1, 4):
        with pytest.raises(IndexError, match=f"there is no id {id}: the catalog has ids 0 to 3"):
            catalog.locate(id)
    for shard in (-1, 2):
        with pytest.raises(IndexError, match=f"there is no shard {shard}: the catalog has shards 0 to 1"):
            catalog.ids(shard)
