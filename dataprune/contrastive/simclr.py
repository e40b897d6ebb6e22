"""SimCLR: an encoder with a projection head."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import check_known
from ..schedules import check_whole

Pair = tuple[Tensor, Tensor]


def _width(encoder: nn.Module) -> int | None:
    """Guess the number of features of an encoder from its attributes and layers."""
    for module in (encoder, *reversed(list(encoder.modules()))):
        for name in ("num_features", "out_features", "out_channels"):
            if isinstance(getattr(module, name, None), int):
                return getattr(module, name)
    return None


class SimCLR(nn.Module):
    """Encoder f and projection g = linear(relu(linear(f))), or linear(f); only f is used after training.

    Both views pass through the encoder as one batch of 2B, so that batch norm uses the statistics of both together and
    updates its running averages once a step, and DistributedDataParallel sees one forward pass.

    Args:
        encoder: maps a batch to features (B, D); replace the last layer of a classifier by `nn.Identity()` first.
        dim: size of the projections.
        hidden: units of the projection's hidden layer; D by default.
        features: D; by default the encoder's attribute `num_features`, as in timm, or else the outputs of its last
            layer with weights. The first batch checks it.
        projection: "mlp", which has the hidden layer, or "linear", without it.
    Raises:
        ValueError: if D is unknown, a size is below 1, or the projection neither.
    Example:
        >>> model = SimCLR(nn.Flatten(), dim=8, features=16)
        >>> (f_i, f_j), (z_i, z_j) = model(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
        >>> f_i.shape, z_j.shape
        (torch.Size([2, 16]), torch.Size([2, 8]))

    Source: Chen et al. 2020, arXiv:2002.05709, section 2.1; "linear": Xiao et al., arXiv:2408.16031, appendix C.2.
        Differs: no batch norm within the projection, as in SimCLR's formula; its code has some.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dim: int = 128,
        hidden: int | None = None,
        *,
        features: int | None = None,
        projection: Literal["mlp", "linear"] = "mlp",
    ):
        super().__init__()
        check_known(projection, ("mlp", "linear"), what="projection")
        features = _width(encoder) if features is None else features
        if not isinstance(features, int):
            raise ValueError(
                f"the number of features of {type(encoder).__name__} is unknown: pass features=D, the width of its "
                "output (B, D)"
            )
        hidden = features if hidden is None else hidden
        for name, value in (("dim", dim), ("hidden", hidden), ("features", features)):
            check_whole(name, value)
        self.features = features
        self.encoder = encoder
        inner = (nn.Linear(features, hidden), nn.ReLU(inplace=True)) if projection == "mlp" else ()
        self.projection = nn.Sequential(*inner, nn.Linear(hidden if inner else features, dim))

    def forward(self, x_i: Float[Tensor, "b *shape"], x_j: Float[Tensor, "b *shape"]) -> tuple[Pair, Pair]:
        """Compute ((f_i, f_j), (z_i, z_j)), features (B, D) and projections (B, dim) of two views of the same samples.

        Raises:
            ValueError: if the views differ in shape, or the encoder does not give (2B, D).
        """
        if x_i.shape != x_j.shape:
            raise ValueError(f"the views differ in shape, {tuple(x_i.shape)} and {tuple(x_j.shape)}")
        f = self.encoder(torch.cat([x_i, x_j]))
        if f.shape != (2 * len(x_i), self.features):
            raise ValueError(
                f"the encoder must give features of shape ({2 * len(x_i)}, {self.features}) for the two views, it gave "
                f"{tuple(f.shape)}: pool and flatten them, or pass features={f.shape[-1]}"
            )
        f_i, f_j = f.chunk(2)
        z_i, z_j = self.projection(f).chunk(2)
        return (f_i, f_j), (z_i, z_j)
