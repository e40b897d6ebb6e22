"""Models for images of any shape; every one ends in a linear layer named `fc`, so its input are the features."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UsageError, suggest

Shape = Sequence[int]  # channels, height, width


def build(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """A new model, its weights drawn from `seed` alone.

    Args:
        name: one of `MODELS`, or "module:function" of your own, called with (shape, classes).
        shape: (C, H, W) of an image.
        classes: outputs.
        seed: of the weights; torch's own random state is left as it was.
    Returns:
        The model, on the CPU, in training mode.
    Raises:
        UsageError: if there is no such model, or it cannot take such images.
    Example:
        >>> build("mlp", (1, 8, 8), 10, seed=0)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    function = _import(name) if ":" in name else MODELS.get(name)
    if function is None:
        raise UsageError(suggest(name, MODELS, what="model") + ", or module:function of your own")
    # torch.manual_seed would reseed the GPUs too, so only the CPU's generator is saved, seeded and restored
    before = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        model = function(tuple(shape), classes)
    except (TypeError, ValueError, RuntimeError) as error:
        if name in MODELS:
            raise
        raise UsageError(
            f"model {name!r} is called with (shape, classes) = ({tuple(shape)}, {classes}), shape being (C, H, W), and "
            f"fails: {error}"
        ) from error
    finally:
        torch.default_generator.set_state(before)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} must return a torch.nn.Module, not {type(model).__name__}")
    return model


def lenet(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max-pooling; images under 16 pixels are framed with zeros, or nothing would be left.

    Args:
        shape: (C, H, W) of an image.
        classes: outputs.
    Returns:
        The model; 61,706 parameters for MNIST.
    Source: LeCun et al. 1998. Differs: ReLU, max-pooling, all maps connected; as usual today.
    """
    channels, height, width = shape
    frame = [max(0, 16 - width), max(0, 16 - height)]
    height, width = ((size // 2 - 4) // 2 for size in (max(16, height), max(16, width)))
    return _Stages(
        pad=nn.ZeroPad2d((frame[0] // 2, frame[0] - frame[0] // 2, frame[1] // 2, frame[1] - frame[1] // 2)),
        conv1=nn.Sequential(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        conv2=nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        flat=nn.Flatten(),
        fc1=nn.Sequential(nn.Linear(16 * height * width, 120), nn.ReLU()),
        fc2=nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
        fc=nn.Linear(84, classes),
    )


def mlp(shape: Shape, classes: int, hidden: int = 256) -> nn.Module:
    """One hidden layer.

    Args:
        shape: (C, H, W) of an image.
        classes: outputs.
        hidden: units.
    Returns:
        The model.
    """
    channels, height, width = shape
    return _Stages(
        flat=nn.Flatten(),
        hidden=nn.Sequential(nn.Linear(channels * height * width, hidden), nn.ReLU()),
        fc=nn.Linear(hidden, classes),
    )


def small_cnn(shape: Shape, classes: int) -> nn.Module:
    """Four 3x3 convolutions of 16, 32, 48 and 64 channels, strides 2, 1, 2, 1, batch norm, ReLU; average pool.

    Args:
        shape: (C, H, W) of an image.
        classes: outputs.
    Returns:
        The model; 47,194 parameters for Fashion-MNIST.
    """
    stages: dict[str, nn.Module] = {}
    channels = shape[0]
    for number, (width, stride) in enumerate(((16, 2), (32, 1), (48, 2), (64, 1)), start=1):
        stages[f"conv{number}"] = nn.Sequential(*_conv(channels, width, 3, stride), nn.ReLU(inplace=True))
        channels = width
    return _Stages(**stages, pool=_AveragePool(), fc=nn.Linear(channels, classes))


def resnet(shape: Shape, classes: int, block: Callable[[int, int, int], nn.Module], depths: Sequence[int]) -> nn.Module:
    """ResNet in its CIFAR form: a 3x3 stem of stride 1 and no max-pooling.

    Args:
        shape: (C, H, W) of an image.
        classes: outputs.
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks of each of the four stages.
    Returns:
        The model.
    Source: He et al. 2016, arXiv:1512.03385. Differs: the stem, as in the CIFAR experiments of the pruning papers; a
        bottleneck's stride sits in its 3x3 convolution.
    """
    expansion: int = getattr(block, "expansion")  # noqa: B009  a callable need not have one
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(*_conv(shape[0], 64, 3, 1), nn.ReLU(inplace=True))}
    channels = 64
    for stage, depth in enumerate(depths):
        width, blocks = 64 << stage, []
        for position in range(depth):
            blocks.append(block(channels, width, 2 if stage and not position else 1))
            channels = width * expansion
        stages[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    return _Stages(**stages, pool=_AveragePool(), fc=nn.Linear(channels, classes))


class _Residual(nn.Module):
    """relu(body(x) + shortcut(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, body: nn.Sequential, channels: int, out: int, stride: int):
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if stride == 1 and channels == out else _conv(channels, out, 1, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        return torch.relu_(self.body(x) + self.shortcut(x))


class BasicBlock(_Residual):
    """Two 3x3 convolutions.

    Args:
        channels: of the input.
        width: of the convolutions and the output.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int):
        body = nn.Sequential(*_conv(channels, width, 3, stride), nn.ReLU(inplace=True), *_conv(width, width, 3, 1))
        super().__init__(body, channels, width, stride)


class Bottleneck(_Residual):
    """A 3x3 convolution between two of 1x1.

    Args:
        channels: of the input.
        width: of the 3x3 convolution; the output has four times as many.
        stride: of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int):
        narrow = (*_conv(channels, width, 1, 1), nn.ReLU(inplace=True))
        middle = (*_conv(width, width, 3, stride), nn.ReLU(inplace=True))
        body = nn.Sequential(*narrow, *middle, *_conv(width, 4 * width, 1, 1))
        super().__init__(body, channels, 4 * width, stride)


class _Stages(nn.Sequential):
    """A sequence whose stages have names."""

    def __init__(self, **stages: nn.Module):
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)


class _AveragePool(nn.Module):
    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        return x.mean((2, 3))


def _conv(channels: int, out: int, size: int, stride: int) -> nn.Sequential:
    """A convolution and its batch norm, which makes a bias superfluous."""
    convolution = nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


def _import(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` does: the installed command does not
        found = getattr(importlib.import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise UsageError(
            f"cannot import model {name!r}: {error}; it is looked for in this folder and on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UsageError(f"model {name!r} is not a function of (shape, classes)")
    return found


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "lenet": lenet,
    "mlp": mlp,
    "small_cnn": small_cnn,
    "resnet18": partial(resnet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": partial(resnet, block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": partial(resnet, block=Bottleneck, depths=(3, 4, 6, 3)),
}
