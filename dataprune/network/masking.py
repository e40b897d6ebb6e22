"""Masks on the weights of a model: their state, installation and removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
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
        """Read the masks from the `state_dict()` of a masked model or of `Masks`; empty if there are none.

        Args:
            state: the saved state; other entries are ignored.
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
        """Return tensors on the CPU, to be saved with torch or safetensors; `Masks.of` reads them."""
        return {name: keep.cpu() for name, keep in self.keep.items()}


def finalize(model: nn.Module) -> None:
    """Replace masked weights by plain parameters with zeros, under the names and in the order they had before pruning.

    Call it after the last optimizer step: nothing keeps the zeros afterwards. A model without masks is not changed.

    Args:
        model: changed in place; the parameters stay the same objects.
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
