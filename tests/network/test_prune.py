"""Masks on single weights: which, exactly how many, and that they hold whatever trains the model."""

from __future__ import annotations

import copy
import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from network.tiny_net import OPTIMIZERS, small, train, weights
from safetensors.torch import load, save
from torch import nn

from dataprune import network
from dataprune.errors import UsageError
from dataprune.lab.models import build

AMOUNTS = [0.0, 0.2, 0.4, 0.6, 0.8]  # those of the paper


def reference(arrays: dict[str, np.ndarray], amount: float, scope: str) -> dict[str, np.ndarray]:
    """True where kept, by sorting everything; only for magnitudes that all differ."""
    if scope == "layer":
        # a layer keeps one weight
        return {
            name: reference({name: array}, min(amount, 1 - 1 / array.size), "global")[name]
            for name, array in arrays.items()
        }
    order = sorted((abs(float(w)), name, at) for name, array in arrays.items() for at, w in enumerate(array.flat))
    keep = {name: np.ones(array.shape, dtype=bool) for name, array in arrays.items()}
    for _, name, at in order[: math.floor(amount * len(order) + 0.5)]:
        keep[name].flat[at] = False
    return keep


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("amount", [*AMOUNTS, 0.35, 0.99])
def test_masks_are_those_of_the_slow_reference(scope: str, amount: float) -> None:
    model = small()
    before = weights(model)
    expected = reference(before, amount, scope)
    masks = network.prune(model, amount, scope=scope)
    after = weights(model)
    for name, keep in expected.items():
        np.testing.assert_array_equal(after[name], np.where(keep, before[name], 0))
        if keep.all():
            assert name not in masks.keep
        else:
            np.testing.assert_array_equal(masks.keep[name].numpy(), keep)


@pytest.mark.parametrize("name", ["lenet", "mlp", "small_cnn", "resnet18"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sparsity_is_the_amount_to_one_weight(name: str, scope: str) -> None:
    model = build.build(name, (1, 16, 16), 10, 0)
    network.prune(model, 0.8, scope=scope)
    measured = network.sparsity(model)
    assert abs(sum(measured.zeros.values()) - 0.8 * sum(measured.sizes.values())) <= (
        1 if scope == "global" else len(measured.zeros)
    )
    if scope == "layer":
        assert all(abs(measured.zeros[layer] - 0.8 * size) <= 1 for layer, size in measured.sizes.items())
    assert sum(measured.sizes.values()) == sum(array.size for array in weights(model).values())
    assert "fc" in measured.layers  # the layer that gives the classes is pruned as well


@given(
    values=st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=40),
    amount=st.floats(0, 0.999),
    seed=st.integers(0, 5),
)
def test_ties_give_the_exact_count_and_never_a_larger_before_a_smaller(
    values: list[float], amount: float, seed: int
) -> None:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    keep = network.prune(layer, amount, seed=seed).keep.get("weight", torch.ones(1, len(values), dtype=torch.bool))
    assert int((~keep).sum()) == min(math.floor(amount * len(values) + 0.5), len(values) - 1)
    magnitude = layer.state_dict()["weight_orig"].abs() if not keep.all() else torch.tensor([values]).abs()
    if not keep.all():
        assert magnitude[~keep].max() <= magnitude[keep].min()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_equal_weights_are_pruned_in_exact_number_and_not_by_position(dtype: torch.dtype) -> None:
    layer = nn.Linear(100, 10, dtype=dtype)
    nn.init.constant_(layer.weight, 0.25)
    keep = network.prune(layer, 0.3, seed=0).keep["weight"]
    assert int((~keep).sum()) == 300
    assert (~keep).any(dim=1).all() and not (~keep).all(dim=1).any()  # no row spared, none emptied
    again, other = copy_of(layer), copy_of(layer)
    assert torch.equal(network.prune(again, 0.3, seed=0).keep["weight"], keep)
    assert not torch.equal(network.prune(other, 0.3, seed=1).keep["weight"], keep)


def copy_of(layer: nn.Linear) -> nn.Linear:
    fresh = nn.Linear(layer.in_features, layer.out_features, dtype=layer.bias.dtype)
    fresh.weight.data = layer.state_dict()["weight_orig"].clone()
    return fresh


def test_a_layer_keeps_one_weight() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 10))
    network.prune(model, 0.95)
    assert network.sparsity(model).zeros == {"0": 0, "1": 9}
    network.prune(model, 0.99, scope="global")
    assert sum(network.sparsity(model).zeros.values()) == 11  # ranked together, one layer may lose all


