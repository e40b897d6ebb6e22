"""Influence against refits, the explicit Hessian and a greedy loop on stored gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_gradients import problem, stored
from torch import Tensor

from dataprune import coresets
from dataprune.coresets import _influence


def explicit(samples: _influence.Influences, errors: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Influences (N, C·(D + 1)) on weight and bias, out of the basis in which they are held."""
    rows = samples.left[:, :, None] * samples.right[:, None, :] * samples.scale
    if rows.shape[1] == 1:  # by conjugate gradients
        return rows.flatten(1)
    p = errors + torch.nn.functional.one_hot(labels, errors.shape[1])
    right = torch.cat([features, features.new_ones(len(features), 1)], 1)
    first = torch.linalg.eigh(torch.diag(p.mean(0)) - p.T @ p / len(p))[1]
    second = torch.linalg.eigh(right.T @ right / len(p))[1]
    return (first @ rows @ second.T).flatten(1)


def explicit_hessian(p: Tensor, features: Tensor, damping: float) -> Tensor:
    right = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("nab,nc,nd->acbd", curvature, right, right) / len(p)
    size = hessian.shape[0] * hessian.shape[1]
    return hessian.reshape(size, size) + damping * torch.eye(size, dtype=p.dtype)


def train(features: Tensor, labels: Tensor, damping: float, share: Tensor, layer: Tensor | None = None) -> Tensor:
    """The last layer (C, D + 1) that minimises Σ share·L + damping/2·‖θ‖², by Newton's method."""
    right = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    layer = torch.zeros(3, right.shape[1], dtype=features.dtype) if layer is None else layer
    for _ in range(30):
        p = (right @ layer.T).softmax(1)
        e = p - torch.nn.functional.one_hot(labels, 3)
        slope = (e * share[:, None]).T @ right + damping * layer
        if slope.abs().max() < 1e-13:
            break
        curvature = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) * share[:, None, None]
        hessian = torch.einsum("nab,nc,nd->acbd", curvature, right, right).reshape(slope.numel(), -1)
        hessian += damping * torch.eye(slope.numel(), dtype=features.dtype)
        layer = layer - torch.linalg.solve(hessian, slope.flatten()).view_as(layer)
    return layer


def trained(seed: int, size: int, damping: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, labels, errors of a last layer at its optimum, and the layer."""
    _, features, labels = problem(seed, size)
    features[:, :3] += torch.nn.functional.one_hot(labels, 3)
    layer = train(features, labels, damping, torch.full((size,), 1 / size, dtype=torch.float64))
    errors = (features @ layer[:, :-1].T + layer[:, -1]).softmax(1) - torch.nn.functional.one_hot(labels, 3)
    return features, labels, errors, layer


@pytest.mark.parametrize(("solver", "least"), [("conjugate", 0.98), ("kronecker", 0.9)])
def test_influence_predicts_refits_without_a_sample(solver: str, least: float) -> None:
    size, damping = 60, 0.05
    features, labels, errors, layer = trained(0, size, damping)
    known = explicit(_influence.influences(errors, features, labels, damping, solver), errors, features, labels)
    moved = []
    for i in range(size):
        share = torch.full((size,), 1 / size, dtype=torch.float64)
        share[i] = 0
        moved.append(train(features, labels, damping, share, layer) - layer)
    truth = torch.stack(moved)
    cosine = torch.nn.functional.cosine_similarity(truth.flatten(1), -known)
    assert float(cosine.min()) > least  # the sign too
    norms = torch.stack([truth.flatten(1).norm(dim=1), known.norm(dim=1)])
    assert float(torch.corrcoef(norms)[0, 1]) > least
    assert float(torch.corrcoef(torch.stack([truth.flatten(), -known.flatten()]))[0, 1]) > least


def test_influence_by_conjugate_gradients_is_that_of_the_explicit_hessian() -> None:
    errors, features, labels = problem(2, 150)  # more than one block
    p = errors + torch.nn.functional.one_hot(labels, 3)
    gradients = torch.from_numpy(stored(errors, features))
    expected = -torch.linalg.solve(explicit_hessian(p, features, 1e-3), gradients.T).T / 150
    known = _influence.influences(errors, features, labels, 1e-3, "conjugate")
    torch.testing.assert_close(explicit(known, errors, features, labels), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(known.squares(), expected.square().sum(1), rtol=1e-6, atol=1e-12)


def test_influence_by_kronecker_factors_is_exact_where_the_hessian_factorises() -> None:
    _, features, labels = problem(2, 40)
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).repeat(40, 1)  # alike for all: H is a Kronecker product
    errors = p - torch.nn.functional.one_hot(labels, 3)
    gradients = torch.from_numpy(stored(errors, features))
    expected = -torch.linalg.solve(explicit_hessian(p, features, 0.01), gradients.T).T / 40
    known = _influence.influences(errors, features, labels, 0.01)
    torch.testing.assert_close(explicit(known, errors, features, labels), expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(known.squares(), expected.square().sum(1))
    total = known.of(3)
    torch.testing.assert_close(known.dots(total[None])[0], expected @ expected[3])


@pytest.mark.parametrize("solver", ["kronecker", "conjugate"])
@pytest.mark.parametrize(("short", "ahead"), [(256, 16), (4, 16), (1, 16), (4, 1)])  # few: steps are taken back
def test_influence_leaves_out_greedily(solver: str, short: int, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_influence, "_SHORT", short)
    monkeypatch.setattr(_influence, "_AHEAD", ahead)
    errors, features, labels = problem(4, 200)
    samples = _influence.influences(errors, features, labels, 0.01, solver)
    rows = explicit(samples, errors, features, labels).numpy()
    out: list[int] = []
    norms: list[float] = []
    total = np.zeros(rows.shape[1])
    for _ in range(180):
        lengths = np.linalg.norm(total + rows, axis=1)
        lengths[out] = np.inf
        out.append(int(lengths.argmin()))
        norms.append(lengths.min())
        total = total + rows[out[-1]]
    options = {"labels": labels, "damping": 0.01, "solver": solver}
    index = coresets.influence(errors, features, keep=0.1, **options).index  # type: ignore[arg-type]
    assert index.tolist() == sorted(set(range(200)) - set(out))
    epsilon = norms[60] * (1 + 1e-9)
    stop = next(i for i, norm in enumerate(norms) if norm > epsilon)
    index = coresets.influence(errors, features, keep=0.1, epsilon=epsilon, **options).index  # type: ignore[arg-type]
    assert index.tolist() == sorted(set(range(200)) - set(out[:stop]))
    assert np.linalg.norm(rows[out[:stop]].sum(0)) <= epsilon
    assert len(coresets.influence(errors, features, keep=0.1, epsilon=0.0, **options).index) == 200  # type: ignore[arg-type]


def test_influence_rejects_errors_without_a_softmax() -> None:
    errors, features, labels = problem(0, 12)
    for options, message in [
        ({"labels": labels.flip(0)}, "softmax"),
        ({"damping": 0.0}, "damping"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"every": 0}, "every"),
        ({"solver": "exact"}, "solver"),
    ]:
        with pytest.raises(ValueError, match=message):
            coresets.influence(errors, features, **{"keep": 0.5, "labels": labels, **options})


def test_influence_rejects_features_that_overflow() -> None:
    errors, features, labels = problem(0, 12)
    with pytest.raises(ValueError, match="overflow"):
        coresets.influence(errors.float(), 1e30 * features.float(), keep=0.5, labels=labels)
