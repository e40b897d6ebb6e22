"""RCAP, against the rule in plain Python and the probabilities of drawing one after another."""

from __future__ import annotations

from itertools import permutations
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from class_places import filled_up
from methods_under_test import CLASSES, signals

import dataprune
from dataprune import Key
from dataprune.contrib import GroupBook, loss_quotas

SIZE = 60


def within(losses: dict[int, float], beta: float) -> dict[int, float]:
    """Softmax over a class of the losses, which count up to the logarithm of the number of classes."""
    odds = {i: exp(min(loss, log(CLASSES)) / beta) for i, loss in losses.items()}
    return {i: value / sum(odds.values()) for i, value in odds.items()}


def test_classes_have_places_by_the_loss_that_was_drawn() -> None:
    pruner = dataprune.rcap(SIZE, keep=0.4, epochs=12, beta=0.5)
    losses, last, uneven = [0.0] * SIZE, list(range(SIZE)), 0
    for epoch in range(12):
        index = pruner.select(epoch).index
        if epoch:
            shares = []
            for label in range(CLASSES):
                members = [i for i in range(SIZE) if i % CLASSES == label]
                share = within({i: losses[i] for i in members}, 0.5)
                shares.append(sqrt(sum(share[i] for i in last if i in share) * len(members) / SIZE))
            wanted = filled_up(shares, [SIZE // CLASSES] * CLASSES, 24)
            counts = torch.bincount(index % CLASSES, minlength=CLASSES).tolist()
            assert all(np.floor(w - 1e-6) <= count <= np.ceil(w + 1e-6) for w, count in zip(wanted, counts))
            uneven += max(counts) - min(counts) > 1
            last = index.tolist()
        new, logits, targets = signals(epoch, index)
        pruner.update(index, new, logits, targets)
        for sample, loss in zip(index.tolist(), new.tolist()):
            losses[sample] = loss
    assert uneven  # else the shares were not told apart


def test_samples_of_a_class_are_drawn_one_after_another_by_their_softmax() -> None:
    losses, count, beta, trials = [0.1, 0.4, 0.0, 0.69], 2, 0.3, 3000
    book = GroupBook(5)
    new = torch.tensor([[*losses, 0.5], [0.0, 0.0, 0.0, 0.0, 1.0]]).T  # a second class of one sample
    book.record(torch.arange(5), new)
    book.draw(torch.tensor([0, 1, 2, 3]))
    odds = [exp(loss / beta) for loss in losses]
    expected = np.zeros(4)
    for order in permutations(range(4), count):
        left, chance = sum(odds), 1.0
        for i in order:
            chance *= odds[i] / left
            left -= odds[i]
        expected[list(order)] += chance
    hits = np.zeros(5)
    drawn = 0
    for seed in range(trials):
        index = loss_quotas(beta=beta)(book, 3, Key(seed, 1)).numpy()
        if 4 in index:  # then two of the first class
            hits[index] += 1
            drawn += 1
    assert drawn > trials // 3
    assert np.abs(hits[:4] / drawn - expected).max() < 4 * 0.5 / np.sqrt(drawn)


def test_a_class_that_was_not_drawn_comes_back() -> None:
    pruner = dataprune.rcap(40, keep=0.05, epochs=60)  # two places for four classes
    seen: set[int] = set()
    for epoch in range(60):
        index = pruner.select(epoch).index
        if epoch >= 30:
            seen |= set((index % 4).tolist())
        pruner.update(index, torch.rand(len(index), generator=torch.Generator().manual_seed(epoch)), None, index % 4)
    assert seen == {0, 1, 2, 3}


def test_a_low_temperature_takes_the_highest_losses() -> None:
    pruner = dataprune.rcap(40, keep=0.5, epochs=4, beta=1e-6, clip=100.0)
    index = pruner.select(0).index
    pruner.update(index, index.float(), None, index % 2)
    assert pruner.select(1).index.tolist() == list(range(20, 40))


def test_arguments_out_of_range() -> None:
    for beta in (0, -1.0, float("inf"), float("nan"), True):
        with pytest.raises(ValueError, match="beta is the temperature of a softmax, a positive number, got"):
            dataprune.rcap(SIZE, keep=0.3, epochs=4, beta=beta)
    with pytest.raises(ValueError, match="clip is the highest loss that counts, at least 0, got -1"):
        dataprune.rcap(SIZE, keep=0.3, epochs=4, clip=-1)