def test_a_layer_that_loses_all_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.init.constant_(model[0].weight, 1e-3)
    nn.init.constant_(model[1].weight, 1.0)
    with caplog.at_level(logging.WARNING, logger="dataprune.network"):
        network.prune(model, 0.5, scope="global")
    assert "'0' has no weight left" in caplog.text and "'1'" not in caplog.text


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_amount_zero_changes_nothing(scope: str) -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    assert network.prune(model, 0, scope=scope).keep == {}
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("built", ["before", "after"])
def test_pruned_weights_stay_exactly_zero_whatever_trains(name: str, built: str) -> None:
    model = small()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 5)  # momentum in every weight
    masks = network.prune(model, 0.6)
    if built == "after":
        optimizer = OPTIMIZERS[name](model.parameters())
    at_pruning = weights(model)
    train(model, optimizer, 20)
    x = torch.randn(4, 1, 8, 8)
    model.eval()
    trained = model(x)
    for weight, keep in masks.keep.items():
        assert (weights(model)[weight][~keep.numpy()] == 0).all()
        moved = weights(model)[weight] != at_pruning[weight]
        assert moved[keep.numpy()].mean() > 0.9, "the optimizer no longer reaches the weights"
    assert network.sparsity(model).overall == pytest.approx(0.6, abs=0.01)
    network.finalize(model)
    for weight, keep in masks.keep.items():
        assert (model.state_dict()[weight][~keep] == 0).all()
    assert torch.equal(model(x), trained)


