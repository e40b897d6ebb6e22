"""Random numbers by hashing, against Python's unbounded integers."""

from __future__ import annotations

import hashlib
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataprune import Key
from dataprune.hashing import beta, bits, uniform

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


def slow_gamma(seed: int, epoch: int, index: int, shape: float, stream: int) -> float:
    """Marsaglia and Tsang's rejection, one number at a time."""

    def number(draw: int) -> float:
        return ((slow_bits(seed, epoch, index, draw) >> 12) + 0.5) / 2**52

    d = max(shape, shape + 1 if shape < 1 else 0) - 1 / 3
    for attempt in itertools.count():
        first, second, third = (number(2 * (3 * attempt + i) + stream) for i in (1, 2, 3))
        x = math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second)
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(third) < x * x / 2 + d - d * v + d * math.log(v):
            return d * v * (number(stream) ** (1 / shape) if shape < 1 else 1)
    raise AssertionError


@given(st.integers(0, 2**40), st.integers(0, 500), st.floats(0.05, 50), st.floats(0.05, 50))
def test_beta_is_the_reference(index: int, epoch: int, a: float, b: float) -> None:
    g, h = slow_gamma(3, epoch, index, a, 0), slow_gamma(3, epoch, index, b, 1)
    drawn = beta(3, epoch, torch.tensor([index]), torch.tensor([a]).double(), torch.tensor([b]).double())
    assert drawn.item() == pytest.approx(g / (g + h), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.3), (1.0, 1.0), (0.7, 4.0), (9.5, 2.5), (300.0, 200.0)])
def test_beta_has_its_distribution(a: float, b: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the extra report is not installed")
    index = torch.arange(20_000)
    drawn = beta(1, 2, index, torch.full((20_000,), a), torch.full((20_000,), b))
    assert stats.kstest(drawn.numpy(), stats.beta(a, b).cdf).pvalue > 1e-3


def test_beta_of_almost_nothing_is_a_coin() -> None:
    """Gamma(1e-3) underflows float64 more often than not; its logarithm does not."""
    tiny = torch.full((4000,), 1e-3)
    drawn = beta(0, 0, torch.arange(4000), tiny, tiny)
    assert drawn.isfinite().all() and abs(float((drawn > 0.5).double().mean()) - 0.5) < 0.03
