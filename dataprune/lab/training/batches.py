"""Batches of the selected samples, as the model's inputs on its device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from ...loading import prune_loader
from ...pruner import Pruner
from ..data.datasets import InMemory
from .evaluate import batches
from .tasks import Task


class Batches:
    """Batches of a task's training set, as the model's inputs.

    Samples in memory stay on the device; others, or with `workers`, come through a DataLoader. Both ways give the same
    batches in the same order.
    """

    def __init__(
        self, task: Task, pruner: Pruner, device: torch.device, batch_size: int, workers: int, *, drop_last: bool
    ):
        self.samples, self.inputs, self.pruner, self.device = task.data.train, task.inputs, pruner, device
        self.batch_size, self.drop_last = batch_size, drop_last
        if isinstance(self.samples, InMemory) and not workers:
            self._source: InMemory | DataLoader = self.samples.to(device)
        else:
            loader = DataLoader(
                self.samples,
                batch_size=batch_size,
                shuffle=True,
                drop_last=drop_last,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=device.type == "cuda",
            )
            self._source = prune_loader(loader, pruner)

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Yield positions, inputs and labels of the batches left in an epoch."""
        for index, samples, labels in self._samples(epoch):
            yield index, self.inputs(samples, index, epoch), labels

    def left_out(self, epoch: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Yield positions, inputs and labels of what a method forwards beside an epoch's steps, augmented alike."""
        parts = list(self.pruner.left_out(epoch, self.batch_size, device=self.device))
        if isinstance(self._source, InMemory):
            samples: Iterator[Any] = map(self._source.take, parts)
        else:
            index = torch.cat([torch.arange(0), *(part.cpu() for part in parts)])
            samples = batches(self.samples.subset(index), self.device, batch_size=self.batch_size)
        for index, (taken, labels) in zip(parts, samples):
            yield index, self.inputs(taken, index, epoch), labels

    def random(self, count: int, size: int, *, seed: int, epoch: int) -> Iterator[Any]:
        """Yield inputs of `count` random training samples, in whole batches of `size`, augmented as in `epoch`."""
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(seed))[:count]
        order = order[: max(len(order) // size, 1) * size]
        evaluated = batches(self.samples.subset(order), self.device, batch_size=size)
        for index, (samples, _) in zip(order.split(size), evaluated, strict=True):
            yield self.inputs(samples, index, epoch)

    def _samples(self, epoch: int) -> Iterator[tuple[Int[Tensor, " b"], Tensor, Tensor]]:
        source = self._source
        if isinstance(source, InMemory):
            for index in self.pruner.batches(epoch, self.batch_size, drop_last=self.drop_last, device=self.device):
                yield index, *source.take(index)
            return
        source.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for index, (samples, labels) in source:
            yield index, samples.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
