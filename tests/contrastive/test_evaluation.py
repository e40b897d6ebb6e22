"""Nearest neighbours and the linear classifier against slow references."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataprune.contrastive import evaluation, knn_accuracy, linear_probe


def clusters(count: int, classes: int = 3, dim: int = 5, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(77), dtype=torch.float64)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return centres[labels] + noise * torch.randn(count, dim, generator=generator, dtype=torch.float64), labels


def slow_knn(train: Tensor, y: Tensor, test: Tensor, wanted: Tensor, k: int, temperature: float) -> float:
    """One test sample after the other."""
    right = 0
    for row, label in zip(test.tolist(), wanted.tolist(), strict=True):
        near = []
        for other, vote in zip(train.tolist(), y.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(row, other, strict=True))
            near.append((dot / (math.hypot(*row) * math.hypot(*other)), vote))
        votes = dict.fromkeys(range(int(y.max()) + 1), 0.0)
        for cosine, vote in sorted(near, reverse=True)[:k]:
            votes[vote] += math.exp(cosine / temperature)
        right += max(votes, key=votes.__getitem__) == label
    return right / len(test)


@given(k=st.integers(1, 40), temperature=st.sampled_from([0.07, 0.5, 10.0]), seed=st.integers(0, 99))
@settings(max_examples=30, derandomize=True)
def test_knn_equals_the_loop(k: int, temperature: float, seed: int) -> None:
    train, test = clusters(40, seed=seed), clusters(15, seed=seed + 1000)
    assert knn_accuracy(*train, *test, k, temperature) == slow_knn(*train, *test, k, temperature)


def test_knn_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = clusters(50), clusters(33, seed=1)
    whole = knn_accuracy(*train, *test)
    for chunk in (1, 120, 1000):
        monkeypatch.setattr(evaluation, "_CHUNK", chunk)
        assert knn_accuracy(*train, *test) == whole
    assert 0.5 < whole < 1


def test_knn_is_twenty_neighbours_by_cosine() -> None:
    train, test = clusters(60), clusters(30, seed=1)
    assert knn_accuracy(*train, *test) == slow_knn(*train, *test, 20, 0.07)
    assert knn_accuracy(train[0] * torch.rand(60, 1), train[1], *test) == knn_accuracy(*train, *test)


def test_knn_of_small_temperature_does_not_overflow() -> None:
    train, test = clusters(60, noise=0.1), clusters(30, noise=0.1, seed=1)
    assert knn_accuracy(train[0].float(), train[1], test[0].float(), test[1], temperature=1e-4) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    train, test = clusters(200, noise=0.2), clusters(100, noise=0.2, seed=1)
    assert knn_accuracy(train[0].to(dtype), train[1], test[0].to(dtype), test[1]) > 0.97
    assert linear_probe(train[0].to(dtype), train[1].int(), test[0].to(dtype), test[1].int()) > 0.97


def test_autocast_changes_nothing() -> None:
    train, test = clusters(200, noise=0.5), clusters(100, noise=0.5, seed=1)
    expected = [function(*train, *test) for function in (knn_accuracy, linear_probe)]
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = [function(*train, *test) for function in (knn_accuracy, linear_probe)]
        rounded = linear_probe(train[0].bfloat16(), train[1], test[0].bfloat16(), test[1])
    assert under_autocast == expected and rounded > 0.9


def newton(features: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression by Newton's method with the full Hessian; the bias is a last, unpenalised column."""
    size, classes = len(features), int(labels.max()) + 1
    x = np.hstack([features, np.ones((size, 1))])
    dim = x.shape[1]
    penalties = penalty * np.repeat(np.append(np.ones(dim - 1), 0), classes)
    weight = np.zeros(dim * classes)  # (dim, classes), by rows
    for _ in range(50):
        z = x @ weight.reshape(dim, classes)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = (x.T @ (p - np.eye(classes)[labels]) / size).ravel() + penalties * weight
        hessian = np.diag(penalties)
        for row, q in zip(x, p, strict=True):
            hessian += np.kron(np.outer(row, row), np.diag(q) - np.outer(q, q)) / size
        weight -= np.linalg.lstsq(hessian, gradient, rcond=None)[0]  # a shift of all biases changes nothing
    return weight.reshape(dim, classes)[:-1], weight.reshape(dim, classes)[-1]


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_linear_probe_finds_the_unique_solution(penalty: float, classes: int) -> None:
    train, y = clusters(120, classes)
    test, wanted = clusters(80, classes, seed=1)
    mean, deviation = train.numpy().mean(0), train.numpy().std(0)
    standardised = (train.numpy() - mean) / deviation
    weight, bias = newton(standardised, y.numpy(), penalty)
    probabilities = np.exp(standardised @ weight + bias)
    probabilities /= probabilities.sum(1, keepdims=True)
    probe = evaluation.fit_probe(train.numpy(), y.numpy(), penalty, 500)
    np.testing.assert_allclose(probe.predict_proba(train.numpy()), probabilities, rtol=2e-3, atol=1e-4)
    predicted = ((test.numpy() - mean) / deviation @ weight + bias).argmax(1)
    assert linear_probe(train, y, test, wanted, penalty=penalty) == (predicted == wanted.numpy()).mean()


