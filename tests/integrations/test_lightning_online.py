"""Lightning's Trainer with a chooser, which `training_step` asks for the rows of its super-batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integrations.lightning_tiny import Tiny, items, quiet, shrinking, trainer
from torch.utils.data import DataLoader

import dataprune
from dataprune import online
from dataprune.errors import CheckpointError, PlanError
from dataprune.integrations.lightning import PruneCallback


class Chosen(Tiny):
    def __init__(self, chooser: online.Chooser, asks: bool = True):
        super().__init__(None, steps=12, dropout=0.2)
        self.chooser, self.asks = chooser, asks

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        rows, weight = torch.arange(len(x)), torch.ones(len(x))
        if self.asks:
            with self.chooser.scoring(self.layers):
                logits = self.layers(x)
            rows, weight = self.chooser.choose(F.cross_entropy(logits, y, reduction="none"), logits, y)
        return (weight * F.cross_entropy(self.layers(x[rows]), y[rows], reduction="none")).mean()


def fit(chooser: Any, epochs: int = 2, resume: Any = None, module: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(5)
    module = Chosen(chooser) if module is None else module
    running = trainer(None, [PruneCallback(chooser)], max_epochs=epochs)
    with quiet():
        running.fit(module, DataLoader(items(), batch_size=16), ckpt_path=resume, weights_only=False)
    return running, module


def test_a_chooser_is_counted_saved_and_resumed(tmp_path: Path) -> None:
    running, _ = fit(online.loss(0.25, sample=True), epochs=1)
    assert running.callback_metrics["rows_scored"] == 48 and running.callback_metrics["rows_trained"] == 12
    running.save_checkpoint(tmp_path / "last.ckpt")
    resumed = online.loss(0.25, sample=True)
    running, _ = fit(resumed, resume=str(tmp_path / "last.ckpt"))
    assert resumed.stats()["scored"] == 96 and running.current_epoch == 2
    with pytest.raises(CheckpointError, match="the state is of Chooser"):
        fit(online.memory(0.25), resume=str(tmp_path / "last.ckpt"))
    with pytest.raises(CheckpointError, match="PruneCallback"):
        fit(shrinking(), epochs=4, resume=str(tmp_path / "last.ckpt"))


def test_a_step_that_never_chooses_is_refused() -> None:
    chooser = online.loss(0.25)
    with pytest.raises(PlanError, match="never called chooser"):
        fit(chooser, module=Chosen(chooser, asks=False))


def test_the_callback_of_a_pruner_is_as_before() -> None:
    assert type(PruneCallback(shrinking())) is PruneCallback
    assert isinstance(PruneCallback(online.loss(0.5)), PruneCallback)
    with pytest.raises(TypeError, match=r"dataprune\.Pruner"):
        PruneCallback(dataprune)  # type: ignore[arg-type]
