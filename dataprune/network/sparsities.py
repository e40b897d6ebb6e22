"""How many weights are zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from . import layers as _layers


@dataclass(frozen=True)
class Sparsity:
    """Zeros among the weights of convolutions and linear layers; biases and normalisation do not count.

    Attributes:
        zeros: layer -> weights that are exactly zero.
        sizes: layer -> weights.
    """

    zeros: dict[str, int]
    sizes: dict[str, int]

    @property
    def layers(self) -> dict[str, float]:
        """Layer -> share of its weights that are zero."""
        return {name: self.zeros[name] / size for name, size in self.sizes.items()}

    @property
    def overall(self) -> float:
        """Share of all these weights that are zero."""
        return sum(self.zeros.values()) / sum(self.sizes.values())


def sparsity(model: nn.Module, *, exclude: _layers.Exclude = ()) -> Sparsity:
    """Count zeros in the weights that the next forward pass will use, with masks, without, or after `finalize`.

    Args:
        model: left as it is.
        exclude: layers that do not count, by name or as modules; those that were excluded from pruning, say.
    Returns:
        Per layer and overall.
    Raises:
        ValueError: if there is no layer to count.
    Example:
        >>> from dataprune import network
        >>> model = nn.Sequential(nn.Linear(10, 5), nn.Linear(5, 2))
        >>> masks = network.prune(model, 0.5)
        >>> sparsity(model).layers, sparsity(model).overall
        ({'0': 0.5, '1': 0.5}, 0.5)
    """
    found = {name: _layers.effective(layer) for name, layer in _layers.prunable(model, exclude).items()}
    return Sparsity(
        zeros={name: int((weight == 0).sum()) for name, weight in found.items()},
        sizes={name: weight.numel() for name, weight in found.items()},
    )
