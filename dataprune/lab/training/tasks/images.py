"""Classification of images, and the weights that runs start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ....contrastive import Views
from ....errors import DataError, UsageError
from ....modules import last_layer
from ...data.augment import augment
from ...data.datasets import Samples
from ...data.named import Data
from ...models.build import build
from ..evaluate import accuracy, batches
from . import Task


class Classification(Task):
    """Cross-entropy of the classes.

    Source of `resized_crop`: "scale and aspect ratio augmentation" of Szegedy et al. 2015, arXiv:1409.4842, section 6.
        Differs: it crops the image as it was loaded, at --image-size, not the larger original; where no box fits in ten
        attempts, its place is random, not the middle.
    """

    def model(self) -> nn.Module:
        model = build(self.settings.model, self.data.shape, len(self.data.classes), self.settings.seed)
        if self.settings.init is not None:
            initialize(model, Path(self.settings.init), self.data)
        return model

    def inputs(self, samples: Tensor, index: Tensor, epoch: int) -> tuple[Tensor]:
        s = self.settings
        if s.resized_crop:
            views = Views(self.data.mean, self.data.std, flip=0.5 * s.flip, grey=0.0)
            made = views.view(samples, index, seed=s.seed, epoch=epoch, number=0)
            return (made.contiguous(memory_format=torch.channels_last) if s.channels_last else made,)
        mode = cast(Any, s.shift_mode)
        augmented = augment(samples, index, seed=s.seed, epoch=epoch, shift=s.shift, mode=mode, flip=s.flip)
        return (self.prepare(augmented),)

    def losses(self, output: Any, labels: Int[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:
        return self.cross_entropy(output.float(), labels)

    def validate(self, model: nn.Module, part: Samples, device: torch.device) -> float:
        return accuracy(model, batches(part, device, self.prepare, workers=self.settings.workers))

    def test(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        return {"accuracy": self.validate(model, self.data.test, device)}


def headless(model: nn.Module, data: Data) -> tuple[nn.Module, int]:
    """Replace a classifier's last linear layer by the identity; return the model and the layer's input width."""
    name, layer = _last(model, data)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, cast(int, layer.in_features)


def initialize(model: nn.Module, path: Path, data: Data) -> None:
    """Load all weights but the last layer's, whose classes may differ, from a run's folder or its model.safetensors."""
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise UsageError(f"--init {path}: there is no {file}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"--init {file} cannot be read ({error})") from error
    encoder = {name.removeprefix("encoder."): weight for name, weight in weights.items() if name.startswith("encoder.")}
    head = _last(model, data)[0] + "."
    stored = {name: weight for name, weight in (encoder or weights).items() if not name.startswith(head)}
    new = {name: weight for name, weight in model.state_dict().items() if not name.startswith(head)}
    wrong = [*(stored.keys() ^ new.keys())]
    wrong += [name for name in stored.keys() & new.keys() if stored[name].shape != new[name].shape]
    if wrong:
        others = f"and {len(wrong) - 1} more do not" if len(wrong) > 1 else "does not"
        raise DataError(
            f"--init {file} holds another model's weights ({min(wrong)} {others} fit): give the same --model and "
            "images of the same shape"
        )
    model.load_state_dict(stored, strict=False)


def _last(model: nn.Module, data: Data) -> tuple[str, nn.Module]:
    """Name and module of the layer that makes the logits."""
    try:
        layer = last_layer(model, torch.zeros(2, *data.shape))
    except ValueError as error:
        raise UsageError(
            "the model has no linear layer that makes its logits from (B, D) features: pre-training and --init need one"
        ) from error
    return next((name, module) for name, module in model.named_modules() if module is layer)
