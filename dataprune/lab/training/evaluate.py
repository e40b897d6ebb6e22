"""Accuracy of a model, and batch-norm statistics that fit the data it is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...modules import evaluation
from ..data.named import Images, Streamed, Texts

Prepare = Callable[[UInt8[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]


def accuracy(
    model: nn.Module,
    data: Images | Streamed | Texts,
    prepare: Prepare,
    device: torch.device,
    *,
    batch_size: int = 512,
    workers: int = 0,
) -> float:
    """Share of samples whose highest logit is the label's.

    Args:
        model: gives logits (B, C); evaluated in evaluation mode, the mode of every module is restored.
        data: what it is evaluated on.
        prepare: turns pixels into the model's input.
        device: where the model is.
        batch_size: samples at a time.
        workers: loader processes for streamed data.
    Returns:
        A number in [0, 1].
    """
    right = torch.zeros((), dtype=torch.int64, device=device)
    with evaluation(model), torch.inference_mode():
        for images, labels in batches(data, batch_size, device, workers):
            right += (model(prepare(images)).argmax(dim=1) == labels).sum()
    return int(right) / len(data)


def outputs(
    model: nn.Module,
    data: Images | Streamed | Texts,
    prepare: Prepare,
    device: torch.device,
    *,
    batch_size: int = 512,
    workers: int = 0,
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """What a model gives for all samples, in evaluation mode and dataset order, and their labels; on the device.

    Args:
        model: gives (B, D); the mode of every module is restored.
        data: as for `accuracy`.
        prepare: as for `accuracy`.
        device: as for `accuracy`.
        batch_size: as for `accuracy`.
        workers: as for `accuracy`.
    """
    with evaluation(model), torch.no_grad():
        parts = [
            (model(prepare(images)).float(), labels) for images, labels in batches(data, batch_size, device, workers)
        ]
    return torch.cat([values for values, _ in parts]), torch.cat([labels for _, labels in parts])


def recalibrate_batch_norm(model: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Replace running statistics by the plain average over `inputs`, batches as the model sees them in training.

    Running averages follow the last batches trained, which a pruning method chose; random samples give the statistics
    of the data itself, alike for all methods. Nothing but these statistics changes.

    Args:
        model: is left in training mode.
        inputs: prepared batches of random training samples; not empty.
    Source: Izmailov et al. 2018, arXiv:1803.05407, section 3.1 (for averaged weights). Differs: for pruned training.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        for batch in inputs:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def batches(
    data: Images | Streamed | Texts, batch_size: int, device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples and labels in dataset order, on the device."""
    if isinstance(data, Images | Texts):
        for start in range(0, len(data), batch_size):
            samples, labels = data.take(slice(start, start + batch_size))
            yield samples.to(device), labels.to(device)
        return
    # a loader draws a seed for its workers, wanted or not: from a generator of its own, not from the caller's
    loader = DataLoader(data, batch_size=batch_size, num_workers=workers, generator=torch.Generator())
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
