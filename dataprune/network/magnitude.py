"""Ranking of weights by magnitude: the masks that keep all but the smallest."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from . import layers as _layers


def masks_of_smallest(
    layers: Mapping[str, nn.Module], amount: float, scope: str, generator: torch.Generator
) -> dict[str, Bool[Tensor, "..."]]:
    """Rank the weights of some layers, and mark those to keep.

    Args:
        layers: name -> layer.
        amount: share to prune; weights that are pruned already count.
        scope: "layer" or "global".
        generator: decides between equal magnitudes.
    Returns:
        Name -> True where a weight is kept.
    """
    if scope == "global":
        return _global(layers, amount, generator)
    return _per_layer(layers, amount, generator)


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


def _per_layer(layers: Mapping[str, nn.Module], amount: float, generator: torch.Generator) -> dict[str, Tensor]:
    keep = {}
    for name, layer in layers.items():
        values, pruned = _magnitudes(layer)
        count = max(min(count_of(len(values), amount), len(values) - 1), pruned)
        keep[name] = ~lowest(values, count, generator).view_as(_layers.effective(layer))
    return keep


def _global(layers: Mapping[str, nn.Module], amount: float, generator: torch.Generator) -> dict[str, Tensor]:
    parts, pruned = zip(*(_magnitudes(layer) for layer in layers.values()))
    values = torch.cat([part.to(parts[0].device) for part in parts])
    drop = lowest(values, max(count_of(len(values), amount), sum(pruned)), generator)
    split = drop.split([len(part) for part in parts])
    return {
        name: ~part.view_as(_layers.effective(layer)).to(values_of.device)
        for (name, layer), part, values_of in zip(layers.items(), split, parts)
    }


def _magnitudes(layer: nn.Module) -> tuple[Float[Tensor, " n"], int]:
    """|w|, with -1 for weights that are pruned already and so come first; and the number of those."""
    values = _layers.effective(layer).abs().flatten()
    if not _layers.masked(layer):
        return values, 0
    pruned = layer.get_buffer("weight_mask").flatten() == 0
    return values.masked_fill(pruned, -1), int(pruned.sum())
