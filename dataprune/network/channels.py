"""Removal of channels through the dependency graph of torch-pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import needs
from ..modules import inference
from . import costs
from . import layers as _layers


def prune(
    model: nn.Module,
    amount: float,
    scope: str,
    layers: Mapping[str, nn.Module],
    example_inputs: Any,
    generator: torch.Generator,
) -> dict[str, Bool[Tensor, " c"]]:
    """Remove channels of `layers` in place, and return what `Masks` keeps; other arguments as for `network.prune`."""
    with _graph(model, example_inputs) as graph:
        sets = list(_coupled(graph, model, layers))
        if not sets:
            raise ValueError(
                "nothing to prune: all channels are excluded, or reach the model's output, which must keep its shape"
            )
        drop = _layers.smallest([norms for *_, norms in sets], amount, scope, generator, pruned=[0] * len(sets))
        keep = {}
        for (name, parts, _), removed in zip(sets, drop):
            if bool(removed.all()):
                raise ValueError(
                    f"amount={amount} would remove all {len(removed) * parts} channels of layer {name!r}: "
                    'use a smaller amount, scope="layer", or exclude the layer'
                )
            if bool(removed.any()):
                keep[_layers.weight_name(name)] = ~removed.repeat(parts)
        _remove(graph, model, keep)
    return keep


def remove(model: nn.Module, keep: Mapping[str, Bool[Tensor, " c"]], example_inputs: Any) -> None:
    """Remove the channels that were removed from another model of this architecture."""
    by_weight = {_layers.weight_name(name): layer for name, layer in model.named_modules()}
    for name, mask in keep.items():
        channels = _norms(by_weight[name]).numel()
        if len(mask) != channels:
            raise ValueError(
                f"{name!r} has {channels} output channels and its mask {len(mask)}: masks are applied to the unpruned "
                "model, in the order in which they were made and each once"
            )
    with _graph(model, example_inputs) as graph:
        _remove(graph, model, keep)


@contextmanager
def _graph(model: nn.Module, example_inputs: Any) -> Iterator[Any]:
    """Build the model's dependency graph; on exit the model must run, with outputs of the same shape."""
    with needs("removing channels needs torch-pruning", "network"):
        import torch_pruning
    for name, module in model.named_modules():
        if "weight_orig" in module._parameters:
            raise ValueError(f"layer {name!r} has a mask: call network.finalize(model) before removing channels")
    with inference(model):
        before = _shapes(costs.call(model, example_inputs))
    # torch-pruning tries model(*example_inputs) first: a bare tensor would be taken apart along the batch
    inputs = example_inputs if isinstance(example_inputs, (dict, tuple, list)) else (example_inputs,)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)  # the graph is read from autograd's, and new parameters require gradients
    try:
        with inference(model), torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(model, inputs)
        yield graph
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
    try:
        with inference(model):
            after = _shapes(costs.call(model, example_inputs))
    except RuntimeError as error:
        raise RuntimeError(
            f"the model no longer runs without these channels, and has to be built anew ({error}): exclude the layers "
            "before a fixed reshape, or whose channels are counted in code"
        ) from error
    if after != before:
        message = f"the model's output changed its shape from {before} to {after}: build it anew"
        raise RuntimeError(f"{message}, and exclude the layers that give it")


def _coupled(
    graph: Any, model: nn.Module, layers: Mapping[str, nn.Module]
) -> Iterator[tuple[str, int, Float[Tensor, " units"]]]:
    """Each set of layers that lose the same channels: name of its root, parts, norms of what goes together.

    Channels i, i + C/parts, i + 2·C/parts ... go together, as grouped convolutions need equal groups.
    """
    names = {id(module): name for name, module in model.named_modules()}
    allowed = {id(layer) for layer in layers.values()}
    for group in graph.get_all_groups(root_module_types=_layers.PRUNABLE):
        outputs = [entry for entry in group.items if graph.is_out_channel_pruning_fn(entry.dep.handler)]
        filters = [entry for entry in outputs if isinstance(entry.dep.target.module, _layers.PRUNABLE)]
        # a node that nothing reads is the model's output
        if any(not entry.dep.target.outputs for entry in outputs):
            continue
        if any(id(entry.dep.target.module) not in allowed for entry in filters):
            continue
        root = group[0].dep.target.module
        norms = torch.zeros(len(group[0].idxs), device=_norms(root).device)
        for entry in filters:
            each = _norms(entry.dep.target.module).to(norms)
            each = each / each.mean().clamp_min(torch.finfo(each.dtype).tiny)
            norms.index_add_(0, torch.tensor(entry.root_idxs, device=norms.device), each[list(entry.idxs)])
        parts = max([_parts(graph, entry) for entry in group.items])
        yield names[id(root)], parts, norms.view(parts, -1).sum(0) / len(filters) / parts


def _remove(graph: Any, model: nn.Module, keep: Mapping[str, Bool[Tensor, " c"]]) -> None:
    by_weight = {_layers.weight_name(name): layer for name, layer in model.named_modules()}
    for name, mask in keep.items():
        layer = by_weight[name]
        removed = (~mask).nonzero().squeeze(1).tolist()
        graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, removed).prune()


def _norms(layer: nn.Module) -> Float[Tensor, " c"]:
    """L1 norm of the filter of each output channel."""
    weight = _layers.effective(layer).float().abs()
    if getattr(layer, "transposed", False):
        weight = weight.transpose(0, 1)
    return weight.flatten(1).sum(1)


def _parts(graph: Any, entry: Any) -> int:
    """Number of parts that lose the same channels: the groups of a convolution or group norm."""
    module, handler = entry.dep.target.module, entry.dep.handler
    if isinstance(module, _layers.PRUNABLE) and getattr(module, "groups", 1) == getattr(module, "out_channels", 0):
        return 1  # depthwise: each channel by itself
    pruner = graph.get_pruner_of_module(module)
    if graph.is_out_channel_pruning_fn(handler):
        return pruner.get_out_channel_groups(module)
    return pruner.get_in_channel_groups(module)


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    if isinstance(outputs, Tensor):
        return [tuple(outputs.shape)]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [shape for part in outputs for shape in _shapes(part)] if isinstance(outputs, (tuple, list)) else []
