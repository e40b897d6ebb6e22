"""A small module that notes which samples it trains, and Trainers that are quiet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip(
    "lightning", reason="the extra lightning is not installed: pip install -c constraints.txt -e '.[lightning]'"
)

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

import dataprune
from dataprune import criteria, learning_rate, policies, schedules
from dataprune.integrations.lightning import PruneCallback
from dataprune.pruner import Pruner

SIZE, BATCH = 48, 8


def shrinking(**options: Any) -> Pruner:
    """48 samples once, then 15 three times."""
    return dataprune.emp(SIZE, keep=0.3125, epochs=4, **options)


def growing() -> Pruner:
    """12, 24, 36, 48 samples."""
    return Pruner(SIZE, criteria.loss, policies.top_k(), schedules.linear(0.25, 1.0, 4), epochs=4)


def annealed() -> Pruner:
    """All, 15, 15, all."""
    return dataprune.emp(SIZE, keep=0.3125, epochs=4, anneal=0.25)


def infobatch() -> Pruner:
    """Decides by the losses how many it keeps."""
    return dataprune.infobatch(SIZE, keep=0.5, epochs=4, anneal=0.25)


def items(size: int = SIZE) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(size, 10, generator=generator), torch.randint(3, (size,), generator=generator))


def loader(size: int = SIZE, **options: Any) -> DataLoader:
    return DataLoader(items(size), **({"batch_size": BATCH, "shuffle": True} | options))


class Tiny(pl.LightningModule):
    """A perceptron whose learning rate falls to 0 over `steps` steps; `seen` has (epoch, positions) of each batch."""

    def __init__(self, pruner: Pruner | None, steps: int, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(16, 3)
        )
        self.pruner, self.steps = pruner, steps
        self.seen: list[tuple[int, list[int]]] = []
        self.values: list[float] = []
        self.validated: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        index = None
        if self.pruner is not None:
            index, batch = batch
            self.seen.append((self.current_epoch, index.tolist()))
        x, y = batch
        logits = self.layers(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        loss = losses.mean() if self.pruner is None else self.pruner.loss(index, losses, logits, y)
        self.values.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.layers(batch[0]), batch[1]))

    def on_validation_start(self) -> None:
        self.validated.append((self.current_epoch, self.trainer.fit_loop.batch_idx + 1))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        shape = learning_rate.linear()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(min(1, step / self.steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def epochs(self) -> list[list[int]]:
        """The samples of each epoch, in the order they were trained."""
        return [
            [i for at, ids in self.seen if at == epoch for i in ids] for epoch in range(self.trainer.max_epochs or 0)
        ]

    def rate(self) -> float:
        return self.trainer.optimizers[0].param_groups[0]["lr"]


def trainer(pruner: Pruner | None, callbacks: list[Any], **options: Any) -> pl.Trainer:
    given = dict(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, max_epochs=4 if pruner is None else pruner.epochs,
        num_sanity_val_steps=0,
    )  # fmt: skip
    with quiet():
        return pl.Trainer(callbacks=callbacks, **(given | options))


def train(
    pruner: Pruner | None,
    *,
    stock: bool = False,
    module: Any = None,
    data: Any = None,
    resume: Any = None,
    callbacks: tuple[Any, ...] = (),
    drop_last: bool = False,
    validate: bool = False,
    dropout: float = 0.0,
    **options: Any,
) -> Tiny:
    """A finished run: without a callback of ours where it is `stock`."""  # fmt: skip
    accumulate = options.get("accumulate_grad_batches", 1)
    if data is None and not overrides(module):
        data = loader(drop_last=drop_last)
        data = data if pruner is None else dataprune.prune_loader(data, pruner)
    if module is None:
        ranks = options.get("devices", 1)
        steps = 24 if pruner is None else pruner.planned_steps(
            BATCH, accumulate=accumulate, drop_last=drop_last, world_size=ranks
        )  # fmt: skip
        module = Tiny(pruner, steps, dropout)
    ours: list[Any] = [] if stock or pruner is None else [PruneCallback(pruner)]
    options["enable_checkpointing"] = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    with quiet():
        running = trainer(pruner, [*ours, *callbacks], **options)
        running.fit(module, data, loader(16, shuffle=False) if validate else None, ckpt_path=resume)
    return module


def overrides(module: Any) -> bool:
    return module is not None and type(module).train_dataloader is not pl.LightningModule.train_dataloader


def every_step(folder: Path, **options: Any) -> ModelCheckpoint:
    given = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}", "auto_insert_metric_name": False}
    return ModelCheckpoint(folder, **(given | options))


class quiet(warnings.catch_warnings):
    """Without what Lightning says of every small run on a CPU; all else is an error still."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        for message in (
            "The '.*_dataloader' does not have many workers",
            "`isinstance.treespec, LeafSpec.` is deprecated",
            "You called .fit.. without|You have set progress_bar|Starting from v1.9.0",
            "You defined a `validation_step` but have no",
            "The number of training batches .* is smaller than the logging interval",
            "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
            "Checkpoint directory .* exists and is not empty",
        ):
            warnings.filterwarnings("ignore", message)
        return entered
