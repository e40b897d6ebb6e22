"""Masks: which weights a model has, put on it, kept with it, and made final."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from ..errors import UsageError, suggest
from . import layers as _layers


@dataclass(frozen=True, eq=False)
class Masks:
    """What is left of a model; a copy that later training and pruning do not change.

    Attributes:
        keep: name of a layer's weight, such as "conv1.weight" -> True where it is kept: of the weight's own shape, or,
            where channels were removed, (C,) for the output channels that the first of the coupled layers had. Layers
            of which nothing was pruned are not in it.
    """

    keep: dict[str, Bool[Tensor, "..."]] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Masks:
        """The masks in a masked model's `state_dict()`, or in that of `Masks`; none where there are none.

        Args:
            state: as it was saved; other entries are passed over.
        Returns:
            Masks, on the devices of the state.
        """
        keep = {}
        for name, value in state.items():
            leaf = name.rpartition(".")[2]
            if leaf == "weight_mask":
                keep[name.removesuffix("_mask")] = value.detach().bool()
            elif leaf == "weight" and value.dtype == torch.bool:
                keep[name] = value.detach().clone()
        return cls(keep)

    def state_dict(self) -> dict[str, Bool[Tensor, "..."]]:
        """On the CPU, to be saved with torch or safetensors; `Masks.of` reads it."""
        return {name: keep.cpu() for name, keep in self.keep.items()}


def apply(model: nn.Module, masks: Masks, *, example_inputs: Any = None) -> None:
    """Put masks on a model, so that it is pruned as the one was that they are from, and can load its `state_dict()`.

    A mask replaces the one that the layer has; layers that `masks` does not name stay as they are. The weights under a
    mask are not changed.

    Args:
        model: of the same architecture; unpruned where `masks` are of channels. Changed in place.
        masks: from `prune` or `Masks.of`.
        example_inputs: as for `prune`; only needed for channels.
    Raises:
        ValueError: if a layer is missing or has another shape, or channels were removed already.
        TypeError: if `example_inputs` are needed and missing.
        ImportError: if torch-pruning is needed and missing.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> apply(model, Masks({"0.weight": torch.tensor([[True, False]])}))
        >>> sorted(model.state_dict())
        ['0.bias', '0.weight_mask', '0.weight_orig']
    """
    found = _layers.prunable(model)
    by_weight = {_layers.weight_name(name): layer for name, layer in found.items()}
    whole = all(keep.ndim == 1 for keep in masks.keep.values())
    for name, keep in masks.keep.items():
        if name not in by_weight:
            raise UsageError(suggest(name, by_weight, what="weight in these masks"))
        shape = tuple(_layers.effective(by_weight[name]).shape)
        if not whole and tuple(keep.shape) != shape:
            raise ValueError(
                f"the mask of {name!r} is {tuple(keep.shape)} and the weight {shape}: another architecture"
            )
    if not masks.keep:
        return
    if whole:
        from . import channels

        channels.remove(model, masks.keep, example_inputs)
        return
    named = {name: by_weight[name] for name in masks.keep}
    _layers.check(named)
    check_hooked(model, named)
    for name, keep in masks.keep.items():
        install(by_weight[name], keep)


def finalize(model: nn.Module) -> None:
    """Make the masks final: plain parameters again, zero where a mask was, under the names and in the order of before.

    Nothing holds the zeros in place after this, so it comes after the last optimizer step. A model without masks is
    left as it is.

    Args:
        model: changed in place; the parameters stay the same objects.
    """
    for layer in model.modules():
        if isinstance(layer, _layers.PRUNABLE) and _layers.masked(layer):
            order = list(layer._parameters)
            torch_prune.remove(layer, "weight")
            _reorder(layer, ["weight" if name == "weight_orig" else name for name in order])


def install(layer: nn.Module, keep: Bool[Tensor, "..."]) -> None:
    """Put a mask on a layer, in place of the one that it may have."""
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
                f"{past[id(layer)]} reads the weight of {name!r} without calling that layer, so that a mask would not "
                "hold: exclude it"
            )


def _reorder(layer: nn.Module, order: list[str]) -> None:
    for name in order:
        layer._parameters[name] = layer._parameters.pop(name)
