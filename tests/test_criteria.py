"""Criteria against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dataprune
from dataprune import criteria, distributions


class Largest(TorchDispatchMode):
    """Notes the numel of the largest tensor that comes to own memory inside."""

    def __init__(self, *known: Tensor):
        super().__init__()
        self.numel = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in self.known:
                self.numel = max(self.numel, leaf.numel())
        return result


def entropy(logits: Tensor) -> float:
    """H of one row, in float64."""
    z = logits.double().numpy()
    p = np.exp(z - z.max())
    p = p / p.sum()
    return float(-sum(q * math.log(q) for q in p if q > 0))


def losses(count: int) -> Tensor:
    return torch.linspace(0.5, 2, count)


def test_loss_is_the_loss() -> None:
    assert torch.equal(criteria.loss(losses(4), None, None), losses(4))


@given(
    batch=st.integers(1, 5),
    classes=st.integers(2, 20),
    scale=st.sampled_from([0.0, 0.1, 3.0, 50.0, 1e4]),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_entropy_of_logits(batch: int, classes: int, scale: float, seed: int) -> None:
    logits = scale * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))
    result = criteria.entropy(losses(batch), logits, None)
    assert result.shape == (batch,)
    wanted = torch.tensor([entropy(row) for row in logits])
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)
    assert (result >= 0).all()
    assert (result <= math.log(classes) + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]], dtype=dtype)
    result = criteria.entropy(losses(3), logits, None)
    torch.testing.assert_close(result.float(), torch.tensor([0.0, math.log(3), math.log(2)]))
    assert criteria.loss_plus_entropy()(losses(3).to(dtype), logits, None).isfinite().all()


@pytest.mark.parametrize("classes", [2, 10, 15, 40])
def test_a_score_does_not_depend_on_the_batch(classes: int) -> None:
    logits = 3 * torch.randn(128, classes, generator=torch.Generator().manual_seed(0))
    whole = criteria.entropy(losses(128), logits, None)
    for begin, end in ((0, 1), (3, 10), (1, 127), (60, 93)):
        assert torch.equal(criteria.entropy(losses(end - begin), logits[begin:end].clone(), None), whole[begin:end])


@pytest.mark.parametrize("classes", [3, 15, 16, 40])
def test_excluded_classes_count_nothing_and_nan_shows(classes: int) -> None:
    logits = torch.full((3, classes), -math.inf)
    logits[:2, [0, -1]] = 0
    logits[1, 1] = math.nan
    tokens = torch.zeros(3, 1, dtype=torch.int64)
    for result in (criteria.entropy(losses(3), logits, None), criteria.entropy(losses(3), logits[:, None], tokens)):
        torch.testing.assert_close(result[0], torch.tensor(math.log(2)))
        assert result[1:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_lose_no_more_than_their_rounding(dtype: torch.dtype) -> None:
    logits = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = torch.tensor([entropy(row.float()) for row in logits])
    result = criteria.entropy(losses(20), logits, None)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-4)
    mixed = criteria.loss_plus_entropy(5.0)(losses(20).to(dtype), logits, None)
    torch.testing.assert_close(mixed, losses(20).to(dtype).float() + 5 * wanted, rtol=1e-5, atol=1e-3)


def test_emp_is_loss_plus_beta_entropy() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for beta in (0.0, 1.0, 5.0):
        wanted = torch.tensor([float(loss) + beta * entropy(row) for loss, row in zip(losses(6), logits, strict=True)])
        torch.testing.assert_close(criteria.loss_plus_entropy(beta)(losses(6), logits, None), wanted)
    default = criteria.loss_plus_entropy()(losses(6), logits, None)
    torch.testing.assert_close(default, criteria.loss_plus_entropy(5.0)(losses(6), logits, None))


def test_soft_targets_change_nothing() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    soft = torch.softmax(torch.randn(6, 4), dim=1)
    emp = criteria.loss_plus_entropy()
    assert torch.equal(emp(losses(6), logits, soft), emp(losses(6), logits, torch.zeros(6, dtype=torch.int64)))
    assert torch.equal(emp(losses(6), logits, soft), emp(losses(6), logits, None))


# -- sequences -------------------------------------------------------------------------------------------------------


def token_means(logits: Tensor, targets: Tensor | None) -> Tensor:
    wanted = []
    for sample in range(len(logits)):
        tokens = [
            entropy(logits[sample, s])
            for s in range(logits.shape[1])
            if targets is None or int(targets[sample, s]) != -100
        ]
        wanted.append(sum(tokens) / len(tokens) if tokens else 0.0)
    return torch.tensor(wanted)


def test_sequences_average_over_valid_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 5, generator=draw)
    targets = torch.randint(0, 5, (4, 6), generator=draw)
    targets[0, 2:] = -100
    targets[1] = -100  # nothing valid at all
    result = criteria.entropy(losses(4), logits, targets)
    torch.testing.assert_close(result, token_means(logits, targets))
    assert result[1] == 0
    softmax = criteria.entropy(losses(4), logits, None, distribution="softmax")
    torch.testing.assert_close(softmax, token_means(logits, None))


def test_what_stands_at_ignored_tokens_does_not_matter() -> None:
    logits = torch.randn(2, 3, 5)
    targets = torch.tensor([[1, 2, -100], [0, -100, -100]])
    clean = criteria.entropy(losses(2), logits, targets)
    for junk in (1e4, math.inf, math.nan):
        dirty = logits.clone()
        dirty[targets == -100] = junk
        assert torch.equal(criteria.entropy(losses(2), dirty, targets), clean), junk


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("shape", [(3, 40, 50), (1, 200, 30), (60, 2, 50), (2, 3, 900)])
def test_sequences_are_scored_in_chunks(shape: tuple, shifted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second (B, S, V) tensor, not even where the logits are a slice, as language models shift them."""
    monkeypatch.setattr(distributions, "_CHUNK", 1000)
    batch, tokens, classes = shape
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, tokens + 1, classes, generator=draw)
    targets = torch.randint(0, classes, (batch, tokens + 1), generator=draw)
    targets[:, 1] = -100
    logits, targets = (logits[:, :-1], targets[:, 1:]) if shifted else (logits[:, 1:].contiguous(), targets[:, 1:])
    with Largest(logits, targets) as largest:
        result = criteria.entropy(losses(batch), logits, targets)
    assert largest.numel <= max(1000, batch * tokens)
    torch.testing.assert_close(result, token_means(logits, targets), rtol=1e-4, atol=1e-5)


