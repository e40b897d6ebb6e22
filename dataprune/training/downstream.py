"""What pre-training is worth: the accuracy after fine-tuning, and what the encoder was worth before it was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import distributed
from ..errors import UsageError
from . import tasks
from .data import Data
from .fit import Report, fit
from .settings import Settings

FINETUNING: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-6, "batch_size": 32}


def finetuned(
    settings: Settings, out: Path, data: Data, *, epochs: int, weights: Path | None, report: Report | None = None
) -> float:
    """Accuracy of the whole classifier after training it on all labels, from pre-trained or from random weights.

    Args:
        settings: of the pre-training: its data, model and seed.
        out: folder of the fine-tuning run; a finished one is only read.
        data: the settings' data.
        epochs: of fine-tuning.
        weights: `model.safetensors` of the pre-training; None: no pre-training.
        report: called after every epoch.
    Returns:
        On the test set.
    Raises:
        UsageError: if the weights are not there.
    Source: Xiao et al., arXiv:2408.16031, Table B.5 (Adam, rate 1e-3, weight decay 1e-6, batch 32, there 100 epochs).
        Differs: the paper names no schedule for the learning rate; it is a cosine here.
    """
    plain: dict[str, Any] = {"task": "classification", "method": "full", "keep": None, "budget": None, "option": ()}
    schedule: dict[str, Any] = {"epochs": epochs, "steps": None, "schedule": "cosine", "lr_warmup": 0.05}
    run = replace(settings, **plain, **schedule, **FINETUNING)

    def prepare(model: torch.nn.Module) -> None:
        if weights is None:
            return
        if not weights.exists():
            raise UsageError(
                f"{weights} is not there: the comparison was begun without fine-tuning, and kept no weights; choose "
                "another --out"
            )
        tasks.initialize(model, weights, data)

    accuracy = fit(run, out, data=data, report=report, save_model=False, prepare=prepare)["accuracy"]
    if weights is not None and distributed.rank() == 0:
        weights.unlink(missing_ok=True)  # a sweep would keep one model per run
    return accuracy


def untrained(settings: Settings, data: Data, device: torch.device) -> dict[str, float]:
    """What the record of a pre-training would say had it not trained: probe and neighbours of random features.

    Features that are no better than these have learned nothing, whatever their accuracy.
    """
    task = tasks.of(settings, data)
    return task.test(task.model().to(device), device)
