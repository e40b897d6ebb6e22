"""Semantic deduplication against its definition: all pairs of a cluster, in loops."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from coreset_features import check, normal, tensor

from dataprune import UsageError, coresets
from dataprune.contrib.coresets import _k_means, _semdedup


def survivors(rows: np.ndarray, clusters: list[int], centroids: np.ndarray, prefer: str, eps: float) -> set[int]:
    """Samples that are left when, in each cluster, all that are within eps of an earlier one are dropped."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    left = set(range(len(rows)))
    for number, centroid in enumerate(centroids):
        members = [i for i in range(len(rows)) if clusters[i] == number]
        members.sort(key=lambda i: float(unit[i] @ centroid), reverse=prefer == "easy")
        for place, i in enumerate(members):
            if any(float(unit[i] @ unit[j]) > 1 - eps for j in members[:place]):
                left.discard(i)
    return left


@pytest.mark.parametrize("prefer", ["hard", "easy"])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("block", [16, 1024])
def test_what_is_kept_is_what_the_solved_threshold_leaves(
    prefer: str, keep: float, block: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_semdedup, "_BLOCK", block)
    rows = (normal(8, 6)[np.arange(160) % 8] + 0.4 * normal(160, 6, seed=1)).astype(np.float32)
    with caplog.at_level(logging.INFO, "dataprune.coresets"):
        index = check(coresets.semdedup(torch.tensor(rows), keep=keep, clusters=5, prefer=prefer, seed=3), 160, keep)
    eps = float(caplog.text.split("eps is ")[1].split()[0])
    found = _k_means.cluster(_k_means.Rows.of(torch.tensor(rows), 160, cosine=True), 5, 160, 3)
    expected = survivors(rows.astype(np.float64), found.cluster.tolist(), found.centroids.numpy(), prefer, eps - 1e-6)
    assert set(index) == expected


def test_of_copies_one_is_left() -> None:
    rows = np.repeat(normal(30, 5), 4, axis=0)
    for prefer in ("hard", "easy", "random"):
        index = check(coresets.semdedup(tensor(rows), keep=30, clusters=4, prefer=prefer), 120, 0.25)
        assert {i // 4 for i in index} == set(range(30))


def test_which_copy_is_left_is_random() -> None:
    rows = tensor(np.repeat(normal(10, 5), 4, axis=0))
    for prefer in ("hard", "random"):
        kept = [coresets.semdedup(rows, keep=10, prefer=prefer, seed=seed).index % 4 for seed in range(100)]
        shares = torch.bincount(torch.cat(kept), minlength=4) / 1000
        assert float((shares - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 1000) ** 0.5


def test_hard_keeps_the_sample_farther_from_the_centroid() -> None:
    angles = torch.tensor([0.0, 0.05, 0.4, 0.45])  # the centroid is at 0.225: of each pair the outer one is farther
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert coresets.semdedup(rows, keep=2, clusters=1).index.tolist() == [0, 3]
    assert coresets.semdedup(rows, keep=2, clusters=1, prefer="easy").index.tolist() == [1, 2]


def test_classes_have_equal_places() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    index = coresets.semdedup(tensor(normal(40, 3)), keep=12, labels=labels, balance="class").index
    assert torch.bincount(labels[index]).tolist() == [6, 6]


def test_an_unknown_preference_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'hard'"):
        coresets.semdedup(torch.rand(4, 2), keep=0.5, prefer="hrd")  # type: ignore[arg-type]
