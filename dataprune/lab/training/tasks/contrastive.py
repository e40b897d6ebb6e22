"""Contrastive pre-training on images, and the runs that tell what it gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ....contrastive import SimCLR, Views, knn_accuracy, linear_probe, nt_xent
from ...data.datasets import Samples
from ...data.named import Data
from ...models.build import build
from ..evaluate import batches, outputs
from ..settings import Settings
from . import Task
from .images import headless

_BANK = 5000  # training samples that validation compares with: the same in every epoch and run


class Contrastive(Task):
    """SimCLR: NT-Xent of two views of every image; features are evaluated by nearest neighbours and a linear probe."""

    classifies = False

    def __init__(self, settings: Settings, data: Data):
        super().__init__(settings, data)
        make = Views if settings.views == "paper" else Views.simclr
        self.views = make(mean=data.mean, std=data.std)

    def model(self) -> nn.Module:
        settings = self.settings
        classifier = build(settings.model, self.data.shape, len(self.data.classes), settings.seed)
        encoder, width = headless(classifier, self.data)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed + 1)
            return SimCLR(encoder, settings.dim, features=width, projection=cast(Any, settings.projection))

    def inputs(self, samples: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        pair = self.views(samples, index, seed=self.settings.seed, epoch=epoch)
        form = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return pair[0].contiguous(memory_format=form), pair[1].contiguous(memory_format=form)

    def losses(self, output: Any, labels: Int[Tensor, " b"]) -> tuple[Tensor, Any, None]:
        features, projections = output
        z_i, z_j = projections
        losses = nt_xent(z_i, z_j, self.settings.temperature, "none", gather=self.settings.gather)
        pair = features if self.settings.score_on == "features" else projections
        return losses, (pair[0].detach(), pair[1].detach()), None

    def validate(self, model: nn.Module, part: Samples, device: torch.device) -> float:
        """Compute the accuracy of nearest neighbours among the first training samples."""
        bank = self.data.train
        bank = bank.subset(torch.arange(min(_BANK, len(bank))))
        return _neighbours(self._features(model, bank, device), self._features(model, part, device))

    def test(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Compute `accuracy` of a linear probe on all training features, and `knn_accuracy`."""
        train = self._features(model, self.data.train, device)
        test = self._features(model, self.data.test, device)
        return {"accuracy": linear_probe(*train, *test), "knn_accuracy": _neighbours(train, test)}

    def _features(
        self, model: nn.Module, part: Samples, device: torch.device
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        encoder = cast(SimCLR, model).encoder
        return outputs(encoder, batches(part, device, self.prepare, workers=self.settings.workers))


def _neighbours(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    return knn_accuracy(*train, *test, k=min(20, len(train[1])))


def finetuning(settings: Settings, epochs: int) -> Settings:
    """Settings of the run that trains the whole classifier on all labels, after a pre-training with `settings`.

    Source: Xiao et al., arXiv:2408.16031, Table B.5 (Adam, rate 1e-3, weight decay 1e-6, batch 32, there 100 epochs).
        Differs: the paper names no schedule for the learning rate; it is a cosine here.
    """
    recipe: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-6, "batch_size": 32}
    schedule: dict[str, Any] = {"epochs": epochs, "steps": None, "schedule": "cosine", "lr_warmup": 0.05}
    unpruned: dict[str, Any] = {"method": "full", "keep": None, "budget": None, "option": ()}
    return replace(settings, task="classification", arm="", **unpruned, **schedule, **recipe)


def untrained(settings: Settings, data: Data, device: torch.device) -> dict[str, float]:
    """Evaluate random features by probe and neighbours: the baseline of a pre-training."""
    task = Contrastive(settings, data)
    return task.test(task.model().to(device), device)
