"""SeTa, against k-means by trying all clusterings, and against the rule in plain Python."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from methods_under_test import signals

import dataprune
from dataprune import Key, ScoreBook
from dataprune.contrib import sliding_window
from dataprune.contrib._seta import borders

SIZE = 24


def squared(values: list[float]) -> float:
    """Sum of squared distances from the mean."""
    return sum((value - sum(values) / len(values)) ** 2 for value in values)


def clustered(values: list[float], clusters: int) -> list[int]:
    """The cluster of every value, by trying all places of the borders."""
    order = sorted(range(len(values)), key=values.__getitem__)

    def cost(cuts: tuple[int, ...]) -> float:
        ends = [0, *cuts, len(order)]
        return sum(squared([values[i] for i in order[a:b]]) for a, b in pairwise(ends))

    best = min(combinations(range(1, len(order)), clusters - 1), key=cost)
    place = {sample: rank for rank, sample in enumerate(order)}
    return [sum(place[i] >= cut for cut in best) for i in range(len(values))]


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_clusters_have_the_least_squared_distances(scale: float) -> None:
    for seed in range(5):
        values = np.exp(scale * np.random.default_rng(seed).standard_normal(14)).astype(np.float32)
        values[3] = np.nan  # unseen
        known = values[~np.isnan(values)]
        found = np.searchsorted(borders(values, 4), known).tolist()
        assert found == clustered(known.tolist(), 4)


@pytest.mark.parametrize("size", [5_000, 3_000_000])
def test_of_many_scores_each_is_nearest_to_the_mean_of_its_own_cluster(size: int) -> None:
    values = np.random.default_rng(0).gamma(0.3, size=size).astype(np.float32)
    cluster = np.searchsorted(borders(values, 10), values)
    means = np.array([values[cluster == number].mean(dtype=np.float64) for number in range(10)])
    nearest = np.abs(values[:100_000, None] - means).argmin(axis=1)
    assert (nearest != cluster[:100_000]).mean() < 0.005  # cells of neighbours stay together


def test_equal_and_few_scores() -> None:
    for values in ([2.0] * 2000, [2.0] * 3, [1.0, 2.0], [np.nan], []):
        array = np.array(values, dtype=np.float32)
        edges = borders(array, 10)
        assert len(edges) == 9 and (np.diff(edges[np.isfinite(edges)]) >= 0).all()
        cluster = np.searchsorted(edges, array[~np.isnan(array)])
        assert len(set(cluster.tolist())) == len(set(array[~np.isnan(array)].tolist()))


def test_the_window_slides_over_the_clusters_and_begins_again() -> None:
    count = 6
    pruner = dataprune.seta(SIZE, keep=count / SIZE, epochs=10, clusters=4, window=0.5, partial_anneal=0.2)
    losses = [0.0] * SIZE
    sizes = set()
    for epoch in range(10):
        index = pruner.select(epoch).index
        if 0 < epoch < 8:
            assert len(index) == count
            cluster = clustered(losses, 4)
            window = {(epoch % 3) + step for step in range(2)}
            outside = [min(abs(number - other) for other in window) for number in cluster]
            nearest = sorted(outside)[:count]  # the window, and only where that is too small its neighbours
            assert sorted(outside[i] for i in index.tolist()) == nearest
            sizes.add(outside.count(0) >= count)
        new, logits, targets = signals(epoch, index)
        pruner.update(index, new, logits, targets)
        for sample, loss in zip(index.tolist(), new.tolist()):
            losses[sample] = loss
    assert sizes == {True, False}  # both cases occurred


def test_a_window_is_drawn_from_uniformly() -> None:
    book, policy, hits, trials = ScoreBook(20), sliding_window(clusters=2, window=0.5), np.zeros(20), 1000
    book.score = torch.cat([torch.arange(12.0), 100 + torch.arange(8.0)])  # two clusters
    for seed in range(trials):
        hits[policy(book, 4, Key(seed, 2)).numpy()] += 1
    assert hits[12:].sum() == 0
    assert np.abs(hits[:12] / trials - 1 / 3).max() < 4 * np.sqrt(2 / 9 / trials)


def test_the_last_epochs_draw_from_all() -> None:
    pruners = [dataprune.seta(SIZE, keep=0.25, epochs=8, partial_anneal=0.25) for _ in range(2)]
    for sign, pruner in zip((1, -1), pruners):
        for epoch in range(6):
            index = pruner.select(epoch).index
            pruner.update(index, sign * index.float())
    assert pruners[0].select(5).index.tolist() != pruners[1].select(5).index.tolist()
    for epoch in (6, 7):
        selected = [pruner.select(epoch).index for pruner in pruners]
        assert torch.equal(*selected)
        for pruner, index in zip(pruners, selected):
            pruner.update(index, index.float())


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="clusters must be a whole number of at least 1"):
        dataprune.seta(SIZE, keep=0.3, epochs=4, clusters=0)
    with pytest.raises(ValueError, match=r"window is a share of the clusters, in \(0, 1\], got 1\.5"):
        dataprune.seta(SIZE, keep=0.3, epochs=4, window=1.5)
    with pytest.raises(ValueError, match=r"window=0\.01 of 10 clusters is none of them"):
        dataprune.seta(SIZE, keep=0.3, epochs=4, window=0.01)
    with pytest.raises(ValueError, match=r"partial_anneal is a share .* in \[0, 1\], got 2"):
        dataprune.seta(SIZE, keep=0.3, epochs=4, partial_anneal=2)
