"""Policies: exact counts, unseen samples, ties, balance, and what soft pruning promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataprune import Key, ScoreBook, policies
from dataprune.policies import Policy

fast = settings(max_examples=60, deadline=None, derandomize=True)

# few different values, so that ties and unseen samples are common
scores = st.lists(st.sampled_from([math.nan, -1.0, 0.0, 0.5, 0.5000001, 3.0, 1e30, -1e30]), min_size=1, max_size=40)
seeds = st.integers(0, 2**31)

EXACT: dict[str, Policy] = {
    "uniform": policies.uniform(),
    "least_drawn": policies.least_drawn(),
    "top_k": policies.top_k(),
    "bottom_k": policies.bottom_k(),
    "epsilon_greedy": policies.epsilon_greedy(0.3),
    "upper_confidence": policies.upper_confidence(2.0),
}
GREEDY = ["top_k", "bottom_k", "upper_confidence"]


def book_of(score: list[float] | Tensor, *, drawn: list[int] | None = None) -> ScoreBook:
    book = ScoreBook(len(score), variance=True)
    book.score.copy_(torch.as_tensor(score, dtype=torch.float32))
    if drawn is not None:
        book.drawn.copy_(torch.tensor(drawn))
    return book


def key(seed: int = 0) -> Key:
    return Key(seed, epoch=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", EXACT)
@given(score=scores, share=st.floats(0, 1), seed=seeds)
@fast
def test_unique_positions_and_exact_counts(name: str, score: list[float], share: float, seed: int) -> None:
    count = round(share * len(score))
    selection = EXACT[name](book_of(score), count, key(seed))
    index, weight = selection.index, selection.weight
    assert index.dtype == torch.int64
    assert weight.dtype == torch.float32
    assert len(index) == len(weight) == count
    assert len(set(index.tolist())) == count
    assert set(index.tolist()) <= set(range(len(score)))
    assert torch.equal(weight, torch.ones(count))


@pytest.mark.parametrize("name", GREEDY)
@given(score=scores, share=st.floats(0, 1), seed=seeds)
@fast
def test_greedy_policies_take_the_unseen_then_the_best(name: str, score: list[float], share: float, seed: int) -> None:
    count = round(share * len(score))
    index = EXACT[name](book_of(score), count, key(seed)).index.tolist()
    values = np.float32(score)
    if name == "bottom_k":
        values = -values
    values[np.isnan(values)] = np.inf
    kept = sorted((float(values[i]) for i in index), reverse=True)
    assert kept == sorted(values.tolist(), reverse=True)[:count]


@pytest.mark.parametrize("name", EXACT)
def test_policies_depend_on_their_key_alone(name: str) -> None:
    book = book_of([math.nan] * 10 + [1.0] * 20)
    first = EXACT[name](book, 15, key(5)).index
    torch.manual_seed(1)
    assert torch.equal(EXACT[name](book, 15, key(5)).index, first)
    assert not all(torch.equal(EXACT[name](book, 15, key(seed)).index, first) for seed in range(6, 10))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("value", [math.nan, 0.25])
def test_ties_are_broken_at_random_not_by_position(name: str, value: float) -> None:
    size, count, trials = 20, 7, 2000
    hits = np.zeros(size)
    shared = np.zeros((size, size))
    book = book_of([value] * size)
    for trial in range(trials):
        selected = np.zeros(size)
        selected[EXACT[name](book, count, Key(1, trial)).index.numpy()] = 1
        hits += selected
        shared += np.outer(selected, selected)
    p = count / size
    assert np.abs(hits / trials - p).max() < 4.5 * math.sqrt(p * (1 - p) / trials)
    pairs = shared[~np.eye(size, dtype=bool)] / trials  # neighbours are no likelier together than others
    q = p * (count - 1) / (size - 1)
    assert np.abs(pairs - q).max() < 5 * math.sqrt(q * (1 - q) / trials)


def test_only_ties_are_broken_at_random() -> None:
    book = book_of([5.0, 4.0, 3.0, 3.0, 3.0, 1.0])
    seen = {tuple(policies.top_k()(book, 3, key(seed)).index.tolist()) for seed in range(50)}
    assert seen == {(0, 1, 2), (0, 1, 3), (0, 1, 4)}


@pytest.mark.parametrize(("epsilon", "greedy"), [(0.0, 10), (0.25, 7), (0.3, 7), (0.34, 7), (1.0, 0)])
def test_epsilon_is_the_share_of_random_places_rounded(epsilon: float, greedy: int) -> None:
    book = book_of([float(score) for score in range(30)])
    selected = [policies.epsilon_greedy(epsilon)(book, 10, key(seed)).index.tolist() for seed in range(60)]
    assert set.intersection(*map(set, selected)) == set(range(30 - greedy, 30))


def test_least_drawn_takes_the_least_drawn_first() -> None:
    book = book_of([1.0] * 6, drawn=[2, 0, 1, 0, 1, 5])
    assert set(policies.least_drawn()(book, 2, key()).index.tolist()) == {1, 3}
    assert set(policies.least_drawn()(book, 4, key()).index.tolist()) == {1, 2, 3, 4}
    thirds = {tuple(sorted(policies.least_drawn()(book, 3, key(s)).index.tolist())) for s in range(30)}
    assert thirds == {(1, 2, 3), (1, 3, 4)}


def test_upper_confidence_adds_the_variance_not_its_root() -> None:
    assert policies.upper_confidence().book(3).variance.tolist() == [0, 0, 0]
    book = book_of([1.0, 1.0, 1.2])
    book.variance.copy_(torch.tensor([0.09, 0.0, 0.0]))  # with its root 1.3, as a variance 1.09
    assert policies.upper_confidence(1.0)(book, 1, key()).index.tolist() == [2]
    assert policies.upper_confidence(3.0)(book, 1, key()).index.tolist() == [0]


@given(score=scores, share=st.floats(0, 1), epsilon=st.floats(0, 1), seed=seeds)
@fast
def test_epsilon_greedy_contains_its_greedy_share(score: list[float], share: float, epsilon: float, seed: int) -> None:
    count = round(share * len(score))
    index = policies.epsilon_greedy(epsilon)(book_of(score), count, key(seed)).index.tolist()
    greedy = math.floor(count * (1 - epsilon))  # at least; rounding is the policy's
    values = np.float32(score)
    values[np.isnan(values)] = np.inf
    best = sorted(values.tolist(), reverse=True)[:greedy]
    assert sorted((float(values[i]) for i in index), reverse=True)[:greedy] == best


@pytest.mark.parametrize("epsilon", [-0.1, 1.1])
def test_epsilon_is_a_share(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        policies.epsilon_greedy(epsilon)


# -- balance ---------------------------------------------------------------------------------------------------------


def fair(sizes: list[int], count: int) -> list[list[int]]:
    """Places per class by hand: one each in turn, to classes that have samples left. The last round may be anyone's."""
    places = [0] * len(sizes)
    while count:
        open_classes = [c for c, size in enumerate(sizes) if places[c] < size]
        if len(open_classes) > count:
            return [places, open_classes, [count]]
        for c in open_classes:
            places[c] += 1
            count -= 1
    return [places, [], [0]]


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), share=st.floats(0, 1), seed=seeds)
@fast
def test_balance_is_equal_up_to_the_size_of_a_class(labels: list[int], share: float, seed: int) -> None:
    count = round(share * len(labels))
    balance = torch.tensor(labels)
    book = book_of(torch.randn(len(labels), generator=generator(seed)))
    index = policies.top_k(balance=balance)(book, count, key(seed)).index
    assert len(set(index.tolist())) == len(index) == count
    classes = sorted(set(labels))
    got = [int((balance[index] == c).sum()) for c in classes]
    places, lucky, rest = fair([labels.count(c) for c in classes], count)
    extra = [got[c] - places[c] for c in range(len(classes))]
    assert sum(extra) == rest[0]
    assert all(value == 0 or (value == 1 and c in lucky) for c, value in enumerate(extra))
    for c in classes:  # the best of each class
        members = (balance == c).nonzero().squeeze(1)
        kept = book.score[index[balance[index] == c]]
        assert torch.equal(kept.sort().values, book.score[members].sort().values[len(members) - len(kept) :])