def test_sequences_and_targets_must_agree() -> None:
    with pytest.raises(ValueError, match="classes last"):
        criteria.entropy(losses(2), torch.zeros(2, 5, 3), torch.zeros(2, 4, dtype=torch.int64))
    for criterion in (criteria.entropy, criteria.loss_plus_entropy()):
        with pytest.raises(ValueError, match=r"may be \(B, S, C\) or \(B, C, S\).*softmax.*bernoulli.*gaussian"):
            criterion(losses(2), torch.zeros(2, 5, 3), None)


def test_classes_may_come_second() -> None:
    logits = torch.randn(3, 6, 4)
    targets = torch.randint(0, 4, (3, 6))
    targets[0, 4:] = -100
    last = criteria.entropy(losses(3), logits, targets)
    torch.testing.assert_close(criteria.entropy(losses(3), logits.transpose(1, 2), targets), last)


# -- sigmoids --------------------------------------------------------------------------------------------------------


def sigmoid_entropy(logits: Tensor) -> Tensor:
    p = torch.sigmoid(logits.double())
    each = -(p * p.log() + (1 - p) * (1 - p).log())
    return each.reshape(len(logits), -1).mean(dim=1).float()


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 4), (6, 3, 2)])
def test_entropy_of_independent_sigmoids(shape: tuple) -> None:
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = criteria.entropy(losses(6), logits, None, distribution="bernoulli")
    torch.testing.assert_close(result, sigmoid_entropy(logits))
    emp = criteria.loss_plus_entropy(2.0, "bernoulli")(losses(6), logits, None)
    torch.testing.assert_close(emp, losses(6) + 2 * result)
    torch.testing.assert_close(criteria.entropy_of("bernoulli")(losses(6), logits, None), result)


def test_certain_and_uncertain_labels() -> None:
    logits = torch.tensor([[9.0, 9, 9], [0.0, 0, 0]])
    softmax = criteria.entropy(torch.zeros(2), logits, None)
    torch.testing.assert_close(softmax, torch.full((2,), math.log(3)))
    wanted = torch.tensor([0.0012340, math.log(2)])
    multi_hot = torch.tensor([[1.0, 1, 1], [0, 0, 1]])
    for targets in (multi_hot, multi_hot.long(), multi_hot.bool()):
        torch.testing.assert_close(criteria.entropy(torch.zeros(2), logits, targets), wanted, rtol=1e-4, atol=1e-6)
    extreme = torch.tensor([[math.inf, -math.inf, 1e30]])
    assert criteria.entropy(torch.zeros(1), extreme, None, distribution="bernoulli") < 1e-30


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_logit_is_a_classifier_where_targets_are_0_and_1(shape: tuple) -> None:
    logits = torch.randn(shape)
    for targets in (torch.tensor([0.0, 1, 1, 0]), torch.tensor([0, 1, 1, 0]), torch.tensor([False, True, True, False])):
        result = criteria.entropy(losses(4), logits, targets.reshape(shape))
        torch.testing.assert_close(result, sigmoid_entropy(logits))
        emp = criteria.loss_plus_entropy(1.0)(losses(4), logits, targets.reshape(shape))
        torch.testing.assert_close(emp, losses(4) + result)
    scores = torch.tensor([0.3, 1.0, 2.0, 0.0]).reshape(shape)
    assert torch.equal(criteria.loss_plus_entropy()(losses(4), logits, scores), losses(4))
    for criterion in (criteria.entropy, criteria.loss_plus_entropy()):
        with pytest.raises(ValueError, match=r"binary classifier or a regression.*bernoulli.*gaussian.*softmax"):
            criterion(losses(4), logits, None)


