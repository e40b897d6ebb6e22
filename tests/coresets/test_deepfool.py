"""DeepFool against the closed form of a linear classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dataprune import coresets
from dataprune.coresets import _deepfool


def linear(classes: int = 5, width: int = 6, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(width, classes).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, width, generator=generator))
        layer.bias.copy_(torch.randn(classes, generator=generator))
    return layer


def closed_form(layer: nn.Linear, x: Tensor) -> Tensor:
    """min over the other classes of (f_k − f_own)² / ‖w_k − w_own‖²."""
    logits = layer(x)
    own = logits.argmax(1)
    gap = (logits - logits.gather(1, own[:, None])).square()
    length = (layer.weight[None] - layer.weight[own][:, None]).square().sum(2)
    return (gap / length).scatter(1, own[:, None], torch.inf).amin(1).detach()


def inputs(size: int, width: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distances(model: nn.Module, x: Tensor, **options: int) -> tuple[Tensor, Tensor]:
    settings = {"iterations": 50, "nearest": 10, "batch_size": 128} | options
    return _deepfool.distances(model, x, **settings, reach=1.02)


@pytest.mark.parametrize("batch_size", [7, 128])
def test_a_linear_classifier_has_a_closed_form(batch_size: int) -> None:
    layer, x = linear(), inputs(50)
    square, crossed = distances(layer, x, batch_size=batch_size)
    assert bool(crossed.all())
    torch.testing.assert_close(square, closed_form(layer, x))
    selection = coresets.deepfool(layer, x, keep=0.2, batch_size=batch_size)
    assert selection.index.tolist() == sorted(closed_form(layer, x).argsort()[:10].tolist())
    assert torch.equal(selection.weight, torch.ones(10))


def test_only_the_nearest_classes_are_considered() -> None:
    layer = nn.Linear(2, 3, bias=False).double()
    with torch.no_grad():  # class 1 has the higher logit, class 2 the closer boundary
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.9, 0.0], [-9.0, 0.0]]))
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert float(distances(layer, x, nearest=1)[0]) == pytest.approx(1.0)
    layer.weight.data[1] = torch.tensor([0.9, 0.1])
    both = float(distances(layer, x, nearest=2)[0])
    assert both == pytest.approx(min(0.1**2 / 0.02, 1.0))


def test_a_curved_boundary_is_reached_in_steps() -> None:
    class Circle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.square().sum(1), torch.ones(len(x))], dim=1)

    x = torch.tensor([[3.0, 4.0], [1.2, 0.0], [0.3, 0.0]])
    square, crossed = distances(Circle(), x)
    assert bool(crossed.all())
    # from outside Newton's steps end near the circle; from inside the first step already ends beyond it
    torch.testing.assert_close(square.sqrt(), torch.tensor([4.0, 0.2, 0.91 / 0.6]), atol=0.05, rtol=0.02)
    _, early = distances(Circle(), x, iterations=1)
    assert not bool(early.all())
    assert coresets.deepfool(Circle(), x, keep=0.34, iterations=1).index.tolist() == [2]  # the one that crossed


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.ReLU(), nn.Linear(8, 3)).double()
    model[1].eval()  # a frozen layer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        first = coresets.deepfool(model, inputs(20), keep=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        assert torch.equal(coresets.deepfool(model, inputs(20), keep=0.5, batch_size=3).index, first.index)
    assert model.training and model[2].training and not model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_outputs_and_shapes_as_models_have_them() -> None:
    class Output(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear(width=8)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": torch.zeros(()), "logits": self.inner(x.flatten(1))}

    model, x = Output(), inputs(10, width=8).view(10, 2, 2, 2)
    torch.testing.assert_close(distances(model, x)[0], closed_form(model.inner, x.flatten(1)))


def test_degenerate_models_and_inputs() -> None:
    flat = linear()
    with torch.no_grad():
        flat.weight.zero_()
    square, crossed = distances(flat, inputs(8))
    assert not bool(crossed.any()) and square.tolist() == [0.0] * 8
    assert len(coresets.deepfool(flat, inputs(8), keep=0.5).index) == 4
    picks = {tuple(coresets.deepfool(flat, inputs(8), keep=0.5, seed=seed).index.tolist()) for seed in range(5)}
    assert len(picks) > 1
    with torch.no_grad():  # every sample lies on the boundary
        flat.bias.zero_()
    assert bool(distances(flat, inputs(8))[1].all())
    assert coresets.deepfool(linear(), inputs(1), keep=0.01).index.tolist() == [0]
    assert len(coresets.deepfool(linear(), inputs(1).repeat(9, 1), keep=0.3).index.unique()) == 3


def test_bad_input() -> None:
    layer, x = linear(), inputs(8)
    broken = x.clone()
    broken[0, 0] = torch.nan
    for options, error, message in [
        ({"inputs": x.long()}, TypeError, "perturbed"),
        ({"inputs": broken}, ValueError, "NaN"),
        ({"inputs": x[0]}, ValueError, "a sample per row"),
        ({"inputs": x[:0]}, ValueError, "no sample"),
        ({"keep": 0.0}, ValueError, "fraction kept"),
        ({"iterations": 0}, ValueError, "iterations"),
        ({"nearest": 0}, ValueError, "nearest"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"overshoot": -1.0}, ValueError, "overshoot"),
        ({"max_memory": 100}, ValueError, "max_memory"),
        ({"model": linear(classes=1)}, ValueError, "two classes"),
        ({"model": nn.Flatten(0)}, TypeError, "logits"),
    ]:
        with pytest.raises(error, match=message):
            coresets.deepfool(**{"model": layer, "inputs": x, "keep": 0.5, **options})
