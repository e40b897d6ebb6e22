"""Random numbers by hashing, against Python's unbounded integers."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataprune import Key
from dataprune.hashing import bits, uniform

MASK = (1 << 64) - 1


def mix(state: int) -> int:
    """SplitMix64's finaliser, on Python's unbounded integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def slow_bits(seed: int, epoch: int, index: int, draw: int) -> int:
    golden = 0x9E3779B97F4A7C15
    state = mix((seed + golden) & MASK)
    state = mix((state + epoch + golden) & MASK)
    state = mix((state + index * golden) & MASK)
    return mix((state + (draw + 1) * golden) & MASK)


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40), st.integers(0, 2**63 - 1), st.integers(0, 100))
def test_bits_are_the_reference(seed: int, epoch: int, index: int, draw: int) -> None:
    assert bits(seed, epoch, torch.tensor([index]), draw).item() & MASK == slow_bits(seed, epoch, index, draw)


def test_a_key_has_the_first_draw_of_its_seed_and_epoch() -> None:
    index = torch.tensor([0, 7, 2**40])
    assert [value & MASK for value in Key(3, 5).hash(index).tolist()] == [
        slow_bits(3, 5, at, 0) for at in index.tolist()
    ]
    assert torch.equal(Key(3, 5).hash(index, 2), bits(3, 5, index, 2))
    assert torch.equal(uniform(3, 5, index), uniform(3, 5, index, 0))
    digest = int.from_bytes(hashlib.sha256(b"3/5").digest()[:8], "big")
    assert Key(3, 5).generator().initial_seed() == digest // 2  # 63 bits


def test_bits_differ_in_every_argument() -> None:
    index = torch.arange(1000)
    values = [bits(seed, epoch, index, draw) for seed in (0, 1) for epoch in (0, 1) for draw in (0, 1)]
    assert torch.cat(values).unique().numel() == 8000


@pytest.mark.parametrize("vary", ["index", "epoch", "seed", "draw"])
def test_uniform_is_uniform_and_uncorrelated(vary: str) -> None:
    numbers = range(20_000)
    if vary == "index":
        values = uniform(3, 5, torch.arange(len(numbers)))
    elif vary == "draw":
        values = uniform(3, 5, torch.tensor([7]), torch.arange(len(numbers)))
    else:
        position = torch.tensor([7])
        values = torch.cat([uniform(**{"seed": 3, "epoch": 5, vary: at}, index=position) for at in numbers[:4000]])
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, 20, 0, 1)
    expected = len(values) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45.3  # chi-squared, 19 degrees of freedom: p = 0.0006
    for lag in (1, 2, 7):
        pair = torch.stack([values[:-lag], values[lag:]])
        assert torch.corrcoef(pair)[0, 1].abs() < 4 / len(values) ** 0.5


def test_uniform_times_a_whole_number_stays_below_it() -> None:
    highest = torch.tensor(1 - 2.0**-24)
    sizes = torch.arange(1, 2**17 + 2).float()
    assert (highest * sizes < sizes).all()


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=8), st.integers(0, 2**32), st.integers(0, 500))
def test_uniform_does_not_depend_on_the_batch(index: list[int], seed: int, epoch: int) -> None:
    together = uniform(seed, epoch, torch.tensor(index))
    alone = torch.cat(
        [uniform(seed, epoch, torch.tensor([at], dtype=torch.int32 if at < 2**31 else None)) for at in index]
    )
    assert torch.equal(together, alone)
