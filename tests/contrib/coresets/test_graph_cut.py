"""Graph cut against the plain greedy algorithm on the matrix of similarities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from coreset_features import check, normal, tensor

from dataprune import coresets


def similarities(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def value(s: np.ndarray, chosen: list[int], redundancy: float) -> float:
    """f(S), by its definition."""
    return sum(s[i, j] for i in range(len(s)) for j in chosen) - redundancy * sum(
        s[i, j] for i in chosen for j in chosen
    )


@pytest.mark.parametrize("redundancy", [0, 0.3, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("memory", [2**30, 6_000])
def test_graph_cut_is_the_plain_greedy_algorithm(redundancy: float, memory: int) -> None:
    rows = (normal(6, 5)[np.arange(60) % 6] + 0.5 * normal(60, 5, seed=2)).astype(np.float32)
    index = check(coresets.graph_cut(torch.tensor(rows), keep=0.3, redundancy=redundancy, max_memory=memory), 60, 0.3)
    s = similarities(rows.astype(np.float64))
    for place, pick in enumerate(index):
        before = index[:place]
        values = {j: value(s, [*before, j], redundancy) for j in range(60) if j not in before}
        assert values[pick] == pytest.approx(max(values.values()), abs=1e-4)


def test_similarities_that_are_shifted_to_be_positive_make_the_same_picks() -> None:
    rows = normal(50, 4).astype(np.float32)
    index = coresets.graph_cut(torch.tensor(rows), keep=0.4, redundancy=0.7).index.tolist()
    s = (1 + similarities(rows.astype(np.float64))) / 2
    for place, pick in enumerate(index):
        values = {j: value(s, [*index[:place], j], 0.7) for j in range(50) if j not in index[:place]}
        assert values[pick] == pytest.approx(max(values.values()), abs=1e-4)


def test_each_class_is_cut_on_its_own() -> None:
    rows, labels = tensor(normal(90, 4)), torch.arange(90) % 3
    index = coresets.graph_cut(rows, keep=0.3, labels=labels, balance="class").index
    assert labels[index].tolist() == sorted(labels[index].tolist())
    for c in range(3):
        members = (labels == c).nonzero()[:, 0]
        alone = coresets.graph_cut(rows[members], keep=9).index
        assert index[labels[index] == c].tolist() == members[alone].tolist()


def test_a_shorter_coreset_begins_a_longer_one() -> None:
    rows = tensor(normal(80, 4))
    long = coresets.graph_cut(rows, keep=0.5).index
    assert torch.equal(coresets.graph_cut(rows, keep=0.2).index, long[:16])


@pytest.mark.parametrize("redundancy", [-0.1, math.nan, math.inf, True, "1"])
def test_a_wrong_redundancy_is_refused(redundancy: float) -> None:
    with pytest.raises(ValueError, match="redundancy is the weight of similar pairs, a number of at least 0"):
        coresets.graph_cut(torch.rand(4, 2), keep=0.5, redundancy=redundancy)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # submodlib asks scipy for names that are on their way out
def test_graph_cut_agrees_with_submodlib() -> None:
    reason = "the oracle for graph cut is not installed: pip install submodlib-py"
    submodlib = pytest.importorskip("submodlib", reason=reason, exc_type=ImportError)
    rows = normal(50, 4)
    function = submodlib.GraphCutFunction(
        n=50, mode="dense", lambdaVal=0.4, ggsijs=similarities(rows), separate_rep=False
    )
    expected = [i for i, _ in function.maximize(budget=10, optimizer="NaiveGreedy", show_progress=False)]
    assert coresets.graph_cut(torch.tensor(rows), keep=10, redundancy=0.4).index.tolist() == expected
