"""Channels removed for real: the model that is left computes what the whole one does without them."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from network.tiny_net import small, train
from torch import nn

from dataprune import network
from dataprune.lab.models import build

needs_torch_pruning = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None,
    reason="torch-pruning is not installed: pip install -c constraints.txt -e '.[network]'",
)
SHAPES = {  # model -> image, small where a model takes time
    "lenet": (1, 28, 28),
    "mlp": (1, 8, 8),
    "small_cnn": (1, 16, 16),
    "resnet18": (3, 16, 16),
    "resnet34": (3, 8, 8),
    "resnet50": (3, 8, 8),
}


def built(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """A model whose batch norm is not the identity, and a batch for it."""
    model = build.build(name, SHAPES[name], 10, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                value.uniform_(0.5, 1.5, generator=generator)
    return model, torch.randn(2, *SHAPES[name], generator=generator)


def coupled(model: nn.Module) -> list[set[str]]:
    """Convolutions of a ResNet that are added up, read off its architecture."""
    sets = []
    for stage in ("layer1", "layer2", "layer3", "layer4") if hasattr(model, "layer1") else ():
        blocks = [f"{stage}.{number}" for number in range(len(getattr(model, stage)))]
        modules = dict(model.named_modules())
        last = {
            block: max(n for n, m in modules[f"{block}.body"].named_children() if hasattr(m, "kernel_size"))
            for block in blocks
        }
        members = {f"{block}.body.{number}" for block, number in last.items()}
        projected = f"{blocks[0]}.shortcut.0"
        sets.append(members | {projected if projected in modules else "stem.0"})
    return sets


def silenced(model: nn.Module, keep: dict[str, torch.Tensor]) -> nn.Module:
    """The whole model with the removed channels put to zero behind each layer, or behind its batch norm."""
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    names = list(modules)
    for name, mask in keep.items():
        layer = name.removesuffix(".weight")
        for member in next((members for members in coupled(model) if layer in members), {layer}):
            following = modules[names[(names.index(member) + 1) % len(names)]]
            target = following if isinstance(following, nn.BatchNorm2d) else modules[member]
            target.register_forward_hook(
                lambda module, inputs, out, mask=mask: out * mask.view(1, -1, *[1] * (out.ndim - 2))
            )
    return model


@needs_torch_pruning
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_left_computes_what_the_whole_does_without_the_channels(name: str, scope: str) -> None:
    model, x = built(name)
    whole = copy.deepcopy(model)
    amount = 0.5 if scope == "layer" else 0.2
    masks = network.prune(model, amount, scope=scope, granularity="channel", example_inputs=x)
    removed = sum(int((~keep).sum()) for keep in masks.keep.values())
    free = {"lenet": 226, "mlp": 256, "small_cnn": 160}.get(name)
    if free:  # channels of all but the last layer
        assert removed == math.floor(amount * free + 0.5)
    with torch.no_grad():
        expected = silenced(whole, masks.keep).eval()(x)
        tolerance = 1e-4 * float(expected.abs().max())
        assert (expected - whole.eval()(x)).abs().max() > 100 * tolerance  # the channels did matter
        torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=tolerance)


@needs_torch_pruning
@pytest.mark.parametrize("name", SHAPES)
def test_every_model_shrinks_runs_and_trains(name: str) -> None:
    model, x = built(name)
    before = network.cost(model, x, repeats=1)
    counts = {layer: module.out_channels for layer, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    network.prune(model, 0.5, granularity="channel", example_inputs=x)
    after = network.cost(model, x, repeats=1)
    assert after.parameters < 0.7 * before.parameters and after.flops < 0.7 * before.flops
    for layer, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == counts[layer] - math.floor(0.5 * counts[layer] + 0.5)
    assert model.fc.out_features == 10 and model.fc.weight.shape[0] == 10  # classes are never pruned
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    model(x).sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())


@needs_torch_pruning
def test_the_smallest_filters_go_first() -> None:
    model, x = built("small_cnn")
    weight = dict(model.named_modules())["conv2.0"].weight.detach().numpy()
    norms = [sum(abs(float(w)) for w in filters.flat) for filters in weight]
    smallest = np.argsort(norms)[:8]
    keep = network.prune(model, 0.25, granularity="channel", example_inputs=x).keep["conv2.0.weight"]
    assert sorted((~keep).nonzero().squeeze(1).tolist()) == sorted(smallest.tolist())


@needs_torch_pruning
def test_global_removes_the_amount_of_all_channels_by_relative_norm() -> None:
    model, x = built("small_cnn")
    layers = [dict(model.named_modules())[f"conv{number}.0"] for number in (1, 2, 3, 4)]
    norms = []
    for number, layer in enumerate(layers):
        each = layer.weight.detach().double().abs().sum((1, 2, 3))
        norms += [(float(norm), number, channel) for channel, norm in enumerate(each / each.mean())]
    smallest = sorted(norms)[: math.floor(0.3 * len(norms) + 0.5)]
    masks = network.prune(model, 0.3, scope="global", granularity="channel", example_inputs=x)
    removed = {
        (number, channel)
        for number in range(4)
        for channel in (~masks.keep[f"conv{number + 1}.0.weight"]).nonzero().squeeze(1).tolist()
    }
    assert removed == {(number, channel) for _, number, channel in smallest}


@needs_torch_pruning
def test_equal_filters_give_the_exact_count() -> None:
    model, x = built("small_cnn")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
    masks = network.prune(model, 0.3, granularity="channel", example_inputs=x)
    assert [int((~keep).sum()) for keep in reversed(masks.keep.values())] == [5, 10, 14, 19]  # of 16, 32, 48, 64


@needs_torch_pruning
def test_the_same_channels_are_removed_from_a_fresh_model() -> None:
    model, x = built("resnet18")
    first = network.prune(model, 0.3, granularity="channel", example_inputs=x)
    second = network.prune(model, 0.3, granularity="channel", example_inputs=x)
    fresh, _ = built("resnet18", seed=3)
    for masks in (first, second):
        network.apply(fresh, network.Masks.of(masks.state_dict()), example_inputs=x)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), model.eval()(x))
    with pytest.raises(ValueError, match="unpruned model"):
        network.apply(fresh, first, example_inputs=x)


@needs_torch_pruning
def test_amount_zero_changes_nothing() -> None:
    model, x = built("lenet")
    before = copy.deepcopy(model.state_dict())
    assert network.prune(model, 0, granularity="channel", example_inputs=x).keep == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@needs_torch_pruning
def test_one_sample_is_not_taken_apart() -> None:
    for name in ("lenet", "small_cnn"):
        model, x = built(name)
        seen = []
        model.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].shape))
        network.prune(model, 0.5, granularity="channel", example_inputs=x[:1])
        assert set(seen) == {x[:1].shape}
        assert model(x).shape == (2, 10)


@needs_torch_pruning
def test_modes_statistics_gradients_and_random_state_are_left_alone() -> None:
    model, x = built("small_cnn")
    model.conv1.eval()
    model.conv1.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    network.prune(model, 0.5, granularity="channel", example_inputs=x)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("conv1")}
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        network.prune(model, 0.5, granularity="channel", example_inputs=x)  # though the graph needs gradients


@needs_torch_pruning
def test_grouped_depthwise_and_transposed_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.Conv2d(16, 32, 3, groups=4),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.ConvTranspose2d(32, 12, 3),
        nn.Flatten(),
        nn.Linear(12 * 36, 5),
    )
    x = torch.randn(2, 3, 8, 8)
    network.prune(model, 0.5, granularity="channel", example_inputs=x)
    assert (model[0].out_channels, model[1].num_channels, model[2].out_channels) == (8, 8, 16)
    assert (model[2].groups, model[4].groups, model[5].out_channels, model[7].in_features) == (4, 16, 6, 216)
    assert model(x).shape == (2, 5)


@needs_torch_pruning
def test_excluded_layers_keep_their_outputs() -> None:
    model, x = built("small_cnn")
    network.prune(model, 0.5, granularity="channel", exclude=["conv2", model.conv4], example_inputs=x)
    assert [getattr(model, f"conv{number}")[0].out_channels for number in (1, 2, 3, 4)] == [8, 32, 24, 64]


@needs_torch_pruning
def test_masks_can_follow_channels_but_not_the_other_way_round() -> None:
    model, x = small(), torch.zeros(2, 1, 8, 8)
    network.prune(model, 0.5, granularity="channel", example_inputs=x)
    network.prune(model, 0.5)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert network.sparsity(model).overall == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="finalize"):
        network.prune(model, 0.3, granularity="channel", example_inputs=x)
    network.finalize(model)
    network.prune(model, 0.3, granularity="channel", example_inputs=x)


@needs_torch_pruning
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_layer_that_would_be_emptied_is_named_and_nothing_changed(scope: str) -> None:
    model, x = built("lenet")
    before = list(model.state_dict().values())
    if scope == "global":  # no filter of this layer stands out, while some of every other layer do
        nn.init.constant_(dict(model.named_modules())["conv1.0"].weight, 1.0)
    named = r"all 6 channels of layer 'conv1\.0'" if scope == "layer" else r"all \d+ channels of layer"
    with pytest.raises(ValueError, match=named):
        network.prune(model, 0.95, scope=scope, granularity="channel", example_inputs=x)
    assert [value.shape for value in before] == [value.shape for value in model.state_dict().values()]


@needs_torch_pruning
def test_a_model_that_counts_its_channels_in_code_is_reported() -> None:
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 8, 1), nn.Linear(32, 3)

        def forward(self, x):
            return self.fc(self.conv(x).reshape(-1, 8 * 2 * 2))

    with pytest.raises(RuntimeError, match="exclude the layers"):
        network.prune(Counts(), 0.5, granularity="channel", example_inputs=torch.zeros(2, 1, 2, 2))


@needs_torch_pruning
def test_a_model_of_one_layer_has_nothing_to_remove() -> None:
    with pytest.raises(ValueError, match="nothing to prune"):
        network.prune(nn.Linear(4, 3), 0.5, granularity="channel", example_inputs=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="nothing to prune"):
        network.prune(
            nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)),
            0.5,
            granularity="channel",
            example_inputs=torch.ones(1, 4),
        )


@needs_torch_pruning
def test_missing_inputs_are_asked_for() -> None:
    with pytest.raises(TypeError, match="example_inputs are missing"):
        network.prune(small(), 0.5, granularity="channel")
    with pytest.raises(TypeError, match="example_inputs are missing"):
        network.apply(small(), network.Masks({"conv.weight": torch.tensor([True] * 5 + [False])}))


@needs_torch_pruning
@pytest.mark.slow
def test_half_the_channels_are_faster() -> None:
    model, x = build.build("resnet18", (3, 32, 32), 10, 0), torch.randn(8, 3, 32, 32)
    before = network.cost(model, x, repeats=5)
    network.prune(model, 0.5, granularity="channel", example_inputs=x)
    after = network.cost(model, x, repeats=5)
    assert after.parameters < 0.26 * before.parameters and after.flops < 0.26 * before.flops
    assert after.latency < 0.8 * before.latency


def test_a_missing_torch_pruning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"pip install -c constraints.txt -e '\.\[network\]'"):
        network.prune(small(), 0.5, granularity="channel", example_inputs=torch.zeros(1, 1, 8, 8))