def test_parameters_are_the_same_objects_in_the_same_order() -> None:
    model = small()
    before, names = list(model.parameters()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    network.prune(model, 0.5)
    assert all(parameter is other for parameter, other in zip(before, model.parameters(), strict=True))
    network.prune(model, 0.7)
    network.finalize(model)
    assert all(parameter is other for parameter, other in zip(before, model.parameters(), strict=True))
    assert all(parameter is other for parameter, other in zip(before, optimizer.param_groups[0]["params"], strict=True))
    assert list(model.state_dict()) == names


def test_training_equals_that_of_weights_multiplied_by_hand() -> None:
    model, by_hand = small(), small()
    keep = network.prune(model, 0.5).keep
    layers = {f"{name}.weight": layer for name, layer in by_hand.named_modules() if f"{name}.weight" in keep}
    for name, layer in layers.items():
        layer.weight.data *= keep[name]
        layer.weight.register_hook(lambda gradient, name=name: gradient * keep[name])
    ours, reference = (
        torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for each in (model, by_hand)
    )
    train(model, ours, 10)
    train(by_hand, reference, 10)
    for name, weight in weights(model).items():
        np.testing.assert_array_equal(weight, by_hand.state_dict()[name].numpy())


def test_a_run_resumes_exactly_in_a_fresh_model(tmp_path) -> None:
    model = small()
    optimizer = OPTIMIZERS["adam"](model.parameters())  # built before: its state is stored by position
    train(model, optimizer, 3)
    network.prune(model, 0.5)
    train(model, optimizer, 3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(model, optimizer, 3)

    state = torch.load(tmp_path / "state.pt")
    fresh = small(seed=1)
    network.apply(fresh, network.Masks.of(state["model"]))
    fresh.load_state_dict(state["model"])
    again = OPTIMIZERS["adam"](fresh.parameters())
    again.load_state_dict(state["optimizer"])
    train(fresh, again, 3)
    assert list(fresh.state_dict()) == list(model.state_dict())
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in model.state_dict().items())


def test_masks_go_through_a_file_and_onto_another_seed() -> None:
    model = small()
    masks = network.prune(model, 0.7, scope="global")
    read = network.Masks.of(load(save(masks.state_dict())))
    assert read.keep.keys() == masks.keep.keys()
    fresh = small(seed=5)
    network.apply(fresh, read)
    assert network.sparsity(fresh).zeros == network.sparsity(model).zeros
    assert network.Masks.of(fresh.state_dict()).keep.keys() == masks.keep.keys()
    assert network.Masks.of(small().state_dict()).keep == {}
    network.apply(fresh, network.Masks())  # of an unpruned model: nothing
    assert network.sparsity(fresh).zeros == network.sparsity(model).zeros


def test_apply_replaces_masks_and_gives_back_what_is_under_them() -> None:
    model = small()
    before = weights(model)
    network.prune(model, 0.5)
    ones = network.Masks({name: torch.ones(array.shape, dtype=torch.bool) for name, array in before.items()})
    network.apply(model, ones)
    assert all((after == before[name]).all() for name, after in weights(model).items())


def test_masks_do_not_change_with_the_model() -> None:
    model = small()
    masks = network.prune(model, 0.3)
    before = {name: keep.clone() for name, keep in masks.keep.items()}
    network.prune(model, 0.9)
    assert all(torch.equal(masks.keep[name], keep) for name, keep in before.items())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruning_again_goes_further_and_gives_nothing_back(scope: str) -> None:
    model = small()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    zeros: dict[str, np.ndarray] = {}
    for amount in (0.2, 0.5, 0.8):
        network.prune(model, amount, scope=scope)
        measured = network.sparsity(model)
        assert abs(sum(measured.zeros.values()) - amount * sum(measured.sizes.values())) <= len(measured.sizes)
        assert all((weights(model)[name][zero] == 0).all() for name, zero in zeros.items())
        zeros = {name: array == 0 for name, array in weights(model).items()}
        assert all(len(layer._forward_pre_hooks) <= 1 for layer in model.modules())
        train(model, optimizer, 3)
    network.prune(model, 0.4, scope=scope)  # reached long ago
    assert all(((array == 0) == zeros[name]).all() for name, array in weights(model).items())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_weight_that_became_zero_by_itself_does_not_bring_a_pruned_one_back(scope: str) -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    first = network.prune(model, 0.5, scope=scope).keep
    for parameter in model.parameters():
        parameter.data.zero_()
    second = network.prune(model, 0.6, scope=scope).keep
    assert all(not (second[name] & ~keep).any() for name, keep in first.items())
    assert sum(int((~keep).sum()) for keep in second.values()) == 120


def test_a_finalized_model_can_be_pruned_again() -> None:
    model = small()
    network.prune(model, 0.4)
    zero = {name: array == 0 for name, array in weights(model).items()}
    network.finalize(model)
    network.finalize(model)  # nothing left to do
    network.prune(model, 0.7)
    assert all((weights(model)[name][where] == 0).all() for name, where in zero.items())
    assert network.sparsity(model).overall == pytest.approx(0.7, abs=0.01)


def test_masks_of_torch_are_understood() -> None:
    model = small()
    nn.utils.prune.l1_unstructured(model.fc, "weight", amount=0.25)
    assert network.sparsity(model).layers["fc"] == 0.25
    network.prune(model, 0.5)
    assert network.sparsity(model).layers["fc"] == 0.5
    network.finalize(model)
    assert not nn.utils.prune.is_pruned(model)


def test_sparsity_reads_the_weights_of_the_next_forward_pass() -> None:
    layer = nn.Linear(4, 4)
    network.prune(layer, 0.5)
    layer.load_state_dict(layer.state_dict() | {"weight_mask": torch.zeros(4, 4)})
    assert network.sparsity(layer).overall == 1.0


@pytest.mark.parametrize("exclude", ["fc", ["fc"], "module", ["conv", "fc"]])
def test_excluded_layers_are_left_alone(exclude: str | list[str]) -> None:
    model = small()
    left = ["fc"] if exclude == "module" else [exclude] if isinstance(exclude, str) else exclude
    masks = network.prune(model, 0.5, exclude=model.fc if exclude == "module" else exclude)
    assert all(not name.startswith(tuple(left)) for name in masks.keep) and masks.keep
    assert all(
        network.sparsity(model).layers[name] == 0
        for name in network.sparsity(model).layers
        if name.startswith(tuple(left))
    )
    counted = network.sparsity(model, exclude=left)
    assert counted.overall == pytest.approx(0.5, abs=0.01) and not set(left) & set(counted.layers)


def test_biases_and_batch_norm_are_not_pruned() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.named_parameters() if value.ndim == 1}
    network.prune(model, 0.9, scope="global")
    assert before and all(torch.equal(dict(model.named_parameters())[name], value) for name, value in before.items())


