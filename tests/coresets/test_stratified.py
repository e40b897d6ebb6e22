"""Coverage-centric selection against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from dataprune import Selection, coresets

fast = settings(max_examples=60, deadline=None, derandomize=True)

# few different values, so that ties are common
values = st.lists(st.sampled_from([-1e30, -1.0, 0.0, 0.5, 0.5000001, 3.0, 1e30]), min_size=1, max_size=40)
fractions = st.floats(0.01, 1)
seeds = st.integers(0, 2**31)


def count_of(size: int, keep: float) -> int:
    return max(1, math.floor(keep * size + 0.5))


def check(selection: Selection, size: int, keep: float) -> list[int]:
    index, weight = selection.index, selection.weight
    assert index.dtype == torch.int64
    assert weight.dtype == torch.float32
    assert torch.equal(weight, torch.ones(len(index)))
    assert len(index) == count_of(size, keep)
    assert index.tolist() == sorted(set(index.tolist()))
    assert 0 <= int(index.min()) <= int(index.max()) < size
    return index.tolist()


def ccs_places(scores: np.ndarray, count: int, bins: int, cutoff: float) -> tuple[list[list[int]], list[int]]:
    """By hand, for scores without ties at the cutoff: the members of each bin, and the places of bins by size."""
    ordered = sorted(range(len(scores)), key=lambda i: scores[i])
    rest = ordered[: len(scores) - int(round(cutoff * len(scores), 9))]
    low, high = scores[rest[0]], scores[rest[-1]]
    members: list[list[int]] = [[] for _ in range(bins)]
    for i in rest:
        place = 0
        while place + 1 < bins and (scores[i] - low) * bins >= (place + 1) * (high - low) and high > low:
            place += 1
        members[place].append(i)
    sizes = sorted(len(bin) for bin in members)
    places = []
    for done, size in enumerate(sizes):
        places.append(min(size, count // (bins - done)))
        count -= places[-1]
    return members, places


@pytest.mark.parametrize("bins", [1, 3, 10, 50, 300])
@pytest.mark.parametrize(("keep", "cutoff"), [(0.3, 0.0), (0.1, 0.3), (0.5, 0.2), (0.7, 0.3), (0.01, 0.0)])
@pytest.mark.parametrize("shape", ["normal", "skewed", "negative"])
def test_stratified_equals_its_definition(bins: int, keep: float, cutoff: float, shape: str) -> None:
    scores = np.random.default_rng(bins).normal(size=200)
    scores = {"normal": scores, "skewed": np.exp(3 * scores), "negative": scores - 100}[shape]
    index = check(coresets.stratified(torch.tensor(scores), keep=keep, bins=bins, cutoff=cutoff, seed=3), 200, keep)
    members, places = ccs_places(scores, len(index), bins, cutoff)
    got = [len(set(index) & set(stratum)) for stratum in members]
    assert sum(got) == len(index)  # nothing of what the cutoff drops
    by_size: dict[int, list[int]] = {}
    for stratum, taken in zip(members, got):
        by_size.setdefault(len(stratum), []).append(taken)
    expected: dict[int, list[int]] = {}
    for size, taken in zip(sorted(len(stratum) for stratum in members), places):
        expected.setdefault(size, []).append(taken)
    # which of two bins of the same size gets an odd place is a matter of chance
    assert {size: sorted(taken) for size, taken in by_size.items()} == {s: sorted(t) for s, t in expected.items()}


def test_stratified_of_many_scores_draws_every_member_of_a_bin_alike() -> None:
    size, trials = 6000, 60
    scores = torch.cat([torch.full((1000,), 0.0), torch.full((2000,), 1.0), torch.full((3000,), 2.0)])
    hits = np.zeros(size)
    for seed in range(trials):
        index = check(coresets.stratified(scores, keep=0.4, bins=3, seed=seed), size, 0.4)
        hits[index] += 1
        assert np.histogram(index, [0, 1000, 3000, 6000])[0].tolist() == [800, 800, 800]
    for start, stop in ((0, 1000), (1000, 3000), (3000, 6000)):
        p = 800 / (stop - start)
        hit = hits[start:stop]
        assert abs(hit[: len(hit) // 2].mean() / trials - p) < 5 * math.sqrt(p * (1 - p) / trials / (stop - start))
        assert 0.8 < hit.var() / (trials * p * (1 - p)) < 1.25  # as independent draws


def test_stratified_per_class_is_stratified_of_each_class() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=60), 100 + rng.normal(size=60)])
    index = coresets.stratified(
        torch.tensor(scores), keep=0.3, bins=5, cutoff=0.1, labels=torch.arange(120) // 60, balance="class"
    ).index.numpy()
    for start in (0, 60):
        members, places = ccs_places(scores[start : start + 60], 18, 5, 0.1)
        drawn = set((index[(index >= start) & (index < start + 60)] - start).tolist())
        assert sorted(len(drawn & set(stratum)) for stratum in members) == sorted(places)


def test_whole_scores_on_the_edge_of_a_bin_belong_to_the_upper_one() -> None:
    for seed in range(20):
        index = coresets.stratified(torch.arange(100.0), keep=0.1, bins=11, seed=seed).index
        assert len((index // 9).unique()) == 10  # ten places, one for each of ten bins of eleven


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-40, 1e30])
def test_constant_scores_are_one_bin(value: float) -> None:
    seen = {tuple(check(coresets.stratified(torch.full((6,), value), keep=0.3, seed=s), 6, 0.3)) for s in range(60)}
    assert len(seen) > 10


def test_the_cutoff_drops_equals_at_random() -> None:
    scores = torch.tensor([0.0, 1.0, 1.0, 1.0])
    left_out = set()
    for seed in range(40):
        index = coresets.stratified(scores, keep=0.75, cutoff=0.25, seed=seed).index.tolist()
        left_out |= {1, 2, 3} - set(index)
        assert 0 in index
    assert left_out == {1, 2, 3}


def test_a_cutoff_that_leaves_too_few_is_refused() -> None:
    scores = torch.rand(10)
    assert len(coresets.stratified(scores, keep=0.7, cutoff=0.3).index) == 7
    with pytest.raises(ValueError, match="cutoff leaves 7 of 10 samples, but keep asks for 8"):
        coresets.stratified(scores, keep=0.8, cutoff=0.3)
    with pytest.raises(ValueError, match="cutoff leaves"):
        coresets.stratified(scores, keep=0.9, cutoff=0.3, labels=torch.arange(10) % 2, balance="class")


@pytest.mark.parametrize("options", [{"bins": 0}, {"bins": 2.0}, {"bins": 1 << 16}, {"cutoff": 1.0}, {"cutoff": -0.1}])
def test_bins_and_cutoff_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        coresets.stratified(torch.rand(10), keep=0.5, **options)


def test_stratified_refuses_infinite_scores() -> None:
    with pytest.raises(ValueError, match="finite"):
        coresets.stratified(torch.tensor([0.0, math.inf]), keep=0.5)
