"""The criterion `information` and its book: against a slow reference, and against a closed form of the information."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from methods_under_test import CLASSES, KEEP, SIZE, signals
from scipy import special, stats

import dataprune
from dataprune import criteria, policies
from dataprune.scores import PredictionBook

EPOCHS = 14


def entropy(p: np.ndarray) -> np.ndarray:
    return special.entr(p.astype(np.float64)).sum(-1)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.asarray(stats.spearmanr(a, b))[0])


def reference(rows: list[np.ndarray], smoothing: float) -> float:
    """Score of one sample after these predictions: equal weights up to 1 / smoothing of them, then a moving mean."""
    mean, uncertain = np.zeros_like(rows[0], dtype=np.float64), 0.0
    for number, row in enumerate(rows, start=1):
        rate = max(smoothing, 1 / number)
        mean = (1 - rate) * mean + rate * row
        uncertain = (1 - rate) * uncertain + rate * entropy(row)
    most = math.log(len(rows[0]))
    return most if rate == 1 else min(float(entropy(mean) - uncertain) / (1 - rate), most)


@pytest.mark.parametrize("smoothing", [0.05, 0.3, 1.0])
def test_book_equals_the_reference_in_one_part_or_many(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    index = torch.from_numpy(rng.integers(0, 7, 120))  # repeated; 7 and 8 never
    rows = torch.from_numpy(rng.dirichlet(np.full(4, 0.3), 120)).float()
    whole, parts = PredictionBook(9), PredictionBook(9)
    whole.record(index, rows, smoothing)
    for at, new in zip(index.split(11), rows.split(11), strict=True):
        parts.record(at, new, smoothing)
    for sample in range(7):
        expected = reference(list(rows[index == sample].numpy()), smoothing)
        assert float(whole.score[sample]) == pytest.approx(expected, abs=2e-6)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    assert whole.score[7:].isnan().all()


@pytest.mark.parametrize(("more", "entropy_range"), [(0, (-0.05, 0.4)), (3, (-0.9, -0.3))])
def test_information_follows_the_closed_form_and_entropy_does_not(more: float, entropy_range: tuple) -> None:
    """p ~ Beta(a, b) over snapshots: I = H(a / n) - E H(p), where E H(p) is a sum of digamma functions.

    With `more` the evidence n is larger for uncertain samples, as where those of high entropy are trained more.
    """
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 1, 1000)
    evidence = np.exp(rng.uniform(np.log(5), np.log(20), 1000)) * (1 + more * 4 * mean * (1 - mean))
    a, b = evidence * mean, evidence * (1 - mean)
    pair = np.stack([mean, 1 - mean], axis=-1)
    digammas = special.digamma(np.stack([a, b], axis=-1) + 1) - special.digamma(evidence + 1)[:, None]
    truth = entropy(pair) + (pair * digammas).sum(-1)
    correlation = {}
    for count in (5, 20, 100):
        book = PredictionBook(1000)
        for _ in range(count):
            p = torch.from_numpy(rng.beta(a, b)).float()
            book.record(torch.arange(1000), torch.stack([p, 1 - p], dim=1), smoothing=1 / count)
        correlation[count] = rank_correlation(book.score.numpy(), truth)
    assert 0.35 < correlation[5] < correlation[20] - 0.1
    assert correlation[20] < correlation[100] - 0.1
    assert correlation[100] > 0.85
    low, high = entropy_range
    assert low < rank_correlation(entropy(pair), truth) < high


def test_few_snapshots_have_as_much_information_as_many_on_average() -> None:
    rng = np.random.default_rng(1)
    book = PredictionBook(4000)
    for number in range(40):
        at = torch.arange(4000 if number < 4 else 2000)
        p = torch.from_numpy(rng.beta(20, 30, len(at))).float()
        book.record(at, torch.stack([p, 1 - p], dim=1), smoothing=1 / 40)
    many, few = book.score[:2000].mean(), book.score[2000:].mean()
    assert float(few / many) == pytest.approx(1, abs=0.05)  # without the correction 0.77


@pytest.mark.parametrize("snapshots", [3, 20])
def test_method_keeps_the_unseen_then_those_seen_once_then_the_most_information(snapshots: int) -> None:
    pruner = dataprune.information(SIZE, keep=KEEP, epochs=EPOCHS, warmup=0, snapshots=snapshots)
    rows: dict[int, list[np.ndarray]] = {}
    for epoch in range(EPOCHS):
        index = pruner.select(epoch).index
        left = set(range(SIZE)) - set(index.tolist())
        score = {i: np.inf if i not in rows else reference(rows[i], 1 / snapshots) for i in range(SIZE)}
        if left:
            assert min(score[i] for i in index.tolist()) >= max(score[i] for i in left) - 1e-5, f"epoch {epoch}"
        losses, logits, targets = signals(epoch, index)
        pruner.update(index, losses, logits, targets)
        for i, row in zip(index.tolist(), torch.softmax(logits.double(), 1).numpy(), strict=True):
            rows.setdefault(i, []).append(row)
    assert len(rows) == SIZE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_and_excluded_classes(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [2.0, 1.0, -torch.inf]], dtype=dtype)
    p = criteria.information()(torch.zeros(2), logits, None)
    assert p.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(p.float(), torch.tensor([[1, 0, 0], [0.7310586, 0.2689414, 0]]))
    book = PredictionBook(2)
    for _ in range(3):
        book.record(torch.arange(2), p.float())
        assert book.score.isfinite().all()


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (None, None),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3, 1), torch.zeros(3, 1)),
        (torch.zeros(3, 4, 5), torch.zeros(3, 4).long()),
        (torch.zeros(3, 4), torch.ones(3, 4).long()),  # independent labels
        ((torch.zeros(3), torch.ones(3)), None),
    ],
)
def test_outputs_that_are_no_logits_of_classes_are_refused(outputs: object, targets: object) -> None:
    with pytest.raises(ValueError, match="exclusive classes"):
        criteria.information()(torch.zeros(3), outputs, targets)


def test_losses_and_outputs_that_are_not_finite_are_refused() -> None:
    pruner = dataprune.information(4, keep=0.5, epochs=4)
    index = pruner.select(0).index
    with pytest.raises(ValueError, match="NaN"):
        pruner.update(index, torch.full((4,), torch.nan), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="NaN"):
        pruner.update(index, torch.zeros(4), torch.full((4, 3), torch.nan))


def test_another_number_of_classes_is_refused_and_named() -> None:
    pruner = dataprune.information(4, keep=0.5, epochs=4)
    pruner.update(pruner.select(0).index, torch.zeros(4), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="shape"):
        pruner.update(torch.tensor([0]), torch.zeros(1), torch.zeros(1, 5))
    other = dataprune.information(4, keep=0.5, epochs=4)
    other.load_state_dict(pruner.state_dict())
    other.select(1)
    other.update(other.select(1).index, torch.zeros(2), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="5 classes, those before had 3"):
        other.select(2)


def test_state_of_another_size_or_method_is_refused() -> None:
    state = dataprune.information(6, keep=0.5, epochs=4).state_dict()
    with pytest.raises(dataprune.CheckpointError, match="6 samples"):
        dataprune.information(5, keep=0.5, epochs=4).load_state_dict(state)
    with pytest.raises(dataprune.CheckpointError, match="criterion"):
        dataprune.memory(6, keep=0.5, epochs=4).load_state_dict(state)
    with pytest.raises(dataprune.CheckpointError, match="mean_prediction"):
        dataprune.information(6, keep=0.5, epochs=4).load_state_dict(state | {"mean_prediction": torch.zeros(5, 3)})


@pytest.mark.parametrize("snapshots", [0, -1, 1.5])
def test_snapshots_is_a_whole_number(snapshots: object) -> None:
    with pytest.raises(ValueError, match="snapshots"):
        dataprune.information(10, keep=0.5, epochs=4, snapshots=snapshots)  # type: ignore[arg-type]


def test_balance_gives_every_class_its_places() -> None:
    labels = torch.arange(SIZE) % CLASSES
    pruner = dataprune.information(SIZE, keep=0.3, epochs=6, balance=labels)
    for epoch in range(4):
        index = pruner.select(epoch).index
        pruner.update(index, *signals(epoch, index))
    counts = labels[pruner.select(4).index].bincount()
    assert counts.max() - counts.min() <= 1
    assert isinstance(pruner.policy, policies.top_information)