def test_the_odd_places_of_a_balance_go_to_any_class() -> None:
    balance = torch.arange(30) % 3
    extra = set()
    for seed in range(40):
        index = policies.top_k(balance=balance)(book_of([1.0] * 30), 10, key(seed)).index
        extra.add(tuple(torch.bincount(balance[index]).tolist()))
    assert extra == {(4, 3, 3), (3, 4, 3), (3, 3, 4)}


@pytest.mark.parametrize(
    "balance", [torch.zeros(5, dtype=torch.int64), torch.zeros(6), torch.zeros(6, 1, dtype=torch.int64)]
)
def test_balance_must_hold_one_class_for_each_sample(balance: Tensor) -> None:
    with pytest.raises(ValueError, match="balance"):
        policies.top_k(balance=balance)(book_of([1.0] * 6), 3, key())


# -- soft pruning ----------------------------------------------------------------------------------------------------


@given(score=scores, r=st.floats(0, 0.99), seed=seeds)
@fast
def test_soft_pruning_drops_only_what_is_below_the_mean(score: list[float], r: float, seed: int) -> None:
    selection = policies.soft_prune(r)(book_of(score), 1, key(seed))
    index, weight = selection.index, selection.weight
    values = np.float32(score).astype(np.float64)
    seen = ~np.isnan(values)
    mean = np.float32(values[seen].mean()) if seen.any() else math.nan
    low = {i for i, value in enumerate(values) if value < mean}
    kept = index.tolist()
    assert len(set(kept)) == len(kept) == len(weight)
    assert set(kept) >= set(range(len(score))) - low  # the unseen too
    survivors = len(set(kept) & low)
    assert math.floor((1 - r) * len(low) - 1e-6) <= survivors <= math.ceil((1 - r) * len(low) + 1e-6)
    wanted = torch.tensor([1 / (1 - r) if i in low else 1.0 for i in kept])
    torch.testing.assert_close(weight, wanted)
    assert weight.dtype == torch.float32


