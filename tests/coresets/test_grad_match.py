"""GradMatch against matching pursuit and least squares of scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_gradients import problem, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn import linear_model

from dataprune import coresets
from dataprune.coresets._grad_match import Fit


@pytest.mark.parametrize("seed", range(3))
def test_grad_match_without_constraint_is_scikit_learns_matching_pursuit(seed: int) -> None:
    errors, features, labels = problem(seed, 60)
    g = stored(errors, features)
    weight = linear_model.orthogonal_mp(g.T, g.sum(0), n_nonzero_coefs=6)
    selection = coresets.grad_match(
        errors, features, keep=0.1, labels=labels, penalty=0.0, nonnegative=False, balance="none"
    )
    assert selection.index.tolist() == np.flatnonzero(weight).tolist()
    np.testing.assert_allclose(selection.weight.numpy(), weight[weight != 0], rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_grad_match_weights_are_the_nonnegative_least_squares_of_each_class(seed: int, penalty: float) -> None:
    errors, features, labels = problem(seed, 60)
    selection = coresets.grad_match(errors, features, keep=0.3, labels=labels, penalty=penalty)
    index, weight = selection.index, selection.weight
    gradients = stored(errors, features)
    for label in range(3):
        places = (labels[index] == label).numpy()
        assert places.sum() == 6
        members = gradients[(labels == label).numpy()]
        rest = members.sum(0)
        picks: list[int] = []
        solution = np.zeros(0)
        for _ in range(6):  # matching pursuit with a fit by scipy
            score = members @ rest
            score[picks] = -np.inf
            picks.append(int(score.argmax()))
            a = members[picks].T
            square = np.vstack([a, np.sqrt(penalty) * np.eye(len(picks))])
            solution = optimize.nnls(square, np.concatenate([members.sum(0), np.zeros(len(picks))]))[0]
            rest = members.sum(0) - a @ solution
        positions = np.flatnonzero((labels == label).numpy())[picks]
        assert sorted(positions.tolist()) == index.numpy()[places].tolist()
        np.testing.assert_allclose(weight.numpy()[places], solution[np.argsort(positions)], rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_fit_is_scipys_nonnegative_least_squares(seed: int, penalty: float) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(12, 10)) + 0.5, random.normal(size=12)
    if seed % 3 == 0:
        a[:, 7] = a[:, 2]
    fit = Fit(10, penalty, nonnegative=True)
    for column in range(10):
        fit.add(torch.from_numpy(a[:, : column + 1].T @ a[:, column]), float(a[:, column] @ b))
    square = np.vstack([a, np.sqrt(penalty) * np.eye(10)])
    best = optimize.nnls(square, np.concatenate([b, np.zeros(10)]))[1]
    weight = fit.weight().numpy()
    assert weight.min() >= 0
    assert np.linalg.norm(square @ weight - np.concatenate([b, np.zeros(10)])) == pytest.approx(
        best, rel=1e-8, abs=1e-8
    )


@pytest.mark.parametrize("scales", [(0.001, 0.25), (1e-6, 0.5), (0.25, 0.25)])
def test_classes_that_are_learned_well_keep_their_weight(scales: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    wrong = torch.tensor(scales)[labels] * torch.rand(400, generator=generator) * 2
    errors = torch.stack([wrong, -wrong], dim=1) * (1 - 2 * labels[:, None])
    features = torch.randn(400, 8, generator=generator).relu()
    selection = coresets.grad_match(errors, features, keep=0.1, labels=labels)
    of_class = torch.bincount(labels[selection.index], selection.weight)
    assert 0.5 < float(of_class[0] / of_class[1]) < 2
    assert bool((of_class > 20).all())


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_a_class_without_gradients_gets_even_weights(penalty: float) -> None:
    errors, features, labels = problem(0, 60)
    errors[labels == 1] = 0
    selection = coresets.grad_match(errors, features, keep=0.1, labels=labels, penalty=penalty)
    assert selection.weight[labels[selection.index] == 1].tolist() == [10.0, 10.0]
    cancelling = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])  # they add up to 0
    assert coresets.grad_match(
        cancelling, torch.zeros(2, 1), keep=0.5, labels=torch.zeros(2).long(), penalty=penalty
    ).weight.tolist() == [2.0]


def test_grad_match_of_everything_matches_exactly() -> None:
    errors, features, labels = problem(1, 9, width=6)
    selection = coresets.grad_match(errors, features, keep=1.0, labels=labels, penalty=0.0)
    torch.testing.assert_close(selection.weight, torch.ones(9))
    with pytest.raises(ValueError, match="penalty"):
        coresets.grad_match(errors, features, keep=1.0, labels=labels, penalty=-1.0)
    with pytest.raises(ValueError, match="balance"):
        coresets.grad_match(errors, features, keep=1.0, labels=labels, balance="classes")  # type: ignore[arg-type]
