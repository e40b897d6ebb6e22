"""The criterion `learnability` against a slow reference, and its pruner: drawn in proportion, else by the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import dataprune
from dataprune import criteria, policies
from dataprune.hashing import Key
from dataprune.scores import ScoreBook


def slow(logits: np.ndarray, label: int) -> float:
    """(1 - p_y) p_y / max p, in float64."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return float((1 - p[label]) * p[label] / p.max())


def made(*shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def losses(batch: int) -> Tensor:
    return torch.rand(batch, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_classes(dtype: torch.dtype) -> None:
    logits, y = made(20, 6).to(dtype), torch.arange(20) % 6
    score = criteria.learnability()(losses(20), logits, y)
    expected = [slow(row.double().numpy(), int(label)) for row, label in zip(logits, y, strict=True)]
    assert score.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(score.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_extreme_logits_give_numbers_between_0_and_1() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [-math.inf, 0.0, 0.0], [0.0, 0.0, 0.0], [20.0, 0.0, 0.0]])
    for label in range(3):
        score = criteria.learnability()(losses(4), logits, torch.full((4,), label))
        assert bool(((score >= 0) & (score <= 1)).all())
    assert score[2] == pytest.approx(2 / 3)
    assert criteria.learnability()(losses(1), logits[3:], torch.tensor([0])) == pytest.approx(0, abs=1e-6)


def test_soft_labels_and_several_labels() -> None:
    logits = made(5, 4)
    soft = torch.softmax(made(5, 4, scale=1.0), 1)
    score = criteria.learnability()(losses(5), logits, soft)
    for row in range(5):
        expected = sum(float(soft[row, c]) * slow(logits[row].double().numpy(), c) for c in range(4))
        assert score[row] == pytest.approx(expected, rel=1e-5)
    several = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    for targets in (several, several.float()):
        score = criteria.learnability()(losses(5), logits, targets)
        for row in range(5):
            pairs = [np.array([0.0, float(logits[row, c])]) for c in range(4)]
            expected = np.mean([slow(pair, int(several[row, c])) for c, pair in enumerate(pairs)])
            assert score[row] == pytest.approx(expected, rel=1e-5)
    one = criteria.learnability()(losses(5), logits[:, 0], several[:, 0])
    two = criteria.learnability("bernoulli")(losses(5), logits[:, :1], several[:, :1].float())
    assert torch.equal(one, two) and one[0] == pytest.approx(slow(np.array([0.0, float(logits[0, 0])]), 1), rel=1e-5)


def test_sequences_are_averaged_over_their_tokens() -> None:
    logits, ids = made(3, 4, 5), torch.arange(12).view(3, 4) % 5
    ids[0, 2:], ids[1] = -100, -100
    score = criteria.learnability()(losses(3), logits, ids)
    each = [[slow(logits[b, s].double().numpy(), max(int(ids[b, s]), 0)) for s in range(4)] for b in range(3)]
    assert score.tolist() == pytest.approx([np.mean(each[0][:2]), 0, np.mean(each[2])], rel=1e-5)
    assert torch.equal(criteria.learnability()(losses(3), logits.transpose(1, 2), ids), score)
    with pytest.raises(ValueError, match="are ids"):
        criteria.learnability("softmax")(losses(3), logits, torch.rand(3, 4))


def test_outputs_without_a_distribution_are_scored_by_the_loss() -> None:
    for outputs, targets in ((torch.rand(4, 1), torch.rand(4, 1)), ((torch.rand(4), None), None)):
        criterion = criteria.learnability()
        assert torch.equal(criterion(losses(4), outputs, targets), losses(4)) and criterion.by_loss
    criterion = criteria.learnability()
    with pytest.warns(UserWarning, match="no outputs were given"):
        assert torch.equal(criterion(losses(4), None, None), losses(4))
    criterion(losses(4), None, None)  # said once
    with pytest.raises(ValueError, match="reads the labels"):
        criteria.learnability()(losses(4), torch.rand(4, 3), None)
    with pytest.raises(ValueError, match="4 losses but 3 rows"):
        criteria.learnability()(losses(4), torch.rand(3, 3), torch.zeros(3).long())
    with pytest.raises(ValueError, match="distribution"):
        criteria.learnability("normal")  # type: ignore[arg-type]


def test_a_regression_selects_the_highest_losses_also_after_a_resume() -> None:
    pruner = dataprune.learnability(40, keep=0.25, epochs=4, seed=2)
    index, losses = torch.randperm(40), torch.rand(40)
    pruner.select(0)
    pruner.update(index, losses, torch.rand(40), torch.rand(40))
    resumed = dataprune.learnability(40, keep=0.25, epochs=4, seed=2)
    resumed.load_state_dict(pruner.state_dict())
    best = sorted(index[losses.argsort(descending=True)[:10]].tolist())
    assert pruner.select(1).index.tolist() == resumed.select(1).index.tolist() == best


def test_draws_are_in_proportion_to_the_scores() -> None:
    """Against the definition: one after another, each in proportion to what is left."""
    score = np.array([0.5, 1.0, 2.0, 4.0, 0.0])
    floored = np.maximum(score, 1e-3 * score.mean())
    expected = np.zeros(5)
    for first in range(5):
        for second in range(5):
            if first != second:
                chance = floored[first] / floored.sum() * floored[second] / (floored.sum() - floored[first])
                expected[[first, second]] += chance
    book, counts, draws = ScoreBook(5), np.zeros(5), 6000
    book.score.copy_(torch.tensor(score))
    for seed in range(draws):
        counts[policies.proportional()(book, 2, Key(seed, 1)).index.numpy()] += 1 / draws
    np.testing.assert_allclose(counts, expected, atol=0.02)


def test_unseen_samples_come_first_and_zeros_are_drawn_alike() -> None:
    book = ScoreBook(100)
    book.score[:90] = torch.rand(90)
    assert set(range(90, 100)) <= set(policies.proportional()(book, 20, Key(0, 1)).index.tolist())
    assert len(policies.proportional()(ScoreBook(10), 4, Key(0, 1))) == 4  # before anything is scored
    book = ScoreBook(10)
    book.score.zero_()
    counts = torch.zeros(10)
    for seed in range(500):
        counts[policies.proportional()(book, 3, Key(seed, 1)).index] += 1 / 500
    assert (counts - 0.3).abs().max() < 0.08
    labels = torch.arange(100) % 4
    book = ScoreBook(100)
    book.score.copy_(torch.rand(100))
    chosen = policies.proportional(balance=labels)(book, 20, Key(0, 1)).index
    assert labels[chosen].bincount().tolist() == [5] * 4
