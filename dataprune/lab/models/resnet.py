"""ResNets: those of ImageNet with either stem, and the small ones that were made for CIFAR."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .layers import AveragePool, Stages, conv


def resnet(
    shape: Sequence[int],
    classes: int,
    block: Callable[[int, int, int], nn.Module],
    depths: Sequence[int],
    imagenet: bool = False,
) -> nn.Module:
    """ResNet of four stages with `depths` blocks each, 64 channels wide in the first.

    The published stem (`imagenet`) is 7x7 of stride 2 and max-pooling; that for small images is 3x3 of stride 1.

    Source: He et al. 2016, arXiv:1512.03385, table 1. Differs: the small stem, as in the CIFAR experiments of the
        pruning papers; a bottleneck's stride sits in its 3x3 convolution; weights begin as torch draws them.
    """
    expansion: int = getattr(block, "expansion")  # noqa: B009  a callable need not have one
    size, stride = (7, 2) if imagenet else (3, 1)
    stem: list[nn.Module] = [*conv(shape[0], 64, size, stride), nn.ReLU(inplace=True)]
    if imagenet:
        stem.append(nn.MaxPool2d(3, stride=2, padding=1))
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(*stem)}
    channels = 64
    for stage, depth in enumerate(depths):
        stages[f"layer{stage + 1}"] = _stage(block, channels, 64 << stage, depth, 2 if stage else 1)
        channels = (64 << stage) * expansion
    return Stages(**stages, pool=AveragePool(), fc=nn.Linear(channels, classes))


def cifar_resnet(shape: Sequence[int], classes: int, depth: int) -> nn.Module:
    """ResNet of 6n + 2 layers in stages of 16, 32 and 64 channels; its shortcuts have no parameters (option A).

    Source: He et al. 2016, arXiv:1512.03385, section 4.2. Differs: weights begin as torch draws them.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 2, such as 20, 32, 44 or 56, got {depth}")
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(*conv(shape[0], 16, 3, 1), nn.ReLU(inplace=True))}
    channels = 16
    for stage in range(3):
        stages[f"layer{stage + 1}"] = _stage(PaddedBlock, channels, 16 << stage, blocks, 2 if stage else 1)
        channels = 16 << stage
    return Stages(**stages, pool=AveragePool(), fc=nn.Linear(channels, classes))


def _stage(
    block: Callable[[int, int, int], nn.Module], channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """Blocks of one width, the first of which changes the shape."""
    out = width * getattr(block, "expansion")  # noqa: B009  a callable need not have one
    return nn.Sequential(block(channels, width, stride), *(block(out, width, 1) for _ in range(depth - 1)))


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
    """A `BasicBlock` without parameters in its shortcut."""

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
