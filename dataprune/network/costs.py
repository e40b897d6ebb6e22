"""Cost of a model: sparsity, parameters, FLOPs, latency, and the FLOPs of training it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..modules import device_of, inference
from . import layers as _layers


@dataclass(frozen=True)
class Sparsity:
    """Zeros among the weights of convolutions and linear layers, without biases and normalisation."""

    zeros: dict[str, int]  # layer -> number of weights that are exactly zero
    sizes: dict[str, int]  # layer -> number of weights

    @property
    def layers(self) -> dict[str, float]:
        """Layer -> share of its weights that are zero."""
        return {name: self.zeros[name] / size for name, size in self.sizes.items()}

    @property
    def overall(self) -> float:
        """Share of all these weights that are zero."""
        return sum(self.zeros.values()) / sum(self.sizes.values())


def sparsity(model: nn.Module, *, exclude: _layers.Exclude = ()) -> Sparsity:
    """Count the zeros in the weights that the next forward pass will use.

    `exclude` leaves out layers as in `prune`. Raises ValueError if there is no layer to count.

    Example:
        >>> from dataprune import network
        >>> model = nn.Sequential(nn.Linear(10, 5), nn.Linear(5, 2))
        >>> masks = network.prune(model, 0.5)
        >>> sparsity(model).layers, sparsity(model).overall
        ({'0': 0.5, '1': 0.5}, 0.5)
    """
    weights = {name: _layers.effective(layer) for name, layer in _layers.prunable(model, exclude).items()}
    return Sparsity(
        zeros={name: int((weight == 0).sum()) for name, weight in weights.items()},
        sizes={name: weight.numel() for name, weight in weights.items()},
    )


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass of a batch in evaluation mode; masks do not change it, removed channels do."""

    parameters: int  # elements of all parameters
    flops: int  # of convolutions, matrix products and attention, as torch counts them; a multiply-add is two
    latency: float  # seconds, the median of repeated passes


def cost(model: nn.Module, example_inputs: Any, *, repeats: int = 20) -> Cost:
    """Count parameters and FLOPs, and measure the time of a forward pass.

    The model runs on its device in evaluation mode; its mode is restored. Compare latencies within one run, with the
    models in turns, on an otherwise idle machine.

    Args:
        example_inputs: a batch: a tensor, a tuple of positional or a dict of keyword arguments.
        repeats: timed forward passes, after three untimed ones.
    Raises:
        ValueError: if repeats is below 1.
        TypeError: if there are no inputs.
    Example:
        >>> cost(nn.Linear(10, 5), torch.zeros(1, 10)).flops
        100
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    flops, _ = forward_flops(model, example_inputs)
    device, seconds = device_of(model), []
    with inference(model):
        for _ in range(3 + repeats):
            _wait(device)
            started = time.perf_counter()
            call(model, example_inputs)
            _wait(device)
            seconds.append(time.perf_counter() - started)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, flops, statistics.median(seconds[3:]))


def training_flops(
    model: nn.Module, example_inputs: Any, samples: float, *, scored: float = 0, sparse: bool = False
) -> float:
    """Count the FLOPs of a training run, with the savings of data pruning and network pruning together.

    3 · f · samples + f · scored, with f the FLOPs of the forward pass of one sample: the backward pass costs twice as
    much, for the gradients of activations and of weights. A run in several stages is the sum of one call per stage,
    with the model of that stage.

    Args:
        example_inputs: a batch, with samples in the first dimension.
        samples: samples back-propagated over all epochs, as in run records.
        scored: samples that only pass forward, such as those that are scored but not trained.
        sparse: count each layer by its share of nonzero weights: the theoretical saving of masks if zeros were free,
            which hardware does not reach. Otherwise masks save nothing.
    Raises:
        ValueError: if samples or scored is negative.
        TypeError: if there are no inputs.
    Example:
        >>> training_flops(nn.Linear(10, 5), torch.zeros(8, 10), samples=1000)
        300000.0

    Source: Evci et al. 2020, arXiv:1911.11134, appendix, for the factor of three and the scaling by density. Differs:
        nothing.
    """
    for name, value in (("samples", samples), ("scored", scored)):
        if not value >= 0:
            raise ValueError(f"{name} is a number of samples, at least 0, got {value}")
    total, of_layers = forward_flops(model, example_inputs)
    saved = 0.0
    if sparse and of_layers:
        zeros = sparsity(model).layers
        saved = sum(zeros[name] * flops for name, flops in of_layers.items())
    return (total - saved) / _batch_size(example_inputs) * (3 * samples + scored)


def forward_flops(model: nn.Module, example_inputs: Any) -> tuple[int, dict[str, int]]:
    """Count the FLOPs of a forward pass, and those of each convolution and linear layer in it."""
    layers: dict[nn.Module, str] = {
        layer: name for name, layer in model.named_modules() if isinstance(layer, _layers.PRUNABLE)
    }
    of_layers: Counter[str] = Counter()
    counter = FlopCounterMode(display=False)

    # the difference between the totals after and before a call
    def enter(layer: nn.Module, inputs: Any) -> None:
        of_layers[layers[layer]] -= counter.get_total_flops()

    def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
        of_layers[layers[layer]] += counter.get_total_flops()

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(enter))
            hooks.enter_context(layer.register_forward_hook(leave))
        with inference(model), counter:
            call(model, example_inputs)
    return counter.get_total_flops(), of_layers


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of positional or a dict of keyword arguments."""
    if example_inputs is None:
        raise TypeError("example_inputs are missing: pass a batch, such as torch.zeros(1, 3, 32, 32)")
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    return model(*example_inputs) if isinstance(example_inputs, (tuple, list)) else model(example_inputs)


def _batch_size(example_inputs: Any) -> int:
    given = [example_inputs] if isinstance(example_inputs, Tensor) else example_inputs
    values = given.values() if isinstance(given, dict) else given
    size = next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), 0)
    if size == 0:
        raise TypeError("example_inputs hold no tensor with samples in its first dimension")
    return size


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
