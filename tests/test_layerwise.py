"""Criteria over several layers: against slow references, and as `emp` where only the last layer counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dataprune
from dataprune import Pruner, criteria, layerwise, policies, schedules

CLASSES, WIDTHS, BATCH = 3, (5, 2), 7


def batches(count: int, seed: int = 0) -> list[tuple[Tensor, tuple[Tensor, ...], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        y = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        layers = [torch.randn(BATCH, width, generator=generator) + 10 + y[:, None] for width in WIDTHS]
        logits = torch.randn(BATCH, CLASSES, generator=generator)
        made.append((torch.rand(BATCH, generator=generator), (*layers, logits), y))
    return made


class Reference:
    """One layer's term, sample by sample, in float64."""

    def __init__(self, temperature: float, decay: float):
        self.temperature, self.decay = temperature, decay
        self.sums = {c: 0.0 for c in range(CLASSES)}
        self.counts = {c: 0.0 for c in range(CLASSES)}
        self.squares = 0.0

    def __call__(self, h: np.ndarray, y: np.ndarray) -> np.ndarray:
        for c in range(CLASSES):
            self.sums[c] = self.decay * self.sums[c] + h[y == c].sum(0)
            self.counts[c] = self.decay * self.counts[c] + (y == c).sum()
        mean = {c: self.sums[c] / self.counts[c] for c in range(CLASSES) if self.counts[c]}
        self.squares *= self.decay
        for row, c in zip(h, y, strict=True):
            self.squares += ((row - mean[c]) ** 2).sum()
        tau = 2 * self.temperature * self.squares / (sum(self.counts.values()) * h.shape[1])
        result = []
        for row in h:
            z = np.array([-((row - mu) ** 2).sum() / tau for mu in mean.values()])
            p = np.exp(z - z.max())
            p /= p.sum()
            result.append(-sum(q * np.log(q) for q in p if q > 0))
        return np.array(result)


