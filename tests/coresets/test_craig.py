"""CRAIG against the plain greedy algorithm on stored gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_gradients import problem, stored

from dataprune import coresets
from dataprune.coresets._craig import _cover, _Distances


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("memory", [2**30, 30_000])
def test_craig_is_the_plain_greedy_algorithm(seed: int, memory: int) -> None:
    errors, features, labels = problem(seed, 120, classes=2)
    g = stored(errors, features)
    distance = np.linalg.norm(g[:, None] - g[None], axis=2)
    everyone = torch.arange(120)
    chosen, sizes = _cover(_Distances(errors, features, everyone, True, memory), 30)
    picks = chosen.tolist()
    for place, pick in enumerate(picks):
        costs = [distance[:, [*picks[:place], j]].min(1).sum() for j in range(120)]
        # mutual neighbours gain the same, so that the best sample is not the only one
        assert costs[pick] == pytest.approx(min(costs), rel=1e-9)
    assert sizes.tolist() == np.bincount(distance[:, picks].argmin(1), minlength=30).tolist()

    selection = coresets.craig(errors, features, keep=0.25, labels=labels, max_memory=memory)
    for label in (0, 1):
        members = everyone[labels == label]
        picks = selection.index[labels[selection.index] == label]
        expected = np.bincount(distance[members][:, picks].argmin(1), minlength=15)
        assert selection.weight[labels[selection.index] == label].tolist() == expected.tolist()
    assert selection.weight.sum() == 120


@pytest.mark.parametrize("memory", [2**30, 30_000])
def test_craig_goes_on_from_a_pool(memory: int) -> None:
    errors, features, labels = problem(0, 90)
    whole = coresets.craig(errors, features, keep=30, labels=labels)
    pool = coresets.craig(errors, features, keep=12, labels=labels).index.tolist()
    assert set(pool) < set(whole.index.tolist())  # greedy: the first picks
    beside = coresets.craig(errors, features, keep=18, labels=labels, chosen=pool, max_memory=memory)
    assert sorted([*beside.index.tolist(), *pool]) == whole.index.tolist()
    at = torch.isin(whole.index, beside.index)
    assert torch.equal(beside.weight, whole.weight[at])


def test_craig_stores_distances_only_where_they_fit() -> None:
    errors, features, _ = problem(0, 60)
    assert _Distances(errors, features, torch.arange(60), True, 2**30).matrix is not None
    assert _Distances(errors, features, torch.arange(60), True, 30_000).matrix is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # submodlib asks scipy for names that are on their way out
def test_craig_agrees_with_submodlib(seed: int) -> None:
    reason = "the oracle for facility location is not installed: pip install submodlib-py"
    submodlib = pytest.importorskip("submodlib", reason=reason, exc_type=ImportError)
    errors, features, _ = problem(seed, 50)
    g = stored(errors, features)
    distance = np.linalg.norm(g[:, None] - g[None], axis=2)
    likeness = distance.max() - distance
    function = submodlib.FacilityLocationFunction(n=50, mode="dense", sijs=likeness, separate_rep=False)
    expected = [i for i, _ in function.maximize(budget=10, optimizer="NaiveGreedy", show_progress=False)]
    index = coresets.craig(errors, features, keep=0.2, labels=torch.zeros(50, dtype=torch.int64)).index.tolist()
    assert likeness[:, index].max(1).sum() == pytest.approx(likeness[:, expected].max(1).sum(), rel=1e-5)
    assert len(set(index) & set(expected)) >= 8  # mutual neighbours are alike to the gain