def test_linear_probe_stops_after_its_steps() -> None:
    train, test = clusters(120), clusters(80, seed=1)
    assert evaluation.fit_probe(train[0].numpy(), train[1].numpy(), 1e-4, 2)[-1].n_iter_ == 2
    assert linear_probe(*train, *test, steps=2) > 1 / 3


def test_linear_probe_does_not_depend_on_scales_or_shifts() -> None:
    train, y = clusters(120)
    test, wanted = clusters(80, seed=1)
    scale, shift = torch.tensor([1e3, 1e-3, 1.0, 7.0, 0.1]), 50 * torch.rand(5)
    first = linear_probe(train, y, test, wanted)
    assert linear_probe(train * scale + shift, y, test * scale + shift, wanted) == first


def test_linear_probe_is_deterministic_and_leaves_random_state() -> None:
    train, test = clusters(120), clusters(80, seed=1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert linear_probe(*train, *test) == linear_probe(*train, *test)
    assert torch.equal(torch.get_rng_state(), states[0]) and np.random.get_state()[1].tolist() == states[1]


def test_linear_probe_of_one_class_predicts_it() -> None:
    train, test = clusters(20, classes=1), clusters(30, seed=1)
    assert linear_probe(train[0], train[1] + 2, *test) == float((test[1] == 2).double().mean())


def test_linear_probe_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.dummy", None)
    train, test = clusters(20), clusters(30, seed=1)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install .*\[contrastive\]"):
        linear_probe(*train, *test)


def test_features_that_never_vary_and_classes_that_are_missing() -> None:
    train, y = clusters(60, noise=0.1)
    test, wanted = clusters(30, noise=0.1, seed=1)
    constant = torch.cat([train, torch.full((60, 1), 3.0)], 1), torch.cat([test, torch.full((30, 1), 4.0)], 1)
    assert linear_probe(constant[0], y, constant[1], wanted) == 1.0
    assert linear_probe(train, 2 * y, test, 2 * wanted) == 1.0  # classes 1 and 3 have no sample
    assert knn_accuracy(train, 2 * y, test, 2 * wanted) == 1.0
    assert linear_probe(train, y, test, wanted + 10) == 0.0  # classes never seen in training


@pytest.mark.parametrize("function", [knn_accuracy, linear_probe])
def test_wrong_inputs_raise(function) -> None:
    x, y = clusters(30)
    cases = [
        ((x, y, x[:, :3], y), ValueError, "same D"),
        ((x[0], y, x, y), ValueError, "row of D features"),
        ((x[:0], y[:0], x, y), ValueError, "row of D features"),
        ((x, y[:5], x, y), ValueError, "train_labels"),
        ((x, y, x, y - 1), ValueError, "test_labels"),
        ((x, y.float(), x, y), TypeError, "train_labels"),
        ((x.long(), y, x, y), TypeError, "train_features"),
        ((x, y, x.numpy(), y), TypeError, "test_features"),
        ((x * math.nan, y, x, y), ValueError, "diverged"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            function(*arguments)


def test_wrong_options_raise() -> None:
    x, y = clusters(30)
    for options, message in (({"k": 0}, "k must"), ({"k": 31}, "30 training"), ({"temperature": 0.0}, "temperature")):
        with pytest.raises(ValueError, match=message):
            knn_accuracy(x, y, x, y, **options)
    for options, message in (({"penalty": 0.0}, "penalty"), ({"steps": 0}, "steps")):
        with pytest.raises(ValueError, match=message):
            linear_probe(x, y, x, y, **options)
