"""k-center against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_features import (
    COVERINGS,
    SELECTORS,
    check,
    divergence,
    euclid,
    follows_the_farthest,
    normal,
    probabilities,
    tensor,
)

from dataprune import coresets
from dataprune.coresets import _k_center


@pytest.mark.parametrize("candidates", [1, 7, 1024])
@pytest.mark.parametrize("shape", ["normal", "clusters", "line", "far"])
def test_k_center_picks_the_farthest(candidates: int, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_k_center, "_CANDIDATES", candidates)
    monkeypatch.setattr(_k_center, "_LEADERS", max(1, candidates // 16))
    rows = {
        "normal": normal(400, 16),
        "clusters": 20 * normal(10, 16)[np.arange(400) % 10] + 0.1 * normal(400, 16, seed=1),
        "line": normal(400, 1) @ normal(1, 16, seed=1),
        "far": 1000 + normal(400, 16),  # far from the origin: norms are of no use uncentred
    }[shape].astype(np.float32)
    index = check(coresets.k_center(torch.tensor(rows), keep=0.3, seed=1), 400, 0.3)
    scale = euclid(rows.astype(np.float64), rows.mean(axis=0, dtype=np.float64)).max()
    follows_the_farthest(index, rows.astype(np.float64), euclid, 2e-6 * scale if shape != "clusters" else 1e-4)


def test_k_center_resolves_distances_that_float32_cannot() -> None:
    """Two far clusters whose inner distances drown in the rounding of float32 squares."""
    inner = 1e-2 * normal(200, 8)
    rows = inner + np.where(np.arange(200)[:, None] < 100, 512.0, -512.0)
    rows = np.round(rows * 2**13) / 2**13  # what float32 can hold there
    index = check(coresets.k_center(tensor(rows), keep=0.5, first=0), 200, 0.5)
    follows_the_farthest(index, rows, euclid, 1e-8)


def test_k_center_takes_duplicates_last() -> None:
    rows = np.repeat(normal(30, 5), 4, axis=0)
    index = check(coresets.k_center(tensor(rows), keep=0.5, seed=2), 120, 0.5)
    assert {i // 4 for i in index[:30]} == set(range(30))


def test_k_center_starts_at_first_and_grows_by_keep() -> None:
    features = tensor(normal(100, 4))
    long = coresets.k_center(features, keep=0.5, first=17).index
    assert int(long[0]) == 17
    assert torch.equal(coresets.k_center(features, keep=0.2, first=17).index, long[:20])
    assert len({int(coresets.k_center(features, keep=0.01, seed=seed).index) for seed in range(50)}) > 20


@pytest.mark.parametrize("name", COVERINGS)
def test_covering_per_class_is_covering_each_class(name: str) -> None:
    rows, labels = normal(90, 4).astype(np.float32), np.arange(90) % 3
    index = SELECTORS[name](torch.tensor(rows), keep=0.3, labels=torch.tensor(labels), balance="class").index.numpy()
    assert labels[index].tolist() == sorted(labels[index].tolist())
    for c in range(3):
        members = np.flatnonzero(labels == c)
        picks = [members.tolist().index(i) for i in index if labels[i] == c]
        assert len(picks) == 9
        space = rows[members].astype(np.float64)
        if name == "k_center":
            follows_the_farthest(picks, space, euclid, 1e-4)
        else:
            follows_the_farthest(picks, probabilities(space), divergence, 1e-4)


def test_k_center_leaves_the_switch_for_coarse_products_alone() -> None:
    rows = 100 + normal(200, 16)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        index = coresets.k_center(tensor(rows), keep=0.2).index.tolist()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    follows_the_farthest(index, rows, euclid, 1e-3)


@pytest.mark.parametrize("first", [-1, 10, 1.0, True])
def test_first_is_a_position(first: int) -> None:
    with pytest.raises(ValueError, match=r"first is the position of a sample, in \[0, 9\]"):
        coresets.k_center(torch.rand(10, 2), keep=0.5, first=first)


def test_first_and_classes_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="first"):
        coresets.k_center(torch.rand(10, 2), keep=0.5, first=0, labels=torch.arange(10) % 2, balance="class")