def test_recipes_name_their_distribution() -> None:
    logits = 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for name in ("memory", "emp", "emp_reverse"):
        pruner = dataprune.METHODS[name](6, keep=0.5, epochs=4, distribution="bernoulli")
        pruner.update(torch.arange(6), torch.zeros(6), logits)
        pruner.sync()
        scale = 1 if name == "memory" else 5
        torch.testing.assert_close(pruner.book.score, scale * sigmoid_entropy(logits))
        with pytest.raises(ValueError, match="distribution"):
            dataprune.METHODS[name](6, keep=0.5, epochs=4, distribution="poisson")
    with pytest.raises(dataprune.CheckpointError, match="distribution"):
        dataprune.emp(6, keep=0.5, epochs=4).load_state_dict(
            dataprune.emp(6, keep=0.5, epochs=4, distribution="softmax").state_dict()
        )


# -- regression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_a_single_regression_output_leaves_the_loss(shape: tuple) -> None:
    emp = criteria.loss_plus_entropy(distribution="gaussian")
    assert torch.equal(emp(losses(4), torch.randn(shape), None), losses(4))
    several = criteria.loss_plus_entropy()
    assert torch.equal(several(losses(4), (torch.randn(4, 3), None), torch.randn(4, 3)), losses(4))
    for outputs in (torch.randn(shape), (torch.randn(4, 3), None)):
        with pytest.raises(ValueError, match="has no memory term: use `loss`"):
            criteria.entropy(losses(4), outputs, torch.randn(shape))
    with pytest.raises(ValueError, match=r"neither class probabilities.*softmax.*bernoulli.*gaussian"):
        several(losses(4), torch.randn(4, 3), torch.randn(4, 3))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_predicted_variance_has_an_entropy(shape: tuple, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(shape, generator=draw).to(dtype)
    variance = (torch.rand(shape, generator=draw) * 3 + 0.1).to(dtype)
    wanted = []
    for row in variance.float().reshape(4, -1).tolist():
        wanted.append(sum(0.5 * math.log(2 * math.pi * math.e * value) for value in row))
    result = criteria.entropy(losses(4), (mean, variance), None)
    torch.testing.assert_close(result.float(), torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    emp = criteria.loss_plus_entropy(2.0)(losses(4), (mean, variance), None)
    torch.testing.assert_close(emp.float(), losses(4) + 2 * torch.tensor(wanted), rtol=1e-5, atol=1e-5)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outputs", [None, torch.zeros(3), torch.zeros(3, 1), torch.zeros(3, 2, 2, 2), {"logits": 1}, "text", 5]
)
def test_memory_refuses_outputs_without_a_distribution(outputs: object) -> None:
    with pytest.raises(ValueError, match=r"\(B, C\)"):
        criteria.entropy(losses(3), outputs, None)


def test_logits_and_features_are_no_mean_and_variance() -> None:
    logits = torch.randn(3, 4)
    for features in (torch.randn(3, 16), torch.randn(3, 4)):
        with pytest.raises(ValueError, match="logits alone"):
            criteria.entropy(losses(3), (logits, features), None)


def test_emp_asks_for_the_outputs() -> None:
    with pytest.raises(ValueError, match=r"outputs"):
        criteria.loss_plus_entropy()(losses(3), None, None)


def test_outputs_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="same batch"):
        criteria.entropy(losses(3), torch.zeros(4, 5), None)
    with pytest.raises(ValueError, match="variance"):
        criteria.entropy(losses(3), (torch.zeros(4), torch.ones(4)), None)


@pytest.mark.parametrize("variance", [0.0, -1.0])
def test_no_criterion_hides_an_impossible_variance(variance: float) -> None:
    with pytest.raises(ValueError, match="variance, which is positive"):
        criteria.entropy(losses(1), (torch.zeros(1), torch.tensor([variance])), None)
