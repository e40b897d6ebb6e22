"""The highest of all ranks, against the selection of a single process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pool import Pool
from ranks import together

from dataprune import Key, distributed, policies, radix

Reduce = Callable[[np.ndarray], np.ndarray]
KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda random, size: random.normal(size=size),
    "some unseen": lambda random, size: np.where(random.random(size) < 0.3, np.nan, random.normal(size=size)),
    "all unseen": lambda random, size: np.full(size, np.nan),
    "all equal": lambda random, size: np.full(size, -2.5),
    "few values": lambda random, size: random.integers(-2, 3, size),
    "zeros of both signs": lambda random, size: random.choice([0.0, -0.0, 1.0, np.inf, -np.inf], size),
    "close to each other": lambda random, size: 1 + random.integers(0, 50, size) * 2.0**-23,
}


def spread(keys: np.ndarray | None, size: int, count: int, key: Key, world_size: int, cuts: np.ndarray) -> np.ndarray:
    """What the ranks choose, joined; rank r has the samples between cuts r and r + 1."""

    def one(rank: int, reduce: Reduce) -> np.ndarray:
        start, stop = cuts[rank], cuts[rank + 1]
        own = None if keys is None else keys[start:stop]
        return radix.highest(own, stop - start, count, key, first=int(start), reduce=reduce)

    return np.flatnonzero(np.concatenate(together(world_size, one)))


@pytest.mark.parametrize("world_size", [1, 3, pytest.param(7, marks=pytest.mark.slow)])
def test_the_highest_scores_are_those_of_one_process(world_size: int) -> None:
    random = np.random.default_rng(world_size)
    for case in range(200):
        size = int(random.integers(1, 300))
        values = list(KINDS.values())[case % len(KINDS)](random, size).astype(np.float32)
        count, key = int(random.integers(0, size + 1)), Key(int(random.integers(1 << 40)), case)
        cuts = np.array([0, *np.sort(random.integers(0, size + 1, world_size - 1)), size])
        chosen = spread(radix.ordered(values), size, count, key, world_size, cuts)
        assert chosen.tolist() == policies.highest(torch.from_numpy(values), count, key).tolist()


@pytest.mark.parametrize("world_size", [1, 3])
def test_random_subsets_and_the_least_drawn_are_those_of_one_process(world_size: int) -> None:
    random = np.random.default_rng(0)
    for case in range(40):
        size = int(random.integers(1, 300))
        count, key = int(random.integers(0, size + 1)), Key(case, 3)
        cuts = np.array([0, *np.sort(random.integers(0, size + 1, world_size - 1)), size])
        assert spread(None, size, count, key, world_size, cuts).tolist() == (
            policies.random_subset(size, count, key).tolist()
        )
        drawn = random.integers(0, 4, size).astype(np.uint16)
        expected = policies.highest(-torch.from_numpy(drawn.astype(np.int32)), count, key)
        assert spread(~drawn, size, count, key, world_size, cuts).tolist() == expected.tolist()


def test_equal_upper_bits_of_the_hash_are_told_apart() -> None:
    """With 300,000 samples in 65,536 bins, the bin at the edge holds several."""
    for count in (1, 149_999, 150_000, 150_001):
        chosen = radix.highest(None, 300_000, count, Key(1, 1))
        assert np.flatnonzero(chosen).tolist() == policies.random_subset(300_000, count, Key(1, 1)).tolist()


def test_the_order_of_scores_is_kept() -> None:
    values = np.array([-np.inf, -1e30, -1, -1e-45, 0, 1e-45, 1, 1e30, np.inf, np.nan], dtype=np.float32)
    keys = radix.ordered(values).astype(np.int64)
    assert (np.diff(keys) > 0).all()
    assert radix.ordered(np.array([-0.0], dtype=np.float32)) == radix.ordered(np.array([0.0], dtype=np.float32))
    assert radix.ordered(np.array([-np.nan], dtype=np.float32))[0] == 0xFFFFFFFF


def test_six_sums_at_most_whatever_the_scores() -> None:
    for name, make in KINDS.items():
        sums = []

        def counted(array: np.ndarray, sums: list[int] = sums) -> np.ndarray:
            sums.append(array.nbytes)
            return array

        values = make(np.random.default_rng(0), 5000).astype(np.float32)
        radix.highest(radix.ordered(values), 5000, 1501, Key(0, 0), reduce=counted)
        assert len(sums) <= 6 and max(sums) <= 1 << 19, name


def choose(rank: int, world_size: int, values: np.ndarray, count: int) -> list[int]:
    cuts = np.linspace(0, len(values), world_size + 1).astype(int)
    own = values[cuts[rank] : cuts[rank + 1]]
    first = int(cuts[rank])
    keys = radix.ordered(own)
    chosen = radix.highest(keys, len(own), count, Key(4, 2), first=first, reduce=distributed.total)
    return (np.flatnonzero(chosen) + first).tolist()


@pytest.mark.ddp
def test_two_processes_choose_what_one_does(pool: Pool) -> None:
    random = np.random.default_rng(5)
    for make in KINDS.values():
        values = make(random, 1000).astype(np.float32)
        parts = pool.run(choose, values, 333, world_size=2)
        assert [*parts[0], *parts[1]] == policies.highest(torch.from_numpy(values), 333, Key(4, 2)).tolist()