@given(score=scores, share=st.floats(0, 1), seed=seeds)
@fast
def test_soft_pruning_meets_a_count_that_is_in_reach(score: list[float], share: float, seed: int) -> None:
    count = max(1, round(share * len(score)))
    selection = policies.soft_prune()(book_of(score), count, key(seed))
    index, weight = selection.index, selection.weight
    values = np.float32(score).astype(np.float64)
    seen = ~np.isnan(values)
    low = int((values < (np.float32(values[seen].mean()) if seen.any() else math.nan)).sum())
    drop = len(score) - count
    if low and drop <= 0.9 * low:
        assert len(index) == count
    else:
        assert len(index) >= count
        assert len(score) - len(index) <= math.ceil(0.9 * low)
    assert weight.max() <= 10 * (1 + 1e-6)


@pytest.mark.parametrize("policy", [policies.soft_prune(0.5), policies.soft_prune(0.37), policies.soft_prune()])
def test_soft_pruning_is_unbiased(policy: Policy) -> None:
    """The expected weighted sum is the sum over all samples, and each low sample is as likely as another."""
    size, trials = 25, 6000
    score = torch.cat([torch.linspace(0, 1, 15), torch.full((10,), 3.0)])
    book = book_of(score)
    total = np.zeros(size)
    for trial in range(trials):
        selection = policy(book, 19, Key(3, trial))
        total[selection.numpy()] += selection.weight.numpy()
    expected = total / trials
    assert np.array_equal(expected[15:], np.ones(10))
    assert np.abs(expected[:15] - 1).max() < 5 * math.sqrt(1.0 / trials)
    assert abs(expected.mean() - 1) < 5 * math.sqrt(0.1 / trials)


def test_soft_pruning_keeps_all_of_equal_scores() -> None:
    for value in (0.1, 1 / 3, 1e-20, 123456.789):
        selection = policies.soft_prune(0.9)(book_of([value] * 1001), 1, key())
        assert len(selection) == 1001
        assert torch.equal(selection.weight, torch.ones(1001))


@pytest.mark.parametrize("options", [{"prune_probability": 1.0}, {"prune_probability": -0.1}, {"limit": 1.0}])
def test_soft_pruning_needs_a_probability_below_one(options: dict) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        policies.soft_prune(**options)


# -- a million samples -----------------------------------------------------------------------------------------------


def test_policies_are_quick_and_exact_on_many_samples() -> None:
    size = 1_000_000
    book = book_of(torch.rand(size, generator=generator()))
    for name in EXACT:
        index = EXACT[name](book, 300_000, key()).index
        assert len(index) == 300_000
        assert torch.equal(index, index.unique())
    wanted = torch.topk(book.score, 300_000).values.min()
    assert book.score[policies.top_k()(book, 300_000, key()).index].min() == wanted
