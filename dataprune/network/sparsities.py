"""Sparsity: the share of weights that are zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from . import layers as _layers


@dataclass(frozen=True)
class Sparsity:
    """Zeros among the weights of convolutions and linear layers, without biases and normalisation.

    Attributes:
        zeros: layer -> number of weights that are exactly zero.
        sizes: layer -> number of weights.
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
    """Count the zeros in the weights that the next forward pass will use.

    Args:
        model: masked or not; not changed.
        exclude: layers that are not counted, by name or as modules, such as those excluded from pruning.
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
    weights = {name: _layers.effective(layer) for name, layer in _layers.prunable(model, exclude).items()}
    return Sparsity(
        zeros={name: int((weight == 0).sum()) for name, weight in weights.items()},
        sizes={name: weight.numel() for name, weight in weights.items()},
    )
