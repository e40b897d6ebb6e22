"""Costs against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from network.tiny_net import small, train
from torch import nn

from dataprune import network
from dataprune.lab.models import build


def by_hand(batch: int = 1) -> dict[str, int]:
    """Two FLOPs per multiply-add of the tiny network."""
    return {"conv": 2 * 6 * 9 * 64 * batch, "hidden": 2 * 24 * 12 * batch, "fc": 2 * 12 * 4 * batch}


def test_flops_and_parameters_are_those_counted_by_hand() -> None:
    model = small()
    cost = network.cost(model, torch.zeros(3, 1, 8, 8), repeats=2)
    assert cost.flops == sum(by_hand(3).values())
    assert cost.parameters == 6 * 9 + 6 + 12 + 24 * 12 + 12 + 12 * 4 + 4
    assert cost.latency > 0


def test_resnet18_has_its_published_multiply_adds() -> None:
    model = build.build("resnet18", (3, 32, 32), 10, 0)
    cost = network.cost(model, torch.zeros(1, 3, 32, 32), repeats=1)
    assert cost.parameters == 11_173_962
    assert cost.flops == 2 * 555_422_720  # 0.56 G multiply-adds


def test_masks_do_not_change_the_dense_cost() -> None:
    model, x = small(), torch.zeros(2, 1, 8, 8)
    before = network.cost(model, x, repeats=1)
    network.prune(model, 0.9)
    after = network.cost(model, x, repeats=1)
    assert (after.parameters, after.flops) == (before.parameters, before.flops)


def test_training_flops_add_up_data_and_network() -> None:
    model, x = small(), torch.zeros(5, 1, 8, 8)
    forward = sum(by_hand().values())
    assert network.training_flops(model, x, samples=100) == 3 * forward * 100
    assert network.training_flops(model, x, samples=100, scored=40) == (3 * 100 + 40) * forward
    assert network.training_flops(model, x, samples=0) == 0
    assert network.training_flops(model, x, samples=100, sparse=True) == 3 * forward * 100  # nothing is zero yet
    network.prune(model, 0.5, exclude="fc")
    zeros = network.sparsity(model).layers
    left = sum(flops * (1 - zeros[name]) for name, flops in by_hand().items())
    assert network.training_flops(model, x, samples=100) == 3 * forward * 100
    assert network.training_flops(model, x, samples=100, sparse=True) == pytest.approx(3 * left * 100)
    network.finalize(model)
    assert network.training_flops(model, x, samples=100, sparse=True) == pytest.approx(3 * left * 100)


def test_inputs_may_be_positional_or_named_and_layers_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)

        def forward(self, a, b):
            return self.fc(a) @ self.fc(b).T

    model, a = Twice(), torch.ones(3, 4)
    flops = 2 * (2 * 3 * 16) + 2 * 9 * 4
    assert network.cost(model, (a, a), repeats=1).flops == flops
    assert network.cost(model, {"a": a, "b": a}, repeats=1).flops == flops
    network.prune(model, 0.5)
    assert network.training_flops(model, {"a": a, "b": a}, samples=3, sparse=True) == 3 * (2 * 3 * 16 + 2 * 9 * 4)


def test_measuring_leaves_the_model_and_the_random_state_as_they_were() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    network.cost(model, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), repeats=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_masked_model_trains_on_after_being_measured() -> None:
    model = small()
    network.prune(model, 0.5)
    network.cost(model, torch.zeros(1, 1, 8, 8), repeats=1)
    penalty = sum(layer.weight.abs().sum() for layer in (model.hidden, model.fc))  # reads what the last pass left
    assert torch.isfinite(penalty)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)


def test_wrong_arguments_are_refused() -> None:
    model, x = small(), torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="repeats"):
        network.cost(model, x, repeats=0)
    with pytest.raises(TypeError, match="example_inputs are missing"):
        network.cost(model, None)
    with pytest.raises(ValueError, match="samples"):
        network.training_flops(model, x, samples=-1)
    with pytest.raises(ValueError, match="scored"):
        network.training_flops(model, x, samples=1, scored=-1)
