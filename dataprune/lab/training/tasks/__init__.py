"""What a run learns: a task makes the model, its inputs, its losses and its evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors.torch import save
from torch import Tensor, nn

from .... import files
from ...data.augment import normalize
from ...data.datasets import Samples
from ...data.named import Data
from ..settings import Settings


class Task(ABC):
    """What `run` asks of a task; `classifies` says whether predictions are right or wrong, so that accuracy exists."""

    classifies = True

    def __init__(self, settings: Settings, data: Data):
        self.settings, self.data = settings, data

    @abstractmethod
    def model(self) -> nn.Module:
        """Build the model to train, on the CPU."""

    @abstractmethod
    def inputs(self, samples: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """Make the model's arguments of a batch."""

    def take(self, inputs: Any, rows: Int[Tensor, " k"]) -> Any:
        """Take rows of the model's arguments."""
        return tuple(value[rows] for value in inputs)

    @abstractmethod
    def losses(self, output: Any, labels: Int[Tensor, " b"]) -> tuple[Tensor, Any, Tensor | None]:
        """Compute per-sample losses, the outputs a criterion reads, and the number right where that is defined."""

    @abstractmethod
    def validate(self, model: nn.Module, part: Samples, device: torch.device) -> float:
        """Evaluate a part of the data by the main metric, as in every epoch."""

    @abstractmethod
    def test(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """Evaluate the test set; `accuracy` is the main metric."""

    def save(self, model: nn.Module, out: Path) -> None:
        """Save the weights and buffers in the run's folder, as model.safetensors."""
        weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
        files.write_bytes(out / "model.safetensors", save(weights))

    def prepare(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise pixels, in the model's memory format."""
        inputs = normalize(pixels, self.data.mean, self.data.std)
        return inputs.contiguous(memory_format=torch.channels_last) if self.settings.channels_last else inputs

    def cross_entropy(self, logits: Float[Tensor, "b c"], labels: Int[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the losses of a classifier as `losses` returns them."""
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.settings.label_smoothing)
        return losses, logits, (logits.detach().argmax(dim=1) == labels).sum()


def of(settings: Settings, data: Data) -> Task:
    """The settings' task."""
    if settings.glue:
        from .glue import Language

        return Language(settings, data)
    if settings.task == "contrastive":
        from .contrastive import Contrastive

        return Contrastive(settings, data)
    from .images import Classification

    return Classification(settings, data)
