"""DUAL's Beta sampling against a Beta density of scipy and draws one after another."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from dataprune import coresets


def weights(scores: np.ndarray, p: np.ndarray, pruned: float, c: float, total: float, anchors: int) -> np.ndarray:
    """Sampling probabilities, up to a factor."""
    highest = np.argsort(scores)[-anchors:]
    b = total * (1 - p[highest].mean()) * (1 - pruned**c)
    return scores * stats.beta.pdf(p, total + 1 - b, b)


def subsets(weight: np.ndarray, count: int) -> dict[frozenset[int], float]:
    """Probability of each subset, drawn one sample after another in proportion to the weights that are left."""
    result: Counter[frozenset[int]] = Counter()
    for order in itertools.permutations(range(len(weight)), count):
        probability, left = 1.0, weight.sum()
        for i in order:
            probability *= weight[i] / left
            left -= weight[i]
        result[frozenset(order)] += probability
    return result


@pytest.mark.parametrize(("count", "options"), [(2, {}), (4, {}), (3, {"exponent": 5.5, "concentration": 6.0})])
def test_subsets_are_as_likely_as_in_draws_one_after_another(count: int, options: dict[str, float]) -> None:
    scores, p = np.array([0.2, 0.9, 0.5, 0.7, 0.1, 0.4]), np.array([0.95, 0.3, 0.6, 0.5, 0.99, 0.8])
    given = {"exponent": 4.0, "concentration": 15.0} | options
    weight = weights(scores, p, 1 - count / 6, given["exponent"], given["concentration"], 2)
    expected, trials = subsets(weight, count), 4000
    drawn: Counter[frozenset[int]] = Counter()
    for seed in range(trials):
        selection = coresets.dual_beta(scores, 1 - p, keep=count, anchors=2, seed=seed, **options)
        drawn[frozenset(selection.index.tolist())] += 1
    assert sum(drawn.values()) == trials
    common = [subset for subset, share in expected.items() if share * trials > 5]
    rest = trials - sum(drawn[subset] for subset in common)
    shares = [expected[subset] for subset in common]
    observed = [*(drawn[subset] for subset in common), rest]
    assert stats.chisquare(observed, [*(trials * s for s in shares), trials * (1 - sum(shares))]).pvalue > 1e-4


def test_the_less_is_kept_the_easier_the_samples() -> None:
    difficulty = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    scores = difficulty * (1 - difficulty)  # highest in the middle
    means = [
        float(difficulty[coresets.dual_beta(scores, difficulty, keep=keep, anchors=10).index].mean())
        for keep in (0.7, 0.5, 0.3, 0.1)
    ]
    assert means == sorted(means, reverse=True) and means[-1] < 0.2


def test_samples_of_score_zero_come_last_and_edges_are_finite() -> None:
    scores, difficulty = torch.tensor([0.0, 0.1, 0.0, 0.2, 0.3]), torch.tensor([0.5, 0.0, 0.0, 1.0, 0.2])
    for seed in range(50):
        index = coresets.dual_beta(scores, difficulty, keep=4, anchors=1, seed=seed).index.tolist()
        assert {1, 3, 4} < set(index)
    everything = coresets.dual_beta(torch.zeros(6), torch.zeros(6), keep=2)
    assert len(everything) == 2


def test_classes_have_equal_places() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    index = coresets.dual_beta(torch.rand(40), torch.rand(40), keep=12, labels=labels, balance="class").index
    assert torch.bincount(labels[index]).tolist() == [6, 6]


@pytest.mark.parametrize(
    ("scores", "difficulty", "options", "message"),
    [
        ([0.1, -0.1], [0.1, 0.2], {}, "must be finite and not negative"),
        ([0.1, float("inf")], [0.1, 0.2], {}, "must be finite and not negative"),
        ([0.1, 0.1], [0.1], {}, "difficulty must hold one number for each of the 2 scores, got 1"),
        ([0.1, 0.1], [0.1, 1.5], {}, r"difficulty is 1 − the mean probability of the label, in \[0, 1\]"),
        ([0.1, 0.1], [0.1, float("nan")], {}, "difficulty: 1 of 2 scores are NaN"),
        ([0.1, 0.1], [0.1, 0.2], {"exponent": 0}, "exponent must be a number above 0, got 0"),
        ([0.1, 0.1], [0.1, 0.2], {"concentration": float("inf")}, "concentration must be a number above 0"),
        ([0.1, 0.1], [0.1, 0.2], {"anchors": 0}, "anchors must be a whole number of at least 1"),
        ([0.1, 0.1], [0.1, 0.2], {"max_memory": 10}, r"dual_beta needs [\d,]+ bytes"),
    ],
)
def test_invalid_arguments_are_refused(scores: list, difficulty: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coresets.dual_beta(torch.tensor(scores), torch.tensor(difficulty), keep=0.5, **options)
