"""Layers that can be pruned, and their weights under a mask."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..errors import UsageError, suggest

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNABLE = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
# these read the weights of their inner layers without calling them, so that the hook that applies the mask is skipped
_READS_PAST_HOOKS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

Exclude = str | nn.Module | Iterable[str | nn.Module]


def prunable(model: nn.Module, exclude: Exclude = ()) -> dict[str, nn.Module]:
    """Find all convolutions and linear layers, the classifier included: name -> layer, in the model's order.

    Args:
        model: any module.
        exclude: layers to leave out, by name or as modules; a module excludes all layers in it.
    Raises:
        TypeError: if the model is not a module, or `exclude` holds something else.
        ValueError: if there is no such layer to exclude, or none is left.
    Example:
        >>> list(prunable(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2)), exclude="2"))
        ['0']
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


def read_past_hooks(model: nn.Module) -> dict[int, str]:
    """Map the id of modules whose weights may be read without calling them to the attention module around them."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, _READS_PAST_HOOKS):
            owners |= {id(inner): f"{name} ({type(module).__name__})" for inner in module.modules()}
    return owners


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


def _excluded(model: nn.Module, exclude: Exclude) -> list[nn.Module]:
    modules = dict(model.named_modules())
    excluded: list[nn.Module] = []
    for entry in [exclude] if isinstance(exclude, (str, nn.Module)) else exclude:
        if isinstance(entry, str):
            if entry not in modules:
                raise UsageError(suggest(entry, [name for name in modules if name], what="layer in `exclude`"))
            entry = modules[entry]
        elif not isinstance(entry, nn.Module):
            raise TypeError(f"`exclude` holds names and modules, got {type(entry).__name__}")
        elif all(entry is not module for module in modules.values()):
            raise ValueError(f"`exclude` holds a {type(entry).__name__} that is not in the model")
        excluded.extend(entry.modules())
    return excluded
