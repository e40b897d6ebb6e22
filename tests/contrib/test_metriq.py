"""MetriQ, against the paper's algorithm in plain Python."""

from __future__ import annotations

import numpy as np
import torch
from methods_under_test import CLASSES, signals

import dataprune
from dataprune import Key
from dataprune.contrib import GroupBook, error_quotas

SIZE, COUNT = 60, 36


def densities(sizes: list[int], recalls: list[float], density: float) -> list[float]:
    """Algorithm 1 of the paper: what a full class cannot take is handed to the others."""
    unsaturated, excess = set(range(len(sizes))), density * sum(sizes)
    result = [0.0] * len(sizes)
    while excess > 1e-9:
        scale = sum(sizes[k] * (1 - recalls[k]) for k in unsaturated) / excess
        for k in sorted(unsaturated):
            added = (1 - recalls[k]) / scale
            result[k] += added
            excess -= sizes[k] * added
            if result[k] > 1:
                unsaturated.remove(k)
                excess += sizes[k] * (result[k] - 1)
                result[k] = 1.0
    return result


def test_classes_have_places_by_their_errors() -> None:
    pruner = dataprune.metriq(SIZE, keep=COUNT / SIZE, epochs=12)
    right: list[float] = [0.0] * SIZE
    last, full = list(range(SIZE)), 0
    for epoch in range(12):
        index = pruner.select(epoch).index
        if epoch:
            drawn = [[right[i] for i in last if i % CLASSES == k] for k in range(CLASSES)]
            recalls = [1 - (values.count(0.0) + 1) / (len(values) + 2) for values in drawn]
            sizes = [SIZE // CLASSES] * CLASSES
            wanted = [n * d for n, d in zip(sizes, densities(sizes, recalls, COUNT / SIZE))]
            counts = torch.bincount(index % CLASSES, minlength=CLASSES).tolist()
            assert all(np.floor(w - 1e-6) <= count <= np.ceil(w + 1e-6) for w, count in zip(wanted, counts))
            full += max(counts) == SIZE // CLASSES
            last = index.tolist()
        losses, logits, targets = signals(epoch, index)
        logits += 5 * torch.nn.functional.one_hot(targets, CLASSES) * (targets < 4)[:, None]
        pruner.update(index, losses, logits, targets)
        for sample, correct in zip(index.tolist(), (logits.argmax(1) == targets).float().tolist()):
            right[sample] = correct
    assert full  # a class was taken whole, so that others had its rest


def test_a_class_is_drawn_from_uniformly() -> None:
    book, hits, trials = GroupBook(20), np.zeros(20), 1000
    correct = torch.arange(20) % 3 == 0
    book.record(torch.arange(20), torch.stack([correct.float(), torch.zeros(20)], dim=1))
    for seed in range(trials):
        hits[error_quotas()(book, 5, Key(seed, 2)).numpy()] += 1
    assert np.abs(hits / trials - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / trials)
