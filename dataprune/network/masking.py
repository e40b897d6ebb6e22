"""Masks on the weights of a model: which weights to keep, and the masks' state, installation and removal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from . import layers as _layers


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of a pruned model; a copy that later training and pruning do not change.

    Attributes:
        keep: name of a layer's weight, such as "conv1.weight" -> True where it is kept, in the weight's shape; or, for
            removed channels, (C,) over the original output channels of one of the coupled layers. Layers without
            pruned weights are left out.
    """

    keep: dict[str, Bool[Tensor, "..."]] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Masks:
        """Read masks, if there are any, on their devices from the `state_dict()` of a masked model or of `Masks`."""
        keep = {}
        for name, value in state.items():
            leaf = name.rpartition(".")[2]
            if leaf == "weight_mask":
                keep[name.removesuffix("_mask")] = value.detach().bool()
            elif leaf == "weight" and value.dtype == torch.bool:
                keep[name] = value.detach().clone()
        return cls(keep)

    def state_dict(self) -> dict[str, Bool[Tensor, "..."]]:
        """Return tensors on the CPU, to be saved with torch or safetensors; `Masks.of` reads them."""
        return {name: keep.cpu() for name, keep in self.keep.items()}


def masks_of_smallest(
    layers: Mapping[str, nn.Module], amount: float, scope: str, generator: torch.Generator
) -> dict[str, Bool[Tensor, "..."]]:
    """Rank the weights of layers by magnitude, and mark those to keep: name -> True where a weight is kept.

    Args:
        layers: name -> layer.
        amount: share to prune; weights that are pruned already count.
        scope: "layer" or "global".
        generator: decides between equal magnitudes.
    """
    values, pruned = zip(*(_magnitudes(layer) for layer in layers.values()))
    if scope == "global":
        joined = torch.cat([each.to(values[0].device) for each in values])
        drop = lowest(joined, max(count_of(len(joined), amount), sum(pruned)), generator)
        drops = drop.split([len(each) for each in values])
    else:  # a weight is left in each layer
        counts = [max(min(count_of(len(each), amount), len(each) - 1), done) for each, done in zip(values, pruned)]
        drops = [lowest(each, count, generator) for each, count in zip(values, counts)]
    return {
        name: ~drop.view_as(_layers.effective(layer)).to(each.device)
        for (name, layer), drop, each in zip(layers.items(), drops, values)
    }


def count_of(size: int, amount: float) -> int:
    """Round the share `amount` of `size` to the nearest whole number, halves up."""
    return math.floor(amount * size + 0.5)


def lowest(values: Float[Tensor, " n"], count: int, generator: torch.Generator) -> Bool[Tensor, " n"]:
    """Mark the `count` lowest values; the generator decides between equal ones."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    # a sort takes seven times as long on the CPU; on a GPU it is fast, and the same every time
    threshold = values.kthvalue(count).values if values.device.type == "cpu" else values.sort().values[count - 1]
    chosen = values < threshold
    equal = (values == threshold).nonzero().squeeze(1)
    drawn = torch.randperm(len(equal), generator=generator)[: count - int(chosen.sum())]
    chosen[equal[drawn.to(equal.device)]] = True
    return chosen


def finalize(model: nn.Module) -> None:
    """Replace masked weights by plain parameters with zeros, under the names and in the order they had before pruning.

    Call it after the last optimizer step: nothing keeps the zeros afterwards. The model is changed in place, its
    parameters stay the same objects, and one without masks is not changed.
    """
    for layer in model.modules():
        if isinstance(layer, _layers.PRUNABLE) and _layers.masked(layer):
            order = list(layer._parameters)
            torch_prune.remove(layer, "weight")
            _reorder(layer, ["weight" if name == "weight_orig" else name for name in order])


def install(layer: nn.Module, keep: Bool[Tensor, "..."]) -> None:
    """Put a mask on a layer, or replace its present one."""
    with torch.no_grad():
        if _layers.masked(layer):
            layer.get_buffer("weight_mask").copy_(keep)
        else:
            order = list(layer._parameters)
            torch_prune.custom_from_mask(layer, "weight", keep)
            # `torch.nn.utils.prune` moves the weight behind the bias. Optimizers save their state by position: one that
            # was built before pruning could not be resumed by one that is built after
            _reorder(layer, ["weight_orig" if name == "weight" else name for name in order])
        layer.weight = _layers.effective(layer)  # until the next forward pass computes it anew


def check_hooked(model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    """Raise ValueError if a module uses the weight of a chosen layer without calling it, and so without its mask."""
    past = _layers.read_past_hooks(model)
    for name, layer in chosen.items():
        if id(layer) in past:
            raise ValueError(
                f"{past[id(layer)]} reads the weight of {name!r} without calling that layer, so that a mask would have "
                "no effect: exclude it"
            )


def _reorder(layer: nn.Module, order: list[str]) -> None:
    for name in order:
        layer._parameters[name] = layer._parameters.pop(name)


def _magnitudes(layer: nn.Module) -> tuple[Float[Tensor, " n"], int]:
    """|w|, with -1 for weights that are pruned already and so come first; and the number of those."""
    values = _layers.effective(layer).abs().flatten()
    if not _layers.masked(layer):
        return values, 0
    pruned = layer.get_buffer("weight_mask").flatten() == 0
    return values.masked_fill(pruned, -1), int(pruned.sum())
