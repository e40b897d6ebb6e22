"""Choosers that look at more than a row's own score: a reference model, a window, gradients, tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataprune import online
from dataprune.errors import UsageError
from dataprune.online._divbs import _gradient_products


def test_excess_is_the_loss_above_the_reference_model() -> None:
    torch.manual_seed(0)
    model, reference = nn.Linear(3, 5), nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 5))
    x, y = torch.randn(12, 3), torch.randint(5, (12,))
    chooser = online.excess(0.25, reference=reference, cost=100.0)
    before = torch.get_rng_state()
    with chooser.scoring(model):
        logits = torch.cat([model(part) for part in x.split(5)])  # in parts that fit
    assert torch.equal(torch.get_rng_state(), before)  # without the reference's dropout
    rows, weight = chooser.choose(F.cross_entropy(logits, y, reduction="none"), logits, y)
    score = F.cross_entropy(model(x), y, reduction="none") - F.cross_entropy(reference[1](x), y, reduction="none")
    assert rows.tolist() == sorted(score.argsort(descending=True)[:3].tolist()) and (weight == 1).all()
    assert reference.training
    assert chooser.stats()["flops"] == pytest.approx(100 + 3 + (12 + 12) / 3)
    with pytest.raises(UsageError, match="has not seen this batch"):
        chooser.choose(torch.rand(12), logits, y)


def test_excess_reads_a_table_of_losses_by_sample() -> None:
    table = torch.arange(100.0)
    chooser = online.excess(0.5, reference=table)
    rows, _ = chooser.choose(torch.full((4,), 200.0), ids=torch.tensor([7, 90, 3, 50]))
    assert rows.tolist() == [0, 2]
    with pytest.raises(ValueError, match="ids=index"):
        chooser.choose(torch.rand(4))
    with pytest.raises(IndexError):
        chooser.choose(torch.rand(2), ids=torch.tensor([5, 100]))
    with pytest.raises(ValueError, match="whole numbers"):
        chooser.choose(torch.rand(2), ids=torch.tensor([0.5, 1.0]))
    with pytest.raises(TypeError, match="reference is a model"):
        online.excess(0.5, reference="model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        online.excess(0.5, reference=torch.tensor([1.0, torch.nan]))


def test_excess_of_a_language_model_is_the_mean_over_valid_tokens() -> None:
    torch.manual_seed(0)
    model, reference = nn.Embedding(7, 7), nn.Embedding(7, 7)
    ids = torch.randint(7, (6, 5))
    targets = ids.roll(-1, 1)
    targets[:, 3:] = -100

    def losses(logits: Tensor) -> Tensor:
        each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return each.sum(1) / 3

    chooser = online.excess(0.5, reference=reference)
    with chooser.scoring(model):
        logits = model(ids)
    rows, _ = chooser.choose(losses(logits), logits, targets)
    score = losses(model(ids)) - losses(reference(ids))
    assert rows.tolist() == sorted(score.argsort(descending=True)[:3].tolist())


def test_a_window_averages_the_scores_of_a_sample() -> None:
    chooser = online.window(0.5, batches=2)
    losses = {0: [9.0, 0.0], 1: [0.0, 5.0], 2: [4.0, 4.4], 3: [3.0, 4.2]}
    ids = torch.tensor([0, 1, 2, 3])
    for step in range(2):
        rows, _ = chooser.choose(torch.tensor([losses[i][step] for i in range(4)]), ids=ids)
    assert rows.tolist() == [0, 2]  # 4.5, 2.5, 4.2, 3.6
    rows, _ = chooser.choose(torch.tensor([0.0, 0.0, 0.0, 1.0]), ids=ids)
    assert rows.tolist() == [1, 3] or rows.tolist() == [2, 3]  # 0, 2.5, 2.2, 2.6 over the last two
    assert rows.tolist() == [1, 3]
    rows, _ = online.window(0.5).choose(torch.tensor([0.0, 2.0, 1.0, 3.0]))
    assert rows.tolist() == [1, 3]  # without ids, as it is


def slow_divbs(gradients: np.ndarray, rows: list[int]) -> list[np.ndarray]:
    """|<g, residual>| of all rows before each draw of these rows."""
    residual = gradients.mean(0)
    basis: list[np.ndarray] = []
    products = []
    for row in rows:
        products.append(np.abs(gradients @ residual))
        direction = gradients[row] - sum(((gradients[row] @ q) * q for q in basis), np.zeros_like(residual))
        direction /= np.linalg.norm(direction)
        basis.append(direction)
        residual = residual - (direction @ residual) * direction
    return products


@pytest.mark.parametrize("features", [False, True])
def test_gradients_are_those_of_the_last_layer(features: bool) -> None:
    torch.manual_seed(0)
    layer, h, y = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    gradients = []
    for row in range(6):
        layer.zero_grad()
        F.cross_entropy(layer(h[row : row + 1]), y[row : row + 1]).backward()
        parts = [layer.bias.grad] + [layer.weight.grad] * features  # type: ignore[list-item]
        gradients.append(torch.cat([part.flatten() for part in parts]))  # type: ignore[union-attr]
    stacked = torch.stack(gradients)
    products = _gradient_products((layer(h), h) if features else layer(h), y)
    torch.testing.assert_close(products, stacked @ stacked.T)


def test_divbs_draws_by_what_of_the_mean_gradient_is_left() -> None:
    torch.manual_seed(0)
    logits, y, features = 2 * torch.randn(8, 3), torch.randint(3, (8,)), torch.randn(8, 4)
    error = logits.softmax(1) - F.one_hot(y, 3)
    inputs = torch.cat([features, torch.ones(8, 1)], 1)
    gradients = (error[:, :, None] * inputs[:, None]).flatten(1).double().numpy()
    draws, pairs = 3000, np.zeros((8, 8))
    for seed in range(draws):
        rows, _ = online.divbs(0.25, seed=seed).choose(torch.rand(8), (logits, features), y)
        pairs[tuple(rows.tolist())] += 1 / draws
    expected = np.zeros((8, 8))
    for first in range(8):
        for second in range(8):
            if second != first:
                before, after = slow_divbs(gradients, [first, second])
                after[first] = 0
                chance = before[first] / before.sum() * after[second] / after.sum()
                expected[min(first, second), max(first, second)] += chance
    np.testing.assert_allclose(pairs, expected, atol=0.03)


def test_divbs_goes_on_at_random_where_all_gradients_are_spanned() -> None:
    logits = torch.zeros(10, 2)
    rows, _ = online.divbs(0.8).choose(torch.rand(10), logits, torch.arange(10) % 2)
    assert len(rows.unique()) == 8
    for outputs, y in ((None, torch.zeros(4).long()), (torch.rand(4, 2), None), (torch.rand(4, 2), torch.rand(4, 2))):
        with pytest.raises(ValueError, match="divbs reads logits"):
            online.divbs(0.5).choose(torch.rand(4), outputs, y)
    with pytest.raises(ValueError, match="features must be"):
        online.divbs(0.5).choose(torch.rand(4), (torch.rand(4, 2), torch.rand(3, 2)), torch.zeros(4).long())


def test_tokens_keep_the_highest_excess_of_the_batch() -> None:
    torch.manual_seed(0)
    model, reference = nn.Embedding(7, 7), nn.Embedding(7, 7)
    ids = torch.randint(7, (3, 5))
    targets = ids[:, 1:].clone()
    targets[0, 2:] = -100
    chooser = online.tokens(0.5, reference=reference)
    with chooser.reading(model):
        logits = model(ids)[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    weight = chooser.choose(losses, logits, targets)
    other = F.cross_entropy(reference(ids)[:, :-1].transpose(1, 2), targets, reduction="none")
    score = (losses - other).where(targets != -100, -torch.inf).flatten()
    expected = torch.zeros(12).index_fill(0, score.argsort(descending=True)[:5], 1.0)
    assert torch.equal(weight, expected.view(3, 4)) and losses.requires_grad and not weight.requires_grad
    assert chooser.stats() == {"tokens": 10, "kept": 5, "flops": pytest.approx(3 + 1)}
    (weight * losses).sum().backward()
    assert reference.weight.grad is None


def test_tokens_without_a_reference_and_bad_input() -> None:
    weight = online.tokens(0.5).choose(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert weight.tolist() == [[0, 0], [1, 1]]
    with pytest.raises(ValueError, match=r"\(B, S\)"):
        online.tokens(0.5).choose(torch.rand(4))
    with pytest.raises(ValueError, match="targets too"):
        online.tokens(0.5, reference=nn.Embedding(2, 2)).choose(torch.rand(2, 2))
    with pytest.raises(ValueError, match="keep"):
        online.tokens(0.0)
