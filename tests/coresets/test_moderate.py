"""Moderate coreset against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_features import check, normal

from dataprune import coresets


@pytest.mark.parametrize("center", ["mean", "median"])
@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize("size", [60, 61])
def test_moderate_equals_its_definition(center: str, balance: str, size: int) -> None:
    rows, labels = normal(size, 5).astype(np.float32), np.random.default_rng(3).integers(0, 3, size) * 2
    index = check(
        coresets.moderate(
            torch.tensor(rows),
            keep=0.3,
            labels=torch.tensor(labels),
            center=center,
            balance=balance,  # type: ignore[arg-type]
        ),
        size,
        0.3,
    )
    distance = np.zeros(size)
    for c in (0, 2, 4):
        members = rows[labels == c].astype(np.float64)
        middle = np.mean(members, axis=0) if center == "mean" else np.median(members, axis=0)
        distance[labels == c] = np.linalg.norm(members - middle, axis=1)
    groups = [np.arange(size)] if balance == "none" else [np.flatnonzero(labels == c) for c in (0, 2, 4)]
    for group in groups:
        places = len(set(index) & set(group.tolist()))
        away = np.abs(distance[group] - np.median(distance[group]))
        assert set(index) & set(group.tolist()) == set(group[np.argsort(away)[:places]].tolist())
        if balance == "class":
            assert places in (6, 7)
            assert len(index) == 18 or size == 61


def test_moderate_names_a_wrong_centre() -> None:
    with pytest.raises(ValueError, match="center"):
        coresets.moderate(torch.rand(4, 2), keep=0.5, labels=torch.zeros(4).int(), center="middle")  # type: ignore[arg-type]
