"""What a run learns. A task makes the model, its inputs, its losses and its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ...data.datasets import Samples
from ...data.named import Data
from ..settings import Settings


class Task(Protocol):
    """What `run` asks of a task.

    Attributes:
        classifies: whether a prediction is right or wrong, so that accuracy is defined.
    """

    classifies: bool

    def model(self) -> nn.Module:
        """Build the model to train, on the CPU."""
        ...

    def inputs(self, samples: Tensor, index: Tensor, epoch: int, /) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """Make the model's arguments of a batch."""
        ...

    def losses(self, output: Any, labels: Int[Tensor, " b"]) -> tuple[Tensor, Any, Tensor | None]:
        """Compute per-sample losses, the outputs a criterion reads, and the number right where that is defined."""
        ...

    def validate(self, model: nn.Module, part: Samples, device: torch.device) -> float:
        """Evaluate a part of the data by the main metric, as in every epoch."""
        ...

    def test(self, model: nn.Module, device: torch.device) -> dict[str, Any]:
        """Evaluate the test set; `accuracy` is the main metric."""
        ...

    def save(self, model: nn.Module, out: Path) -> None:
        """Save the weights in the run's folder."""
        ...


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
