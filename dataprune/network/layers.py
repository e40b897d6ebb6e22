"""Layers that can be pruned, and masks on their weights: which to keep, their state, installation and removal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import prune as torch_prune

from ..errors import check_known

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNABLE = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
# these read the weights of their inner layers without calling them, so that the hook that applies the mask is skipped
_READS_PAST_HOOKS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

Exclude = str | nn.Module | Iterable[str | nn.Module]


def prunable(model: nn.Module, exclude: Exclude = ()) -> dict[str, nn.Module]:
    """Find all convolutions and linear layers but the excluded ones: name -> layer, in the model's order.

    TypeError if the model or a part of `exclude` is no module; ValueError if it is not there, or no layer is left.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    left_out = _excluded(model, exclude)
    layers: dict[str, nn.Module] = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, PRUNABLE) and all(layer is not other for other in left_out)
    }
    if not layers:
        kinds = "has no convolution and no linear layer" if not left_out else "has none left after `exclude`"
        raise ValueError(f"nothing to prune: {type(model).__name__} {kinds}")
    return layers


def check(layers: dict[str, nn.Module]) -> None:
    """Raise ValueError if a weight is not a parameter, is shared, or is not finite."""
    owner: dict[int, str] = {}
    for name, layer in layers.items():
        weight = parameter(layer)
        if weight is None or isinstance(weight, UninitializedParameter):
            raise ValueError(
                f"the weight of layer {name!r} is computed from others (weight norm, say) or not yet initialised: undo "
                "that first, run a lazy layer once, or exclude the layer"
            )
        if id(weight) in owner:
            raise ValueError(
                f"layers {owner[id(weight)]!r} and {name!r} share one weight, and a mask on one would miss the other: "
                "exclude both"
            )
        if not torch.isfinite(effective(layer)).all():
            raise ValueError(
                f"the weight of layer {name!r} holds NaN or infinite values: the model has diverged, prune an earlier "
                "state"
            )
        owner[id(weight)] = name


def masked(layer: nn.Module) -> bool:
    """Whether the layer's weight has a mask of `torch.nn.utils.prune`."""
    return "weight_orig" in layer._parameters and "weight_mask" in layer._buffers


def parameter(layer: nn.Module) -> Tensor | None:
    """The trained parameter: the weight, or the one under its mask; None if neither is a parameter."""
    return layer._parameters.get("weight_orig" if masked(layer) else "weight")


def effective(layer: nn.Module) -> Float[Tensor, "..."]:
    """The weight that the next forward pass will use; under a mask `layer.weight` is that of the last pass."""
    if masked(layer):
        return layer.get_parameter("weight_orig").detach() * layer.get_buffer("weight_mask")
    return getattr(layer, "weight").detach()  # noqa: B009  every prunable layer has one


def weight_name(layer: str) -> str:
    """Name of a layer's weight in the model's state."""
    return f"{layer}.weight" if layer else "weight"


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of a pruned model; a copy that later training and pruning do not change.

    `keep` maps the name of a layer's weight, such as "conv1.weight", to True where it is kept, in the weight's shape;
    or, for removed channels, (C,) over the original output channels of one of the coupled layers.
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


def smallest(
    values: Sequence[Float[Tensor, " _"]],
    amount: float,
    scope: str,
    generator: torch.Generator,
    *,
    pruned: Sequence[int],
    leave: int = 0,
) -> Sequence[Bool[Tensor, " _"]]:
    """Mark the share `amount` of lowest values, of each layer or ("global") of all; at least as many as `pruned`.

    Within layers `leave` values stay; the generator decides between equal ones.
    """
    if scope == "global":
        joined = torch.cat([each.to(values[0].device) for each in values])
        drop = lowest(joined, max(count_of(len(joined), amount), sum(pruned)), generator)
        return drop.split([len(each) for each in values])
    counts = [max(min(count_of(len(each), amount), len(each) - leave), done) for each, done in zip(values, pruned)]
    return [lowest(each, count, generator) for each, count in zip(values, counts)]


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
        if isinstance(layer, PRUNABLE) and masked(layer):
            order = list(layer._parameters)
            torch_prune.remove(layer, "weight")
            _reorder(layer, ["weight" if name == "weight_orig" else name for name in order])


def install(layer: nn.Module, keep: Bool[Tensor, "..."]) -> None:
    """Put a mask on a layer, or replace its present one."""
    with torch.no_grad():
        if masked(layer):
            layer.get_buffer("weight_mask").copy_(keep)
        else:
            order = list(layer._parameters)
            torch_prune.custom_from_mask(layer, "weight", keep)
            # `torch.nn.utils.prune` moves the weight behind the bias. Optimizers save their state by position: one that
            # was built before pruning could not be resumed by one that is built after
            _reorder(layer, ["weight_orig" if name == "weight" else name for name in order])
        layer.weight = effective(layer)  # until the next forward pass computes it anew


def check_hooked(model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    """Raise ValueError if a module uses the weight of a chosen layer without calling it, and so without its mask."""
    past: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, _READS_PAST_HOOKS):
            past |= {id(inner): f"{name} ({type(module).__name__})" for inner in module.modules()}
    for name, layer in chosen.items():
        if id(layer) in past:
            raise ValueError(
                f"{past[id(layer)]} reads the weight of {name!r} without calling that layer, so that a mask would have "
                "no effect: exclude it"
            )


def _reorder(layer: nn.Module, order: list[str]) -> None:
    for name in order:
        layer._parameters[name] = layer._parameters.pop(name)


def magnitudes(layer: nn.Module) -> tuple[Float[Tensor, " n"], int]:
    """|w|, with -1 for weights that are pruned already and so come first; and the number of those."""
    values = effective(layer).abs().flatten()
    if not masked(layer):
        return values, 0
    pruned = layer.get_buffer("weight_mask").flatten() == 0
    return values.masked_fill(pruned, -1), int(pruned.sum())


def _excluded(model: nn.Module, exclude: Exclude) -> list[nn.Module]:
    modules = dict(model.named_modules())
    excluded: list[nn.Module] = []
    for entry in [exclude] if isinstance(exclude, (str, nn.Module)) else exclude:
        if isinstance(entry, str):
            check_known(entry, filter(None, modules), what="layer in `exclude`")
            entry = modules[entry]
        elif not isinstance(entry, nn.Module):
            raise TypeError(f"`exclude` holds names and modules, got {type(entry).__name__}")
        elif all(entry is not module for module in modules.values()):
            raise ValueError(f"`exclude` holds a {type(entry).__name__} that is not in the model")
        excluded.extend(entry.modules())
    return excluded
