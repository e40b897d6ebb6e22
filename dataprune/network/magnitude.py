"""Magnitude pruning: the weights, or channels, of the smallest absolute value go first."""

from __future__ import annotations

import logging
import math
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import UsageError, suggest
from . import layers as _layers
from .masking import Masks, check_hooked, install

_log = logging.getLogger("dataprune.network")


def prune(
    model: nn.Module,
    amount: float,
    *,
    scope: str = "layer",
    granularity: str = "weight",
    exclude: _layers.Exclude = (),
    example_inputs: Any = None,
    seed: int = 0,
) -> Masks:
    """Prune the convolutions and linear layers of a model in place, smallest magnitudes first.

    With `granularity="weight"` the smallest |w| get a mask of `torch.nn.utils.prune` and are exactly zero in every
    forward pass from here on, whatever optimizer, momentum or weight decay does to what lies under the mask. `amount`
    is the share of zeros after the call, to the nearest weight, of each layer or of all together. Pruning again prunes
    further: what is pruned stays pruned and counts, so that an amount that is reached already changes nothing. The
    parameters are the same objects as before, so an optimizer that was built before goes on.

    With `granularity="channel"` output channels are removed, and everything that depends on them: parameters, FLOPs
    and time fall. Layers whose channels are added up or normalised together lose the same channels; those that give
    the model's output keep all of theirs. `amount` is the share of channels removed by this call, of each set of
    coupled layers or of all together. The parameters are new: build the optimizer afterwards.

    Args:
        model: changed in place.
        amount: share to prune, in [0, 1); 0 changes nothing.
        scope: "layer" ranks within a layer, and leaves it one weight or channel at least. "global" ranks across layers:
            weights as they are, channels relative to the mean of their layer.
        granularity: "weight" or "channel".
        exclude: layers that keep all their weights or output channels, by name or as modules; a module that holds
            layers stands for all of them.
        example_inputs: a batch as the model takes it: a tensor, a tuple of positional or a dict of named arguments.
            Only for channels, whose dependencies are found by running it.
        seed: decides between equal magnitudes.
    Returns:
        What is kept, of every layer of which something was pruned by now (weights) or by this call (channels). For
        channels that is one mask for each set of coupled layers, under the name of one of them.
    Raises:
        TypeError: if the amount is no number, or `example_inputs` are needed and missing.
        ValueError: if the amount is outside [0, 1), scope or granularity is unknown, there is no layer to prune, a
            weight is not finite, a layer would lose its last channel, or masks lie on a model whose channels are to go.
        ImportError: if torch-pruning is needed and missing.
    Example:
        >>> model = nn.Linear(4, 1, bias=False)
        >>> model.weight.data = torch.tensor([[0.1, -0.4, 0.3, -0.2]])
        >>> prune(model, 0.5).keep["weight"]
        tensor([[False,  True,  True, False]])

    Source: Han et al. 2015, arXiv:1506.02626, for weights; as a step between coreset training and fine-tuning, Gupta et
        al., "Drop it like it's hot: network pruning with data selection", Section 4.4. Differs: the masks stay on while
        the model is fine-tuned. Channels: L1 norm of the filters, Li et al. 2017, arXiv:1608.08710, and dependencies as
        in Fang et al. 2023, arXiv:2301.12900. Differs: a filter's norm is divided by the layer's mean norm and averaged
        over coupled layers.
    """
    if isinstance(amount, bool) or not isinstance(amount, Real):
        raise TypeError(f"amount is the share to prune, a number in [0, 1), got {type(amount).__name__}")
    if not 0 <= amount < 1:
        raise ValueError(f"amount is the share to prune, in [0, 1), got {amount}; 0.8 prunes four fifths")
    for value, known, what in (
        (scope, ("layer", "global"), "scope"),
        (granularity, ("weight", "channel"), "granularity"),
    ):
        if value not in known:
            raise UsageError(suggest(str(value), known, what=what))
    chosen = _layers.prunable(model, exclude)
    _layers.check(chosen)
    generator = torch.Generator().manual_seed(seed)
    if granularity == "channel":
        from . import channels

        return channels.prune(model, amount, scope, chosen, example_inputs, generator)
    check_hooked(model, chosen)
    keep = _global(chosen, amount, generator) if scope == "global" else _per_layer(chosen, amount, generator)
    for name, layer in chosen.items():
        if _layers.masked(layer) or not keep[name].all():
            install(layer, keep[name])
        if not keep[name].any():
            _log.warning("layer %r has no weight left: use scope='layer', a smaller amount, or exclude it", name)
    return Masks(
        {
            _layers.weight_name(name): layer.get_buffer("weight_mask").bool()
            for name, layer in model.named_modules()
            if isinstance(layer, _layers.PRUNABLE) and _layers.masked(layer)
        }
    )


def count_of(size: int, amount: float) -> int:
    """The nearest whole number of `size` things to prune; halves are rounded up."""
    return math.floor(amount * size + 0.5)


def lowest(values: Float[Tensor, " n"], count: int, generator: torch.Generator) -> Bool[Tensor, " n"]:
    """True at the `count` lowest values; which of equal ones, the generator decides."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    # a sort takes seven times as long on the CPU; on a GPU it is fast, and the same every time
    threshold = values.kthvalue(count).values if values.device.type == "cpu" else values.sort().values[count - 1]
    chosen = values < threshold
    equal = (values == threshold).nonzero().squeeze(1)
    drawn = torch.randperm(len(equal), generator=generator)[: count - int(chosen.sum())]
    chosen[equal[drawn.to(equal.device)]] = True
    return chosen


def _per_layer(chosen: dict[str, nn.Module], amount: float, generator: torch.Generator) -> dict[str, Tensor]:
    keep = {}
    for name, layer in chosen.items():
        values, gone = _magnitudes(layer)
        count = max(min(count_of(len(values), amount), len(values) - 1), gone)
        keep[name] = ~lowest(values, count, generator).view_as(_layers.effective(layer))
    return keep


def _global(chosen: dict[str, nn.Module], amount: float, generator: torch.Generator) -> dict[str, Tensor]:
    parts, gone = zip(*(_magnitudes(layer) for layer in chosen.values()))
    values = torch.cat([part.to(parts[0].device) for part in parts])
    drop = lowest(values, max(count_of(len(values), amount), sum(gone)), generator)
    split = drop.split([len(part) for part in parts])
    return {
        name: ~part.view_as(_layers.effective(layer)).to(values_of.device)
        for (name, layer), part, values_of in zip(chosen.items(), split, parts)
    }


def _magnitudes(layer: nn.Module) -> tuple[Float[Tensor, " n"], int]:
    """|w|, and -1 where it is pruned already, which comes before all others; and how many are."""
    values = _layers.effective(layer).abs().flatten()
    if not _layers.masked(layer):
        return values, 0
    gone = layer.get_buffer("weight_mask").flatten() == 0
    return values.masked_fill(gone, -1), int(gone.sum())
