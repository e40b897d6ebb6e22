"""All selectors from scores: counts, ties, classes, and rejected input."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataprune import Selection, coresets

fast = settings(max_examples=60, deadline=None, derandomize=True)

# few different values, so that ties are common
values = st.lists(st.sampled_from([-1e30, -1.0, 0.0, 0.5, 0.5000001, 3.0, 1e30]), min_size=1, max_size=40)
fractions = st.floats(0.01, 1)
seeds = st.integers(0, 2**31)

SELECTORS: dict[str, Callable[..., Selection]] = {
    "top": coresets.top,
    "bottom": coresets.bottom,
    "random": coresets.random,
    "stratified": coresets.stratified,
}


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


@pytest.mark.parametrize("name", SELECTORS)
@given(score=values, keep=fractions, seed=seeds)
@fast
def test_unique_ascending_positions_and_exact_counts(name: str, score: list[float], keep: float, seed: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    scores = torch.tensor(score)
    first = check(SELECTORS[name](scores, keep=keep, seed=seed), len(score), keep)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(scores, torch.tensor(score))
    torch.rand(3)
    assert SELECTORS[name](scores, keep=keep, seed=seed).index.tolist() == first


@pytest.mark.parametrize(("name", "sign"), [("top", 1), ("bottom", -1)])
@given(score=values, keep=fractions, seed=seeds)
@fast
def test_top_and_bottom_keep_the_extremes(name: str, sign: int, score: list[float], keep: float, seed: int) -> None:
    index = SELECTORS[name](torch.tensor(score), keep=keep, seed=seed).index.tolist()
    signed = (sign * np.float32(score)).tolist()
    assert sorted((signed[i] for i in index), reverse=True) == sorted(signed, reverse=True)[: len(index)]


def test_infinite_scores_have_their_place_at_the_ends() -> None:
    scores = torch.tensor([0.0, math.inf, -math.inf, 1.0])
    assert coresets.top(scores, keep=0.25).index.tolist() == [1]
    assert coresets.bottom(scores, keep=0.25).index.tolist() == [2]


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("balance", ["none", "class"])
def test_ties_are_broken_at_random_not_by_position(name: str, balance: str) -> None:
    size, trials = 20, 1000
    hits = np.zeros(size)
    for seed in range(trials):
        selection = SELECTORS[name](
            torch.full((size,), 0.25), keep=0.3, seed=seed, labels=torch.arange(size) % 2, balance=balance
        )
        hits[selection.index.numpy()] += 1
    assert np.abs(hits / trials - 0.3).max() < 4.5 * math.sqrt(0.3 * 0.7 / trials)


def test_selectors_of_one_seed_draw_independently_between_equals() -> None:
    equal = torch.zeros(2000)
    drawn = [set(select(equal, keep=0.3, seed=0).index.tolist()) for select in (coresets.top, coresets.bottom)]
    drawn.append(set(coresets.random(2000, keep=0.3, seed=0).index.tolist()))
    for first, other in itertools.combinations(drawn, 2):
        assert abs(len(first & other) - 0.3 * 600) < 5 * math.sqrt(600 * 0.3 * 0.7 * 0.7)  # hypergeometric


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_floating_types_and_the_edges_of_keep(name: str, dtype: torch.dtype) -> None:
    scores = torch.linspace(-1, 1, 9).to(dtype)
    assert check(SELECTORS[name](scores, keep=1), 9, 1) == list(range(9))
    check(SELECTORS[name](scores, keep=0.01), 9, 0.01)
    assert check(SELECTORS[name](scores[:1], keep=0.5), 1, 0.5) == [0]


@pytest.mark.parametrize("name", SELECTORS)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0, 2.0, 2.5])), min_size=8, max_size=50),
    keep=st.floats(0.5, 1),
    seed=seeds,
)
@fast
def test_classes_get_equal_places_as_far_as_they_have_samples(
    name: str, rows: list[tuple[int, float]], keep: float, seed: int
) -> None:
    labels, scores = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    index = check(SELECTORS[name](scores, keep=keep, seed=seed, labels=labels, balance="class"), len(rows), keep)
    sizes = torch.bincount(labels, minlength=4)
    got = torch.bincount(labels[index], minlength=4)
    fewest = min((int(got[c]) for c in range(4) if got[c] < sizes[c]), default=len(rows))
    assert all(int(got[c]) <= fewest + 1 for c in range(4))
    if name in ("top", "bottom"):
        sign = 1 if name == "top" else -1
        for c in range(4):
            highest = (sign * scores[labels == c]).sort(descending=True).values[: int(got[c])]
            selected = torch.tensor([i for i in index if rows[i][0] == c], dtype=torch.int64)
            assert torch.equal((sign * scores[selected]).sort(descending=True).values, highest)


SCORES, IDS = [3, 1, 0, 2, 5, 4], [0, 1, 0, 1, 0, 1]
ARRAYS = {
    "list": (SCORES, IDS),
    "array": (np.array(SCORES, dtype=np.float64), np.array(IDS, dtype=np.int32)),
    "series": (pandas.Series(SCORES, dtype="float32"), pandas.Series(IDS)),
    "read-only": (np.frombuffer(np.array(SCORES, dtype=np.float32).tobytes(), dtype=np.float32), tuple(IDS)),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("name", ["top", "bottom", "stratified"])
def test_arrays_and_lists_are_taken_as_tensors(name: str, kind: str) -> None:
    scores, labels = ARRAYS[kind]
    expected = SELECTORS[name](torch.tensor(SCORES).float(), keep=0.5, labels=torch.tensor(IDS), balance="class")
    assert torch.equal(SELECTORS[name](scores, keep=0.5, labels=labels, balance="class").index, expected.index)
    assert len(coresets.random(scores, keep=3, labels=labels, balance="class")) == 3
    weight = coresets.weighted(expected, scores).weight
    assert torch.equal(weight, coresets.weighted(expected, torch.tensor(SCORES).float()).weight)


@pytest.mark.parametrize("name", SELECTORS)
def test_keep_may_be_a_number_of_samples(name: str) -> None:
    scores = torch.arange(10).float()
    assert len(SELECTORS[name](scores, keep=2)) == 2
    assert len(SELECTORS[name](scores, keep=np.int64(10))) == 10
    assert len(SELECTORS[name](scores, keep=1)) == 10  # the fraction
    for keep, message in (
        (11, "keep asks for 11 samples, there are 10"),
        (0, "fraction"),
        (-2, "fraction"),
        (2.0, "fraction"),
        (True, "fraction"),
    ):
        with pytest.raises(ValueError, match=message):
            SELECTORS[name](scores, keep=keep)


@pytest.mark.parametrize("name", ["top", "bottom", "stratified"])
def test_invalid_scores_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="2 of 4 scores are NaN, the first at position 1"):
        SELECTORS[name](torch.tensor([0.0, math.nan, 1.0, math.nan]), keep=0.5)
    with pytest.raises(ValueError, match="floating point"):
        SELECTORS[name](torch.arange(4), keep=0.5)
    with pytest.raises(ValueError, match=r"\(N,\)"):
        SELECTORS[name](torch.rand(4, 2), keep=0.5)
    with pytest.raises(ValueError, match="scores must be a tensor, an array or a list of numbers, got list"):
        SELECTORS[name](["0.0", "1.0"], keep=0.5)
    with pytest.raises(ValueError, match="no samples"):
        SELECTORS[name](torch.empty(0), keep=0.5)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("keep", [0, -0.1, 1.1, math.nan, True, "0.5"])
def test_keep_is_a_fraction(name: str, keep: float) -> None:
    with pytest.raises(ValueError, match="keep"):
        SELECTORS[name](torch.rand(4), keep=keep)


@pytest.mark.parametrize("name", SELECTORS)
def test_labels_must_be_there_and_fit(name: str) -> None:
    selector = SELECTORS[name]
    with pytest.raises(ValueError, match="needs labels"):
        selector(torch.rand(4), keep=0.5, balance="class")
    with pytest.raises(ValueError, match=r"labels must be \(4,\).*\(3,\)"):
        selector(torch.rand(4), keep=0.5, labels=torch.zeros(3).long(), balance="class")
    with pytest.raises(ValueError, match="whole numbers"):
        selector(torch.rand(4), keep=0.5, labels=torch.zeros(4), balance="class")
    with pytest.raises(ValueError, match="balance"):
        selector(torch.rand(4), keep=0.5, labels=torch.zeros(4).long(), balance="classes")


@pytest.mark.parametrize("name", SELECTORS)
def test_a_class_that_would_stay_empty_is_named(name: str) -> None:
    labels = torch.tensor([7, 7, 7, 8, 9, 9])
    with pytest.raises(ValueError, match=r"2 samples for 3 classes, and none for class [789] \([123] samples\)"):
        SELECTORS[name](torch.rand(6), keep=0.3, labels=labels, balance="class")
    assert len(SELECTORS[name](torch.rand(6), keep=0.5, labels=labels, balance="class").index) == 3


@pytest.mark.parametrize("name", SELECTORS)
def test_memory_is_logged_and_bounded(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dataprune.coresets"):
        SELECTORS[name](torch.rand(1000), keep=0.5)
    assert f"{name}: at most" in caplog.text
    with pytest.raises(ValueError, match=rf"{name} needs .* 1,000 samples.*max_memory=1,000 "):
        SELECTORS[name](torch.rand(1000), keep=0.5, max_memory=1000)
    with pytest.raises(ValueError, match="number of bytes"):
        SELECTORS[name](torch.rand(1000), keep=0.5, max_memory=0)


def test_random_takes_a_size_or_anything_with_rows() -> None:
    by_size = coresets.random(30, keep=0.2, seed=4).index
    assert torch.equal(coresets.random(torch.empty(30, 2), keep=0.2, seed=4).index, by_size)
    for wrong in (0, -3, 2.5, True, torch.tensor(3)):
        with pytest.raises(ValueError, match=r"size|no samples"):
            coresets.random(wrong, keep=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SELECTORS)
def test_scores_on_a_gpu_select_the_same(name: str) -> None:
    scores: Tensor = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    there = SELECTORS[name](scores.cuda(), keep=0.2, labels=(torch.arange(1000) % 3).cuda(), balance="class")
    here = SELECTORS[name](scores, keep=0.2, labels=torch.arange(1000) % 3, balance="class")
    assert there.index.device.type == "cpu"
    assert torch.equal(there.index, here.index)
