"""Helpers for models: the mode, the device, the logits and the last layer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from dataprune import modules


def test_inference_restores_modes_and_random_state() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[1].eval()
    state = torch.get_rng_state()
    with modules.inference(model):
        torch.rand(3)
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()


def test_modes_are_restored_after_an_error() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(KeyError), modules.evaluation(model):
        raise KeyError
    assert model.training


def test_device_is_that_of_the_first_parameter() -> None:
    assert modules.device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert modules.device_of(nn.ReLU()).type == "cpu"


def test_logits_are_read_from_every_form_of_output() -> None:
    logits = torch.zeros(2, 3)
    for output in (logits, {"logits": logits}, SimpleNamespace(logits=logits), (logits, None)):
        assert modules.logits_of(output) is logits
    for output in (torch.zeros(2), {"loss": logits}, (), None):
        with pytest.raises(TypeError, match="must return"):
            modules.logits_of(output)


class TwoHeads(nn.Module):
    """The last layer that is called is not the one whose output is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.auxiliary = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return self.head(scale * x), self.auxiliary(x)


def test_last_layer_is_the_one_that_produces_the_logits() -> None:
    model = TwoHeads()
    assert modules.last_layer(model, torch.randn(2, 4), scale=2.0) is model.head
    layer, features, logits = modules.trace_last_layer(model, modules.linear_layers(model), (torch.ones(2, 4),), {})
    assert layer is model.head and torch.equal(features, torch.ones(2, 4)) and torch.equal(logits, model.head(features))
    with pytest.raises(ValueError, match=r"no nn.Linear of the model"):
        modules.last_layer(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), -torch.ones(2, 4))
