"""Passes of a model over data, and batch-norm statistics that fit the data it is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...dynamics import Statistic, grand
from ...modules import device_of, evaluation, last_layer, logits_of
from ..data.datasets import InMemory, Samples


def batches(
    data: Samples,
    device: torch.device,
    prepare: Callable[[Tensor], Any] = lambda samples: samples,
    *,
    batch_size: int = 512,
    workers: int = 0,
) -> Iterator[tuple[Any, Tensor]]:
    """Yield the model's inputs, made by `prepare`, and the labels, in dataset order and on the device."""
    if isinstance(data, InMemory):
        slices = (slice(start, start + batch_size) for start in range(0, len(data), batch_size))
        parts: Iterable[tuple[Tensor, Tensor]] = map(data.take, slices)
    else:
        # a loader draws a seed for its workers in any case: from a generator of its own, not from the caller's
        parts = DataLoader(data, batch_size=batch_size, num_workers=workers, generator=torch.Generator())
    for samples, labels in parts:
        yield prepare(samples.to(device, non_blocking=True)), labels.to(device, non_blocking=True)


def accuracy(model: nn.Module, batches: Iterable[tuple[Any, Tensor]]) -> float:
    """Share of samples whose highest logit is the label's, in evaluation mode; the mode of every module is restored."""
    logits, labels = outputs(model, batches)
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def outputs(model: nn.Module, batches: Iterable[tuple[Any, Tensor]]) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """The model's outputs and the labels of all samples, in evaluation mode; the mode of every module is restored."""
    parts, targets = [], []
    with evaluation(model), torch.no_grad():
        for inputs, labels in batches:
            parts.append(logits_of(model(**inputs) if isinstance(inputs, dict) else model(inputs)).float())
            targets.append(labels)
    return torch.cat(parts), torch.cat(targets)


def last_layer_inputs(model: nn.Module, shape: Sequence[int], statistics: dict[str, Statistic]) -> list[Tensor]:
    """A list that every forward pass appends the features to: the detached input of the last linear layer.

    Nothing is appended where no statistic reads them; `grand` becomes that of this layer, with or without a bias.
    """
    features: list[Tensor] = []
    if not any(statistic.features for statistic in statistics.values()):
        return features
    layer = last_layer(model, torch.zeros(2, *shape, device=device_of(model)))
    statistics["grand"] = grand(layer)
    layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    return features


def recalibrate_batch_norm(model: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Replace running statistics by the plain average over `inputs`, batches as in training.

    Running averages follow the last batches trained, which a pruning method chose; random samples give the statistics
    of the data itself, alike for all methods. Nothing but these statistics changes; the model is left in training mode.

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
