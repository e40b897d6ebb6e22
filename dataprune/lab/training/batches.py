"""Batches of the selected samples, augmented and normalised on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from ...loading import prune_loader
from ...pruner import Pruner
from ..data.datasets import Images, Texts
from ..data.named import Data
from .device import stream
from .settings import Settings


class Batches:
    """Batches of a run. Small images stay on the device; others, or with `workers`, come through a DataLoader.

    Both ways give the same batches in the same order.

    Args:
        data: of the run.
        settings: of the run: batch size, workers, augmentation, seed.
        pruner: selects; built for the training set's size.
        device: where batches go.
        inputs: (pixels, positions, epoch) to what the model is called with.
        drop_last: whether a last, smaller batch is dropped.
    """

    def __init__(
        self,
        data: Data,
        settings: Settings,
        pruner: Pruner,
        device: torch.device,
        inputs: Callable[[Tensor, Tensor, int], Any],
        *,
        drop_last: bool = True,
    ):
        self.data, self.settings, self.pruner, self.device, self.inputs = data, settings, pruner, device, inputs
        self.drop_last = drop_last
        self._resident: Images | Texts | None = None
        self._loader: DataLoader | None = None
        if isinstance(data.train, Images | Texts) and not settings.workers:
            self._resident = data.train.to(device)
        else:
            self._loader = self._streaming()

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Any, Tensor]]:
        """Yield positions, inputs and labels of the batches left in an epoch."""
        for index, pixels, labels in self._pixels(epoch):
            yield index, self.inputs(pixels, index, epoch), labels

    def random(self, count: int) -> Iterator[Any]:
        """Yield inputs of `count` random training samples, in whole batches, augmented as a further epoch."""
        train, size = self.data.train, self.settings.batch_size
        generator = torch.Generator().manual_seed(stream(self.settings.seed, "recalibrate"))
        order = torch.randperm(len(train), generator=generator)[:count]
        for index in order[: max(len(order) // size, 1) * size].split(size):
            if isinstance(train, Images):
                pixels = train.images[index]
            else:
                pixels = torch.stack([train[int(position)][0] for position in index])
            yield self.inputs(pixels.to(self.device), index, self.settings.epochs)

    def _pixels(self, epoch: int) -> Iterator[tuple[Int[Tensor, " b"], UInt8[Tensor, "b c h w"], Int[Tensor, " b"]]]:
        if self._resident is not None:
            for index in self.pruner.batches(
                epoch, self.settings.batch_size, drop_last=self.drop_last, device=self.device
            ):
                yield index, *self._resident.take(index)
            return
        assert self._loader is not None
        self._loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for index, (pixels, labels) in self._loader:
            yield index, pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _streaming(self) -> DataLoader:
        workers = self.settings.workers
        loader = DataLoader(
            self.data.train,
            batch_size=self.settings.batch_size,
            shuffle=True,
            drop_last=self.drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        return prune_loader(loader, self.pruner)
