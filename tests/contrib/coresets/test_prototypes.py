"""Prototypes against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_features import check, normal, tensor

from dataprune import UsageError, coresets
from dataprune.contrib.coresets import _k_means


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("prefer", ["hard", "easy"])
def test_the_farthest_or_the_nearest_are_kept(distance: str, prefer: str) -> None:
    rows = 3 * normal(5, 4)[np.arange(200) % 5] + normal(200, 4, seed=1)
    cosine = distance == "cosine"
    index = check(coresets.prototypes(tensor(rows), keep=0.3, clusters=5, prefer=prefer, distance=distance), 200, 0.3)
    found = _k_means.cluster(_k_means.Rows.of(tensor(rows), 200, cosine=cosine), 5, 200, 0)
    space = rows / np.linalg.norm(rows, axis=1, keepdims=True) if cosine else rows - rows.mean(axis=0)
    centroids = found.centroids.double().numpy()
    nearest = []
    for row in space:
        every = [1 - float(row @ c) if cosine else float(np.linalg.norm(row - c)) for c in centroids]
        nearest.append(min(every))
    order = sorted(range(200), key=lambda i: nearest[i], reverse=prefer == "hard")
    assert set(index) == set(order[:60])


def test_there_are_as_many_clusters_as_classes_unless_told() -> None:
    rows, labels = tensor(normal(60, 4)), torch.arange(60) % 3
    by_class = coresets.prototypes(rows, keep=0.2, labels=labels).index
    assert torch.equal(by_class, coresets.prototypes(rows, keep=0.2, clusters=3).index)
    assert torch.equal(coresets.prototypes(rows, keep=0.2).index, coresets.prototypes(rows, keep=0.2, clusters=8).index)


def test_classes_have_equal_places() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    index = coresets.prototypes(tensor(normal(40, 3)), keep=12, labels=labels, balance="class").index
    assert torch.bincount(labels[index]).tolist() == [6, 6]


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown distance"):
        coresets.prototypes(torch.rand(4, 2), keep=0.5, distance="manhattan")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown prefer"):
        coresets.prototypes(torch.rand(4, 2), keep=0.5, prefer="random")  # type: ignore[arg-type]
