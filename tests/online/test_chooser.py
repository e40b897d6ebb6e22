"""Rows chosen inside a super-batch: which, with which weights, at what cost; against slow references."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dataprune
from dataprune import criteria, online
from dataprune.errors import CheckpointError, UsageError
from dataprune.online import Chooser
from dataprune.online.chooser import inclusion

RECIPES: dict[str, Callable[..., Chooser]] = {
    "uniform": online.uniform,
    "loss": online.loss,
    "memory": online.memory,
    "divbs": online.divbs,
    "window": online.window,
    "excess": lambda keep, seed=0: online.excess(keep, reference=torch.rand(64), seed=seed),
}


def batch(rows: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(rows, 5, generator=generator), torch.randint(5, (rows,), generator=generator)
    return F.cross_entropy(logits, y, reduction="none"), logits, y


def choose(chooser: Chooser, rows: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    return chooser.choose(*batch(rows, seed), ids=torch.arange(rows))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("rows", "keep", "count"), [(16, 0.25, 4), (10, 0.25, 3), (3, 0.1, 1), (7, 1.0, 7), (1, 0.5, 1)]
)
def test_every_recipe_chooses_as_many_rows_as_it_says(name: str, rows: int, keep: float, count: int) -> None:
    chosen, weight = choose(RECIPES[name](keep), rows)
    assert chosen.dtype == torch.int64 and chosen.shape == weight.shape == (count,)
    assert (chosen.diff() > 0).all() and chosen[0] >= 0 and chosen[-1] < rows
    assert weight.dtype == torch.float32 and (weight == 1).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_chooser_goes_on_as_an_uninterrupted_one(name: str) -> None:
    torch.manual_seed(0)
    make = RECIPES[name]
    torch.manual_seed(1)
    whole = make(0.25, seed=3)
    first = [choose(whole, seed=step)[0] for step in range(6)]
    torch.manual_seed(1)
    begun = make(0.25, seed=3)
    again = [choose(begun, seed=step)[0] for step in range(3)]
    torch.manual_seed(1)
    resumed = make(0.25, seed=3)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    again += [choose(resumed, seed=step)[0] for step in range(3, 6)]
    assert all(map(torch.equal, first, again))
    assert resumed.stats() == whole.stats()


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_touches_the_global_random_state(name: str) -> None:
    chooser = RECIPES[name](0.5)
    before = torch.get_rng_state()
    choose(chooser)
    assert torch.equal(before, torch.get_rng_state())


def test_the_highest_scores_are_chosen() -> None:
    losses, logits, y = batch()
    chosen, _ = online.loss(0.25).choose(losses, logits, y)
    assert chosen.tolist() == sorted(losses.argsort(descending=True)[:4].tolist())
    chosen, _ = online.memory(0.25).choose(losses, logits, y)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert chosen.tolist() == sorted(entropy.argsort(descending=True)[:4].tolist())


def test_ties_are_broken_at_random_from_the_seed() -> None:
    counts = torch.zeros(10)
    for seed in range(300):
        chosen, _ = online.loss(0.3, seed=seed).choose(torch.ones(10))
        counts[chosen] += 1
    assert (counts / 300 - 0.3).abs().max() < 0.1
    chooser = online.loss(0.3, seed=5)
    assert not torch.equal(chooser.choose(torch.ones(10))[0], chooser.choose(torch.ones(10))[0])  # another step


def slow_inclusion(score: np.ndarray, count: int) -> np.ndarray:
    score = np.maximum(score, 1e-3 * score.mean())
    sure: set[int] = set()
    while True:
        rest = [row for row in range(len(score)) if row not in sure]
        probability = np.ones(len(score))
        left = count - len(sure)
        probability[rest] = left * score[rest] / score[rest].sum() if rest else []
        above = {row for row in rest if probability[row] > 1 + 1e-12}
        if not above:
            return np.minimum(probability, 1)
        sure |= above


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=12), st.data())
def test_inclusion_probabilities_are_those_of_the_slow_reference(scores: list[float], data: st.DataObject) -> None:
    score = np.array(scores, dtype=np.float32).astype(np.float64)
    if not score.any():
        return
    count = data.draw(st.integers(1, len(score)))
    fast = inclusion(torch.tensor(score, dtype=torch.float32), count).numpy()
    np.testing.assert_allclose(fast, slow_inclusion(score, count), rtol=1e-5, atol=1e-7)
    assert fast.sum() == pytest.approx(count)


def test_equal_scores_of_zero_are_drawn_with_equal_probabilities() -> None:
    assert inclusion(torch.zeros(4), 2).tolist() == [0.5] * 4


def test_the_weighted_mean_of_drawn_losses_is_that_of_the_batch_on_average() -> None:
    losses = torch.tensor([0.01, 5.0, 0.3, 0.7, 0.2, 1.4, 0.0, 0.9])
    other = torch.arange(8.0)  # unbiased for any numbers of the rows, such as gradients
    means, counts = torch.zeros(2), torch.zeros(8)
    draws = 4000
    for seed in range(draws):
        rows, weight = online.loss(0.5, sample=True, seed=seed).choose(losses)
        assert len(rows.unique()) == 4
        means += torch.stack([(weight * losses[rows]).mean(), (weight * other[rows]).mean()]) / draws
        counts[rows] += 1 / draws
    assert means[0] == pytest.approx(float(losses.mean()), rel=0.02)
    assert means[1] == pytest.approx(float(other.mean()), rel=0.06)
    np.testing.assert_allclose(counts, slow_inclusion(losses.double().numpy(), 4), atol=0.04)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan"), True, "half"])
def test_keep_is_a_fraction(keep: object) -> None:
    for recipe in RECIPES.values():
        with pytest.raises((ValueError, TypeError), match="keep"):
            recipe(keep)


def test_bad_losses_are_named() -> None:
    chooser = online.loss(0.5)
    with pytest.raises(ValueError, match="reduction='none'"):
        chooser.choose(torch.tensor(1.0))
    with pytest.raises(ValueError, match="one for each row"):
        chooser.choose(torch.rand(4, 3))
    with pytest.raises(ValueError, match="one for each row"):
        chooser.choose(torch.rand(0))
    with pytest.raises(TypeError, match="floating-point"):
        chooser.choose(torch.arange(4))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            chooser.choose(torch.tensor([1.0, value]))
    assert chooser.stats()["scored"] == 0  # what was refused is not counted, and does not stay
    with pytest.raises(ValueError, match="one score for each of the 4 rows"):
        Chooser(lambda losses, outputs, targets: losses.mean(), 0.5).choose(torch.rand(4))


def test_scores_that_can_be_negative_are_not_drawn_in_proportion() -> None:
    for criterion in (criteria.loss_minus_distance(), criteria.loss_plus_entropy(beta=-1.0)):
        with pytest.raises(ValueError, match="can be negative"):
            Chooser(criterion, 0.5, sample=True)
    with pytest.raises(ValueError, match="can be negative"):
        online.memory(0.5, distribution="gaussian", sample=True)
    with pytest.raises(ValueError, match="negative"):
        Chooser(lambda losses, outputs, targets: -losses, 0.5, sample=True).choose(torch.rand(4))


def test_the_cost_of_scoring_is_counted() -> None:
    chooser = online.loss(0.25)
    model = nn.Linear(3, 5)
    for cost in (1.0, 0.5):
        with chooser.scoring(model, cost=cost):
            model(torch.randn(16, 3))
        choose(chooser)
    assert chooser.stats() == {"scored": 32, "trained": 8, "flops": pytest.approx(8 + 16 / 3 + 8 / 3), "keep": 0.25}


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.batch, self.instance = nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)
        self.last = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.instance(self.batch(x)).mean(1))


def test_a_scoring_pass_has_no_gradients_and_leaves_the_statistics_of_norms() -> None:
    model, x = Norms(), torch.randn(8, 4, 6)
    before = copy.deepcopy(model.state_dict())
    chooser = online.memory(0.5)
    with chooser.scoring(model):
        scored = model(x)
    assert not scored.requires_grad and torch.is_grad_enabled()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(model(x), scored)  # as in training, by the statistics of the batch
    assert not all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_norms_are_as_before_after_an_error() -> None:
    model = Norms()
    with pytest.raises(RuntimeError), online.memory(0.5).scoring(model):
        model(torch.randn(2, 3))
    assert model.batch.track_running_stats and model.instance.momentum == 0.1


def test_a_model_left_in_evaluation_mode_is_refused_and_a_frozen_proxy_is_not() -> None:
    model = nn.Linear(3, 5).eval()
    with pytest.raises(UsageError, match=r"call model.train\(\)"), online.loss(0.5).scoring(model):
        pass
    with online.loss(0.5).scoring(model.requires_grad_(False), cost=0.1):
        model(torch.randn(2, 3))
    with pytest.raises(ValueError, match="cost"), online.loss(0.5).scoring(nn.Linear(3, 5), cost=-1):
        pass


def test_a_state_of_another_chooser_is_refused() -> None:
    state = online.loss(0.5, seed=1).state_dict()
    for other in (online.loss(0.25, seed=1), online.loss(0.5, seed=2), online.memory(0.5, seed=1)):
        with pytest.raises(CheckpointError, match="the state is of Chooser"):
            other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="state_dict"):
        online.loss(0.5).load_state_dict({"step": 3})


def test_training_the_chosen_rows_learns() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    chooser = online.memory(0.25)
    for _ in range(20):
        with chooser.scoring(model):
            logits = model(x)
        rows, weight = chooser.choose(F.cross_entropy(logits, y, reduction="none"), logits, y)
        loss = (weight * F.cross_entropy(model(x[rows]), y[rows], reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("sample", [False, True])
def test_choosing_does_not_wait_for_the_device(name: str, sample: bool) -> None:
    if sample and name not in ("loss", "memory"):
        return
    chooser = RECIPES[name](0.5, **({"sample": True} if sample else {}))
    losses, logits, y = (value.cuda() for value in batch())
    chooser.choose(losses, logits, y, ids=torch.arange(16, device="cuda"))  # moves what is moved once
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows, weight = chooser.choose(losses, logits, y, ids=torch.arange(16, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rows.is_cuda and weight.is_cuda
    chooser.choose(losses * torch.nan, logits, y, ids=torch.arange(16, device="cuda"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        chooser.stats()


def test_the_public_names() -> None:
    names = {"Chooser", "divbs", "excess", "loss", "memory", "tokens", "uniform", "window"}
    assert set(online.__all__) == names and dataprune.online is online
