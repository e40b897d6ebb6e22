"""Classification of images, and the weights that runs leave and start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .... import files
from ....errors import DataError, UsageError
from ....modules import last_layer
from ...data.augment import augment, normalize
from ...data.datasets import Samples
from ...data.named import Data
from ...models.build import build
from ..evaluate import accuracy
from ..settings import Settings


class Classification:
    """Cross-entropy of the classes.

    Args:
        settings: of the run.
        data: of the run.
    """

    classifies = True

    def __init__(self, settings: Settings, data: Data):
        self.settings, self.data = settings, data

    def model(self) -> nn.Module:
        """Build the settings' model, with new weights or those of `--init`."""
        model = build(self.settings.model, self.data.shape, len(self.data.classes), self.settings.seed)
        if self.settings.init is not None:
            initialize(model, Path(self.settings.init), self.data)
        return model

    def inputs(self, pixels: Tensor, index: Tensor, epoch: int) -> tuple[Tensor]:
        """Augment and normalise."""
        s = self.settings
        mode = cast(Any, s.shift_mode)
        augmented = augment(pixels, index, seed=s.seed, epoch=epoch, shift=s.shift, mode=mode, flip=s.flip)
        return (prepare(augmented, self.data, s),)

    def losses(self, output: Any, labels: Int[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute cross-entropies, logits, and the number right."""
        logits = output.float()
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.settings.label_smoothing)
        return losses, logits, (logits.detach().argmax(dim=1) == labels).sum()

    def validate(self, model: nn.Module, part: Samples, device: torch.device) -> float:
        """Compute the accuracy."""
        workers = self.settings.workers
        return accuracy(model, part, lambda pixels: prepare(pixels, self.data, self.settings), device, workers=workers)

    def test(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Compute the accuracy on the test set."""
        return {"accuracy": self.validate(model, self.data.test, device)}

    def save(self, model: nn.Module, out: Path) -> None:
        """Save model.safetensors."""
        save_weights(model, out)


def prepare(pixels: Tensor, data: Data, settings: Settings) -> Float[Tensor, "b c h w"]:
    """Normalise pixels, in the model's memory format."""
    inputs = normalize(pixels, data.mean, data.std, torch.float32)
    return inputs.contiguous(memory_format=torch.channels_last) if settings.channels_last else inputs


def save_weights(model: nn.Module, out: Path) -> None:
    """Save the model's weights and buffers as model.safetensors in a run's folder."""
    weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    files.write_bytes(out / "model.safetensors", save(weights))


def headless(model: nn.Module, data: Data) -> tuple[nn.Module, int]:
    """Replace a classifier's last linear layer by the identity; return the model and the layer's input width.

    Raises:
        UsageError: if no linear layer makes its logits.
    """
    name, layer = _last(model, data)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model, cast(int, layer.in_features)


def initialize(model: nn.Module, path: Path, data: Data) -> None:
    """Load a run's weights into a model, all but the last layer's, whose classes may differ.

    Args:
        model: its weights are replaced.
        path: the folder of a run of `dataprune pretrain` or `train`, or its model.safetensors.
        data: of the run that goes on.
    Raises:
        UsageError: if there is no such file.
        DataError: if the weights are not this model's.
    """
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
        raise DataError(
            f"--init {file} holds another model's weights ({_first(wrong)} fit): give "
            "the same --model and images of the same shape"
        )
    model.load_state_dict(stored, strict=False)


def _first(wrong: list[str]) -> str:
    more = len(wrong) - 1
    return f"{min(wrong)} and {more} more do not" if more else f"{wrong[0]} does not"


def _last(model: nn.Module, data: Data) -> tuple[str, nn.Module]:
    """Name and module of the layer that makes the logits."""
    try:
        layer = last_layer(model, torch.zeros(2, *data.shape))
    except ValueError as error:
        raise UsageError(
            "the model has no linear layer that makes its logits from (B, D) features: pre-training and --init need one"
        ) from error
    return next((name, module) for name, module in model.named_modules() if module is layer)
