"""What pre-training is worth: fine-tuning on all labels, and what the encoder was worth before it was trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..data.named import Data
from . import tasks
from .settings import Settings

_RECIPE: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-6, "batch_size": 32}


def finetuning(settings: Settings, epochs: int) -> Settings:
    """Of the run that trains the whole classifier on all labels, after a pre-training with these settings.

    Args:
        settings: of the pre-training: data, model and seed stay its.
        epochs: of fine-tuning.
    Source: Xiao et al., arXiv:2408.16031, Table B.5 (Adam, rate 1e-3, weight decay 1e-6, batch 32, there 100 epochs).
        Differs: the paper names no schedule for the learning rate; it is a cosine here.
    """
    plain: dict[str, Any] = {"task": "classification", "method": "full", "keep": None, "budget": None, "option": ()}
    schedule: dict[str, Any] = {"epochs": epochs, "steps": None, "schedule": "cosine", "lr_warmup": 0.05}
    return replace(settings, **plain, **schedule, **_RECIPE)


def untrained(settings: Settings, data: Data, device: torch.device) -> dict[str, float]:
    """What the record of a pre-training would say had it not trained: probe and neighbours of random features.

    Features that are no better than these have learned nothing, whatever their accuracy.
    """
    task = tasks.of(settings, data)
    return task.test(task.model().to(device), device)
