"""Herding against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_features import check, normal, tensor

from dataprune import coresets


def herding_by_hand(rows: np.ndarray, index: list[int], tolerance: float) -> None:
    """Each choice minimises ‖(i + 1)·μ − Σ chosen − h‖ over what is left."""
    mean, total = rows.mean(axis=0), np.zeros(rows.shape[1])
    left = set(range(len(rows)))
    for i, choice in enumerate(index):
        value = {j: float(np.linalg.norm((i + 1) * mean - total - rows[j])) for j in left}
        assert value[choice] <= min(value.values()) + tolerance
        left.remove(choice)
        total += rows[choice]


@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("kind", ["normal", "duplicates"])
def test_herding_equals_its_definition(shift: float, kind: str) -> None:
    rows = normal(120, 6)
    if kind == "duplicates":
        rows = rows[np.arange(120) // 8]
    rows = (rows + shift).astype(np.float32)
    labels = np.array([0] * 60 + [4] * 40 + [9] * 20)
    order = np.random.default_rng(1).permutation(120)
    rows, labels = rows[order], labels[order]
    index = check(coresets.herding(torch.tensor(rows), keep=0.25, labels=torch.tensor(labels), seed=5), 120, 0.25)
    assert labels[index].tolist() == [0] * 15 + [4] * 10 + [9] * 5  # every class keeps its share
    for c in (0, 4, 9):
        members = np.flatnonzero(labels == c).tolist()
        herding_by_hand(rows[members].astype(np.float64), [members.index(i) for i in index if labels[i] == c], 1e-4)


def test_herding_keeps_the_mean_better_than_chance() -> None:
    rows = tensor(normal(500, 10))
    labels = torch.zeros(500).int()
    selections = [coresets.herding(rows, keep=0.1, labels=labels)]
    selections += [coresets.random(500, keep=0.1, seed=seed) for seed in range(100)]
    herded, *chance = (float((rows[selection.index].mean(dim=0) - rows.mean(dim=0)).norm()) for selection in selections)
    assert herded < sum(chance) / len(chance) / 10


def test_herding_gives_equal_places_where_asked() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    index = coresets.herding(torch.rand(40, 3), keep=0.5, labels=labels, balance="class").index
    assert torch.bincount(labels[index]).tolist() == [10, 10]


def test_odd_places_go_to_the_largest_fractions() -> None:
    labels = torch.tensor([0] * 11 + [1] * 9 + [2] * 10)  # of 4 places 1.47, 1.2 and 1.33
    for seed in range(5):
        index = coresets.herding(torch.rand(30, 3), keep=4 / 30, labels=labels, seed=seed).index
        assert torch.bincount(labels[index]).tolist() == [2, 1, 1]
