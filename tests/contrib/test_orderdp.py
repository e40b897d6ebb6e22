"""OrderDP, against the rule in plain Python and the probabilities that it implies."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from methods_under_test import signals

import dataprune
from dataprune import Key, ScoreBook
from dataprune.contrib import random_then_top

SIZE = 40


def test_of_the_highest_hashes_the_highest_scores() -> None:
    pruner = dataprune.orderdp(SIZE, keep=0.3, epochs=6, share=0.6, seed=5)
    scores: dict[int, float] = {}
    for epoch in range(6):
        hashes = [value % (1 << 64) for value in Key(5, epoch).hash(torch.arange(SIZE)).tolist()]
        drawn = sorted(range(SIZE), key=hashes.__getitem__)[-24:]
        expected = sorted(drawn, key=scores.__getitem__)[-12:] if epoch else range(SIZE)
        index = pruner.select(epoch).index
        assert index.tolist() == sorted(expected)
        losses, logits, targets = signals(epoch, index)
        pruner.update(index, losses, logits, targets)
        scores |= zip(index.tolist(), losses.tolist())


def test_a_sample_is_selected_with_the_probability_of_its_rank() -> None:
    """Of n samples s are drawn; the one of rank j is among the q highest if at most q - 1 of those above it are."""
    n, s, q, trials = 20, 16, 6, 2000
    book = ScoreBook(n)
    book.score = torch.arange(n, 0, -1).float()  # rank = position
    policy = random_then_top(s / n)
    hits = np.zeros(n)
    for seed in range(trials):
        hits[policy(book, q, Key(seed, 3)).numpy()] += 1
    expected = [sum(comb(j, k) * comb(n - 1 - j, s - 1 - k) for k in range(q)) / comb(n, s) for j in range(n)]
    assert sum(expected) == pytest.approx(q)
    assert np.abs(hits / trials - expected).max() < 4 * 0.5 / np.sqrt(trials)


def test_memory_ranks_by_the_entropy() -> None:
    pruner = dataprune.orderdp(SIZE, keep=0.5, epochs=4, share=1.0, criterion="memory")
    losses, logits, targets = signals(0, torch.arange(SIZE))
    pruner.select(0)
    pruner.update(torch.arange(SIZE), losses, logits, targets)
    p = logits.double().softmax(1).numpy()
    entropies = -(p * np.log(p)).sum(1)
    assert pruner.select(1).index.tolist() == sorted(np.argsort(entropies)[SIZE // 2 :].tolist())


def test_above_the_share_all_is_random() -> None:
    pruners = [dataprune.orderdp(SIZE, keep=0.8, epochs=4, share=0.5) for _ in range(2)]
    for sign, pruner in zip((1, -1), pruners):
        pruner.update(pruner.select(0).index, sign * torch.arange(SIZE).float())
    assert pruners[0].select(1).index.tolist() == pruners[1].select(1).index.tolist()


def test_arguments_out_of_range() -> None:
    for share in (0, 1.1, True):
        with pytest.raises(ValueError, match=r"drawn at random, in \(0, 1\], got"):
            dataprune.orderdp(SIZE, keep=0.3, epochs=4, share=share)
    with pytest.raises(ValueError, match="unknown criterion 'memoy'; did you mean 'memory'"):
        dataprune.orderdp(SIZE, keep=0.3, epochs=4, criterion="memoy")  # type: ignore[arg-type]
