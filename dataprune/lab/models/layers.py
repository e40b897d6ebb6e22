"""Layers that the models of the command line share."""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn


class Stages(nn.Sequential):
    """A sequence whose stages have names, in the order in which they are called."""

    def __init__(self, **stages: nn.Module):
        super().__init__(OrderedDict(stages))


class AveragePool(nn.Module):
    """The mean over all positions."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        return x.mean((2, 3))


def conv(channels: int, out: int, size: int, stride: int) -> nn.Sequential:
    """A convolution without bias, and batch norm."""
    convolution = nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))
