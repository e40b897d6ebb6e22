"""The models of the command line, by name; each ends in a linear layer named `fc`, whose inputs are the features.

A plain name is the form for small images such as CIFAR's: the first stage of `resnet18` keeps their size. The suffix
`_imagenet` is the published form for images of 224 pixels a side.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import UsageError, suggest
from .external import mobilenet_v2, shufflenet_v2, swin_t, vgg16
from .layers import AveragePool, Stages, conv
from .resnet import BasicBlock, Bottleneck, PaddedBlock, resnet

Shape = Sequence[int]  # channels, height, width


def build(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a model on the CPU, its weights drawn from `seed` alone; torch's random state is left as it was.

    The name is one of `MODELS`, or a "module:function" that is called with (shape, classes).

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
    """LeNet-5 with ReLU and max-pooling; images under 16 pixels a side are padded with zeros to that size.

    Source: LeCun et al. 1998. Differs: ReLU, max-pooling, all maps connected; as usual today.
    """
    channels, height, width = shape
    frame = [max(0, 16 - width), max(0, 16 - height)]
    height, width = ((size // 2 - 4) // 2 for size in (max(16, height), max(16, width)))
    return Stages(
        pad=nn.ZeroPad2d((frame[0] // 2, frame[0] - frame[0] // 2, frame[1] // 2, frame[1] - frame[1] // 2)),
        conv1=nn.Sequential(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        conv2=nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        flat=nn.Flatten(),
        fc1=nn.Sequential(nn.Linear(16 * height * width, 120), nn.ReLU()),
        fc2=nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
        fc=nn.Linear(84, classes),
    )


def mlp(shape: Shape, classes: int) -> nn.Module:
    """One hidden layer."""
    hidden = nn.Sequential(nn.Linear(math.prod(shape), 256), nn.ReLU())
    return Stages(flat=nn.Flatten(), hidden=hidden, fc=nn.Linear(256, classes))


def small_cnn(shape: Shape, classes: int) -> nn.Module:
    """Four 3x3 convolutions of 16, 32, 48 and 64 channels, strides 2, 1, 2, 1, batch norm, ReLU; average pool."""
    stages: dict[str, nn.Module] = {}
    channels = shape[0]
    for number, (width, stride) in enumerate(((16, 2), (32, 1), (48, 2), (64, 1)), start=1):
        stages[f"conv{number}"] = nn.Sequential(*conv(channels, width, 3, stride), nn.ReLU(inplace=True))
        channels = width
    return Stages(**stages, pool=AveragePool(), fc=nn.Linear(channels, classes))


def _import(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` does: the installed command does not
        build = getattr(importlib.import_module(module), function)
    except (ImportError, ValueError, AttributeError) as error:
        raise UsageError(
            f"cannot import model {name!r}: {error}; modules are searched in this folder and on PYTHONPATH"
        ) from error
    if not callable(build):
        raise UsageError(f"model {name!r} is not a function of (shape, classes)")
    return build


# each under its name in the form for small images, and under its name with _imagenet as published
_FORMS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(resnet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": partial(resnet, block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": partial(resnet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "mobilenet_v2": mobilenet_v2,
    "swin_t": swin_t,
    "vgg16": vgg16,
    "shufflenet_v2": shufflenet_v2,
}

MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "lenet": lenet,
    "mlp": mlp,
    "small_cnn": small_cnn,
    **{f"resnet{6 * n + 2}": partial(resnet, block=PaddedBlock, depths=(n, n, n), width=16) for n in (3, 5, 7, 9)},
    **_FORMS,
    **{f"{name}_imagenet": partial(make, imagenet=True) for name, make in _FORMS.items()},
}