@pytest.mark.parametrize("amount", [1.0, -0.1, 2, math.nan, math.inf])
def test_amounts_out_of_range_are_refused(amount: float) -> None:
    with pytest.raises(ValueError, match=r"amount .* \[0, 1\)"):
        network.prune(small(), amount)


@pytest.mark.parametrize("amount", [None, "0.5", True])
def test_amounts_that_are_no_numbers_are_refused(amount: object) -> None:
    with pytest.raises(TypeError, match="amount"):
        network.prune(small(), amount)  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="unknown scope 'globl'; did you mean 'global'"):
        network.prune(small(), 0.5, scope="globl")
    with pytest.raises(UsageError, match="unknown granularity 'None'"):
        network.prune(small(), 0.5, granularity=None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="did you mean 'fc'"):
        network.prune(small(), 0.5, exclude="fcc")
    with pytest.raises(ValueError, match="not in the model"):
        network.prune(small(), 0.5, exclude=nn.Linear(1, 1))
    with pytest.raises(TypeError, match="exclude"):
        network.prune(small(), 0.5, exclude=[3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="Module"):
        network.prune([torch.zeros(2)], 0.5)  # type: ignore[arg-type]


def test_models_without_layers_to_prune_are_refused() -> None:
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        network.prune(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), 0.5)
    with pytest.raises(ValueError, match="none left after `exclude`"):
        network.prune(small(), 0.5, exclude=["conv", "hidden", "fc"])


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_cannot_be_ranked_are_refused_and_the_model_left_as_it_is(granularity: str, value: float) -> None:
    model = small()
    model.fc.weight.data[0, 0] = value
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="'fc' holds NaN or infinite"):
        network.prune(model, 0.5, granularity=granularity, example_inputs=torch.zeros(1, 1, 8, 8))
    assert list(model.state_dict()) == before


def test_weights_that_a_mask_cannot_hold_are_refused() -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="'0' and '1' share one weight"):
        network.prune(tied, 0.5)
    partly = nn.Sequential(tied, nn.Linear(3, 3))  # excluded, they are in nobody's way
    masks = network.prune(partly, 0.5, exclude="0")
    network.finalize(partly)
    network.apply(partly, masks)
    assert network.sparsity(partly).zeros == {"0.0": 0, "0.1": 0, "1": 5}
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="weight norm"):
        network.prune(normed, 0.5)
    with pytest.raises(ValueError, match="lazy"):
        network.prune(nn.Sequential(nn.LazyLinear(3)), 0.5)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(ValueError, match="without calling"):
        network.prune(nn.Sequential(encoder, nn.Linear(8, 2)), 0.5)
    assert network.prune(nn.Sequential(encoder, nn.Linear(8, 2)), 0.5, exclude=[encoder]).keep.keys() == {"1.weight"}


def test_masks_of_another_model_are_refused() -> None:
    masks = network.prune(small(), 0.5)
    with pytest.raises(UsageError, match="unknown weight"):
        network.apply(nn.Sequential(nn.Linear(2, 2)), masks)
    with pytest.raises(ValueError, match="another architecture"):
        network.apply(small(classes=5), masks)


def test_a_pruned_model_can_be_copied_after_an_evaluation() -> None:
    model = small()
    network.prune(model, 0.5)
    assert network.sparsity(copy.deepcopy(model)).zeros == network.sparsity(model).zeros
    train(model, OPTIMIZERS["sgd"](model.parameters()), 1)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, 8, 8))
    twin = copy.deepcopy(model)
    train(twin, OPTIMIZERS["sgd"](twin.parameters()), 2)
    assert network.sparsity(twin).zeros == network.sparsity(model).zeros