@pytest.mark.parametrize(("temperature", "decay"), [(1.0, 0.99), (0.5, 0.6), (4.0, 0.0)])
def test_memory_equals_the_reference(temperature: float, decay: float) -> None:
    criterion = layerwise.memory((2.0, -1.0, 5.0), temperature=temperature, decay=decay)
    references = [Reference(temperature, decay) for _ in WIDTHS]
    for losses, outputs, y in batches(6):
        expected = criteria.loss_plus_entropy(5.0)(losses, outputs[-1], y).double().numpy()
        for beta, reference, layer in zip((2.0, -1.0), references, outputs, strict=False):
            expected = expected + beta * reference(layer.double().numpy(), y.numpy())
        np.testing.assert_allclose(criterion(losses, outputs, y).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_memory_of_the_last_layer_alone_is_emp_bit_for_bit(beta: float) -> None:
    ours, emp = layerwise.memory((0, 0, beta)), criteria.loss_plus_entropy(beta)
    for losses, outputs, y in batches(3):
        assert torch.equal(ours(losses, outputs, y), emp(losses, outputs[-1], y))
    assert not ours.state_dict()


def test_a_class_that_never_occurred_is_not_in_the_distribution() -> None:
    criterion = layerwise.memory((1.0, 0.0))
    h = torch.tensor([[0.0], [1.0], [0.2], [1.2]])
    score = criterion(torch.zeros(4), (h, torch.zeros(4, 50)), torch.tensor([7, 9, 7, 9]))
    assert score.isfinite().all()
    assert float(score.max()) <= np.log(2) + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_equal_features(dtype: torch.dtype) -> None:
    criterion = layerwise.memory((1.0, 1.0))
    for h in (torch.zeros(4, 2), torch.full((4, 2), 300.0), torch.randn(4, 2)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            score = criterion(torch.zeros(4), (h.to(dtype), torch.zeros(4, 3, dtype=dtype)), torch.tensor([0, 1, 2, 0]))
        assert score.isfinite().all()
        assert score.dtype == torch.float32


def trained(pruner: Pruner, first: int, last: int, states: dict[int, dict] | None = None) -> list[list[int]]:
    selections = []
    for epoch in range(first, last):
        selections.append(pruner.select(epoch).index.tolist())
        for step, index in enumerate(pruner.batches(epoch, BATCH)):
            losses, outputs, y = batches(1, seed=100 * epoch + step)[0]
            pruner.loss(index, losses, outputs, y)
        if states is not None:
            states[epoch] = pruner.state_dict()
    return selections


def built() -> Pruner:
    criterion = layerwise.memory((1.0, 1.0, 5.0))
    return Pruner(70, criterion, policies.top_k(), schedules.window(0.5, 1, 8), epochs=8)


def test_means_are_saved_with_the_pruner() -> None:
    states: dict[int, dict] = {}
    whole = trained(built(), 0, 8, states)
    second = built()
    second.load_state_dict(states[3])
    assert trained(second, 4, 8) == whole[4:]
    assert torch.equal(second.state_dict()["criterion.1"], states[7]["criterion.1"])
    without = {name: value for name, value in states[3].items() if not name.startswith("criterion.")}
    third = built()
    third.load_state_dict(without)
    trained(third, 4, 8)
    assert not torch.equal(third.state_dict()["criterion.1"], states[7]["criterion.1"])


def test_a_state_of_other_betas_is_refused() -> None:
    pruner = Pruner(70, layerwise.memory((0.0, 1.0, 5.0)), policies.top_k(), schedules.window(0.5, 1, 8), epochs=8)
    with pytest.raises(dataprune.CheckpointError, match="betas"):
        pruner.load_state_dict(built().state_dict())


def test_distance_equals_the_reference() -> None:
    rng = np.random.default_rng(0)
    layers = [tuple(rng.normal(size=(BATCH, width)) for _ in range(2)) for width in WIDTHS]
    losses = rng.random(BATCH)
    expected = losses.copy()
    for beta, (f_i, f_j) in zip((2.0, 0.5), layers, strict=True):
        length = np.mean([np.linalg.norm(f) for f in (*f_i, *f_j)])
        expected -= [beta * np.linalg.norm(a - b) / length for a, b in zip(f_i, f_j, strict=True)]
    views = [tuple(torch.from_numpy(f).float() for f in pair) for pair in layers]
    score = layerwise.distance((2.0, 0.5))(torch.from_numpy(losses).float(), views, None)
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-5)
    zero = [(torch.zeros(BATCH, 2), torch.zeros(BATCH, 2))]
    assert layerwise.distance((1.0,))(torch.zeros(BATCH), zero, None).tolist() == [0.0] * BATCH


def test_invalid_arguments_and_outputs_are_named() -> None:
    for betas in ((), 5.0, (1.0, float("nan")), (True,)):
        with pytest.raises(ValueError, match="beta"):
            layerwise.memory(betas)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="beta"):
            layerwise.distance(betas)  # type: ignore[arg-type]
    for options in ({"temperature": 0}, {"decay": 1.0}, {"decay": -0.1}):
        with pytest.raises(ValueError, match="temperature must be positive and decay"):
            layerwise.memory((1.0,), **options)
    losses, outputs, y = batches(1)[0]
    criterion = layerwise.memory((1.0, 1.0, 1.0))
    for wrong in (outputs[-1], outputs[1:], None):
        with pytest.raises(ValueError, match="each of the 3 betas"):
            criterion(losses, wrong, y)
    with pytest.raises(ValueError, match="class ids"):
        criterion(losses, outputs, None)
    with pytest.raises(ValueError, match="pooled"):
        criterion(losses, (torch.zeros(BATCH, 2, 3, 3), *outputs[1:]), y)
    with pytest.raises(ValueError, match="pair"):
        layerwise.distance((1.0,))(losses, [outputs[:1]], None)


def test_collect_pools_the_named_layers_of_every_pass_and_leaves_no_hook() -> None:
    conv = nn.Conv2d(1, 4, 3)
    model = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with layerwise.collect(model, ["1", "3"]) as layers:
        for _ in range(2):
            x = torch.randn(5, 1, 8, 8)
            model(x)
            expected = F.relu(conv(x)).mean((2, 3)).detach()
            torch.testing.assert_close(layers[0], expected)
            torch.testing.assert_close(layers[1], expected)
            assert not layers[0].requires_grad
    model(torch.zeros(2, 1, 8, 8))
    assert len(layers[0]) == 5
    with pytest.raises(ValueError, match="submodule"), layerwise.collect(model, ["7"]):
        pass


def test_collect_averages_sequences_over_tokens_and_reads_tuples() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    with layerwise.collect(model, ["0"]) as layers:
        output, _ = model(torch.randn(2, 6, 3))
    torch.testing.assert_close(layers[0], output.mean(1).detach())
