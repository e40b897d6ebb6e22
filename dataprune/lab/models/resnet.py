"""ResNets: those of ImageNet with either stem, and the blocks of the small ones that were made for CIFAR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import AveragePool, Stages, conv


def resnet(
    shape: Sequence[int],
    classes: int,
    block: type[BasicBlock | Bottleneck],
    depths: Sequence[int],
    width: int = 64,
    imagenet: bool = False,
) -> nn.Module:
    """ResNet of stages with `depths` blocks each; the first is `width` channels wide, each next one twice as wide.

    The published stem (`imagenet`) is 7x7 of stride 2 and max-pooling; that for small images is 3x3 of stride 1.

    Source: He et al. 2016, arXiv:1512.03385, table 1. Differs: the small stem, as in the CIFAR experiments of the
        pruning papers; a bottleneck's stride sits in its 3x3 convolution; weights begin as torch draws them.
    """
    size, stride = (7, 2) if imagenet else (3, 1)
    stem: list[nn.Module] = [*conv(shape[0], width, size, stride), nn.ReLU(inplace=True)]
    if imagenet:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(*stem)}
    channels, stride = width, 1
    for stage, depth in enumerate(depths, start=1):
        out = width * block.expansion
        blocks = [block(channels, width, stride), *(block(out, width, 1) for _ in range(depth - 1))]
        stages[f"layer{stage}"] = nn.Sequential(*blocks)
        channels, width, stride = out, 2 * width, 2
    return Stages(**stages, pool=AveragePool(), fc=nn.Linear(channels, classes))


class _Residual(nn.Module):
    """relu(body(x) + shortcut(x)); where the shape changes the shortcut is the given module, else a 1x1 convolution."""

    def __init__(self, body: nn.Sequential, channels: int, out: int, stride: int, shortcut: nn.Module | None = None):
        super().__init__()
        self.body = body
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else shortcut or conv(channels, out, 1, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        return torch.relu_(self.body(x) + self.shortcut(x))


class BasicBlock(_Residual):
    """Two 3x3 convolutions, the first strided; `shortcut` is used where the shape changes."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, shortcut: nn.Module | None = None):
        body = nn.Sequential(*conv(channels, width, 3, stride), nn.ReLU(inplace=True), *conv(width, width, 3, 1))
        super().__init__(body, channels, width, stride, shortcut)


class PaddedBlock(BasicBlock):
    """A `BasicBlock` without parameters in its shortcut, of ResNets with 6n + 2 layers in three stages of n blocks.

    Source: He et al. 2016, arXiv:1512.03385, section 4.2, option A. Differs: weights begin as torch draws them.
    """

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__(channels, width, stride, _Padded(width - channels, stride))


class Bottleneck(_Residual):
    """A strided 3x3 convolution between two of 1x1; the output has four times its channels."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int):
        narrow = (*conv(channels, width, 1, 1), nn.ReLU(inplace=True))
        middle = (*conv(width, width, 3, stride), nn.ReLU(inplace=True))
        body = nn.Sequential(*narrow, *middle, *conv(width, 4 * width, 1, 1))
        super().__init__(body, channels, 4 * width, stride)


class _Padded(nn.Module):
    """Every `stride`-th pixel, padded with channels of zeros."""

    def __init__(self, more: int, stride: int):
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
