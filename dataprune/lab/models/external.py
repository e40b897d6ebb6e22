"""Models whose layers come from transformers or torchvision, where these are installed; weights are always new.

Each takes the image's shape (C, H, W) and the number of classes; `imagenet` asks for the published form in place of the
one for small images.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import UsageError
from .layers import AveragePool, Stages

_TRANSFORMERS = "pip install -c constraints.txt -e '.[hf]'"


def swin_t(shape: Sequence[int], classes: int, imagenet: bool = False) -> nn.Module:
    """Swin-T of transformers; 28,288,354 parameters on ImageNet.

    The form for small images has patches of one pixel and windows of 4 a side, so that the last stage of a 32x32 image
    is one window, as that of a 224x224 image is in the published form.

    Source: Liu et al. 2021, arXiv:2103.14030; paths are dropped up to a fifth of the time at the last block, as there.
    """
    patch, window = (4, 7) if imagenet else (1, 4)
    least = 8 * patch * (window - 1) + 1  # three stages halve the sides, rounding up
    if min(shape[1:]) < least:
        name, other = ("swin_t_imagenet", ", or take swin_t") if imagenet else ("swin_t", "")
        raise UsageError(
            f"{name} takes images from {least} pixels a side, got {tuple(shape)}: give --image-size{other}"
        )
    config, model = _imported("swin_t", "transformers", _TRANSFORMERS, "SwinConfig", "SwinModel")
    backbone = model(
        config(
            image_size=list(shape[1:]),
            num_channels=shape[0],
            patch_size=patch,
            window_size=window,
            embed_dim=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            drop_path_rate=0.2,
        )
    )
    head = nn.Linear(768, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return Stages(backbone=_Pooled(backbone), fc=head)


def mobilenet_v2(shape: Sequence[int], classes: int, imagenet: bool = False) -> nn.Module:
    """MobileNet-v2 of transformers, of width 1; 3,504,872 parameters on ImageNet.

    The form for small images has no dropout, and stride 1 in the first two strided layers: 8 in all, not 32.

    Source: Sandler et al. 2018, arXiv:1801.04381. Differs: the form for small images, as CIFAR experiments have it;
        batch norm, dropout (0.2) and first weights are those usual in PyTorch, as transformers has those of TensorFlow.
    """
    config, model = _imported("mobilenet_v2", "transformers", _TRANSFORMERS, "MobileNetV2Config", "MobileNetV2Model")
    backbone = model(config(num_channels=shape[0], tf_padding=False, layer_norm_eps=1e-5))
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
        elif isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1  # transformers has 0.997, which TensorFlow means the other way round
    if not imagenet:
        _unstride(backbone, 2)
    return Stages(backbone=_Pooled(backbone), dropout=nn.Dropout(0.2 if imagenet else 0.0), fc=_head(1280, classes))


def vgg16(shape: Sequence[int], classes: int, imagenet: bool = False) -> nn.Module:
    """VGG-16 of torchvision, for images from 32 pixels a side; 138,357,544 parameters on ImageNet.

    The form for small images has batch norm, and one linear layer on the average of what the convolutions leave:
    14,728,266 parameters with 10 classes.

    Source: Simonyan and Zisserman 2015, arXiv:1409.1556, configuration D. Differs: the form for small images, as CIFAR
        experiments have it.
    """
    _check_colour("vgg16", shape)
    if min(shape[1:]) < 32:
        raise UsageError(f"vgg16 halves images five times and takes them from 32 pixels a side, got {tuple(shape)}")
    model = _torchvision("vgg16", "vgg16" if imagenet else "vgg16_bn")(num_classes=classes)
    if not imagenet:
        return Stages(features=model.features, pool=AveragePool(), fc=_head(512, classes))
    hidden, head = model.classifier[:-1], model.classifier[-1]
    return Stages(features=model.features, pool=model.avgpool, flat=nn.Flatten(), hidden=hidden, fc=head)


def shufflenet_v2(shape: Sequence[int], classes: int, imagenet: bool = False) -> nn.Module:
    """ShuffleNet-v2 of torchvision, of width 1; 2,278,604 parameters on ImageNet.

    The form for small images has a stem of stride 1 without max-pooling, so strides of 8 in all, not 32.

    Source: Ma et al. 2018, arXiv:1807.11164. Differs: the form for small images, as CIFAR experiments have it.
    """
    _check_colour("shufflenet_v2", shape)
    model = _torchvision("shufflenet_v2", "shufflenet_v2_x1_0")(num_classes=classes)
    if not imagenet:
        _unstride(model, 1)
        model.maxpool = nn.Identity()
    return model


class _Pooled(nn.Module):
    """The pooled features of a transformers model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.model(x).pooler_output


def _head(features: int, classes: int) -> nn.Linear:
    """A linear layer with small weights and zero bias."""
    head = nn.Linear(features, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def _unstride(model: nn.Module, count: int) -> None:
    """Set the stride of the first `count` strided convolutions to 1."""
    strided = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.stride != (1, 1)]
    for layer in strided[:count]:
        layer.stride = (1, 1)


def _check_colour(name: str, shape: Sequence[int]) -> None:
    if shape[0] != 3:
        raise UsageError(f"{name} takes images of 3 channels, got {tuple(shape)}: take mobilenet_v2, or a resnet")


def _torchvision(name: str, function: str) -> Any:
    release = f"pip install torchvision, in the release that goes with torch {torch.__version__.partition('+')[0]}"
    return _imported(name, "torchvision.models", release, function)[0]


def _imported(name: str, module: str, remedy: str, *classes: str) -> list[Any]:
    """Import the classes that model `name` takes from another library."""
    try:
        imported = importlib.import_module(module)
        return [getattr(imported, entry) for entry in classes]
    except (ImportError, AttributeError, RuntimeError, OSError) as error:  # of another torch, it fails in many ways
        library = module.partition(".")[0]
        raise UsageError(f"model {name} needs {library}: {remedy} ({error})") from error
