"""KAKURENBO, against the rule in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods_under_test import SIZE, signals

import dataprune
from dataprune.contrib import hide_lowest, loss_and_certainty


def certain(logits: np.ndarray, target: int, confidence: float) -> bool:
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return int(p.argmax()) == target and p.max() >= confidence


@pytest.mark.parametrize("confidence", [0.7, 0.3])
def test_the_lowest_losses_are_hidden_unless_wrong_or_uncertain(confidence: float) -> None:
    epochs, count = 10, int(0.4 * SIZE + 0.5)
    pruner = dataprune.kakurenbo(SIZE, keep=0.4, epochs=epochs, confidence=confidence)
    losses, sure = [0.0] * SIZE, [False] * SIZE
    hidden_once = set()
    for epoch in range(epochs):
        index = pruner.select(epoch).index.tolist()
        lowest = sorted(range(SIZE), key=losses.__getitem__)[: SIZE - count] if epoch else []
        hidden = {i for i in lowest if sure[i]}
        assert index == sorted(set(range(SIZE)) - hidden)
        assert len(index) >= count
        hidden_once |= hidden
        for batch in [*pruner.batches(epoch, 8, drop_last=False), *pruner.left_out(epoch, 16)]:
            pruner.update(batch, *signals(epoch, batch))
        new, logits, targets = signals(epoch, torch.arange(SIZE))
        losses = new.tolist()
        sure = [certain(logits[i].double().numpy(), int(targets[i]), confidence) for i in range(SIZE)]
    assert hidden_once


def test_a_share_that_falls_while_training_is_a_schedule_of_its_own() -> None:
    def kept(epoch: int) -> float:
        return 1 - 0.5 * (0.0 if epoch == 0 else 1.0 if epoch < 3 else 0.6)

    pruner = dataprune.Pruner(20, loss_and_certainty(), hide_lowest(), kept, epochs=6)
    assert pruner.counts == [20, 10, 10, 14, 14, 14]


def test_wrong_arguments_and_outputs_say_what_to_do() -> None:
    for confidence in (-0.1, 1.1, True, "high"):
        with pytest.raises(ValueError, match=r"confidence is a probability, in \[0, 1\], got"):
            dataprune.kakurenbo(SIZE, keep=0.7, epochs=4, confidence=confidence)  # type: ignore[arg-type]
    pruner = dataprune.kakurenbo(8, keep=0.7, epochs=4)
    with pytest.raises(ValueError, match=r"reads logits \(B, C\) of exclusive classes with B = 8, got NoneType"):
        pruner.update(torch.arange(8), torch.rand(8))
    with pytest.raises(ValueError, match="outputs are probabilities"):
        pruner.update(torch.arange(8), torch.rand(8), torch.rand(8, 3).softmax(1), torch.zeros(8).long())
