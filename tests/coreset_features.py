"""Test data for selectors from features, and slow references of the greedy coverings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch

from dataprune import Selection, coresets

SELECTORS: dict[str, Callable[..., Selection]] = {
    "moderate": coresets.moderate,
    "k_center": coresets.k_center,
    "herding": coresets.herding,
    "contextual_diversity": coresets.contextual_diversity,
    "semdedup": coresets.semdedup,
    "prototypes": coresets.prototypes,
    "graph_cut": coresets.graph_cut,
}
COVERINGS = ["k_center", "contextual_diversity"]
NEED_LABELS = ["moderate", "herding"]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32)


def check(selection: Selection, size: int, keep: float) -> list[int]:
    index, weight = selection.index, selection.weight
    assert index.dtype == torch.int64
    assert torch.equal(weight, torch.ones(len(index)))
    assert len(index) == len(set(index.tolist())) == max(1, math.floor(keep * size + 0.5))
    assert 0 <= int(index.min()) <= int(index.max()) < size
    return index.tolist()


def euclid(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    return ((rows - row) ** 2).sum(axis=1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.maximum(e / e.sum(axis=1, keepdims=True), 1e-12)


def divergence(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """KL(p‖q) + KL(q‖p) of probabilities."""
    return (rows * np.log(rows / row) + row * np.log(row / rows)).sum(axis=1)


def follows_the_farthest(index: list[int], rows: np.ndarray, distance: Callable, tolerance: float) -> None:
    """Each pick is one of those that are farthest from the picks before it."""
    nearest = np.full(len(rows), np.inf)
    nearest[index[0]] = -np.inf
    for before, pick in itertools.pairwise(index):
        nearest = np.minimum(nearest, distance(rows, rows[before]))
        nearest[index[: index.index(pick)]] = -np.inf
        assert nearest[pick] >= nearest.max() - tolerance
