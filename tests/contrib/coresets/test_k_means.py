"""k-means against Lloyd's algorithm in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_features import normal, tensor

from dataprune.contrib.coresets import _k_means


def lloyd(rows: np.ndarray, start: list[int], cosine: bool) -> tuple[list[int], np.ndarray]:
    """The cluster of each row, and the centroids; no cluster may become empty."""
    centroids, before = rows[start], [-1]
    while True:
        gaps = [[((row - centroid) ** 2).sum() for centroid in centroids] for row in rows]
        assigned = [int(np.argmin(gap)) for gap in gaps]
        if assigned == before:
            return assigned, centroids
        before = assigned
        centroids = np.stack([rows[[a == c for a in assigned]].mean(axis=0) for c in range(len(start))])
        if cosine:
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk", [7, 200])
def test_clusters_are_those_of_the_definition(cosine: bool, seed: int, chunk: int) -> None:
    rows = 3 * normal(5, 4)[np.arange(200) % 5] + normal(200, 4, seed=seed + 1)
    if not cosine:
        rows += 1000  # far from the origin: squares would drown the differences
    values = tensor(rows)
    space = values.double().numpy()
    space = space / np.linalg.norm(space, axis=1, keepdims=True) if cosine else space - space.mean(axis=0)
    start = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:6].tolist()
    assigned, centroids = lloyd(space, start, cosine)
    found = _k_means.cluster(_k_means.Rows.of(values, chunk, cosine=cosine), 6, chunk, seed)
    assert found.cluster.tolist() == assigned
    np.testing.assert_allclose(found.centroids.numpy(), centroids, atol=1e-5)
    own = centroids[assigned]
    distance = 1 - (space * own).sum(axis=1) if cosine else np.linalg.norm(space - own, axis=1)
    np.testing.assert_allclose(found.distance.numpy(), distance, atol=1e-5)


def test_an_empty_cluster_starts_again_at_a_sample_far_from_its_own() -> None:
    rows = torch.tensor([[0.0, 1.0]] * 40 + [[5.0, 5.0]] + [[9.0, 1.0]] * 40)
    space = _k_means.Rows.of(rows, 81, cosine=False)
    for seed in range(20):  # most draws are of one or two of the three places
        found = _k_means.cluster(space, 3, 81, seed)
        assert len(found.cluster.unique()) == 3 and float(found.distance.max()) < 1e-5


@pytest.mark.parametrize("cosine", [True, False])
def test_equal_samples_are_one_cluster(cosine: bool) -> None:
    space = _k_means.Rows.of(torch.full((30, 3), 0.7), 30, cosine=cosine)
    found = _k_means.cluster(space, 5, 30, 0)
    assert len(found.cluster.unique()) == 1 and float(found.distance.abs().max()) < 1e-6


def test_the_number_of_clusters() -> None:
    assert [_k_means.count_of(None, size) for size in (1, 2, 9, 10, 8000)] == [1, 2, 3, 4, 90]
    assert _k_means.count_of(None, 50, 10) == 10 and _k_means.count_of(None, 5, 10) == 5
    assert _k_means.count_of(7, 50, 10) == 7
    with pytest.raises(ValueError, match="clusters is how many clusters 5 samples have, at most as many, got 6"):
        _k_means.count_of(6, 5)
    for clusters in (0, 2.0, True):
        with pytest.raises(ValueError, match="clusters must be a whole number of at least 1"):
            _k_means.count_of(clusters, 5)  # type: ignore[arg-type]
