"""Helpers for any `nn.Module`: its device and mode, the logits that it returns, and its last linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Context manager: puts the model into evaluation mode, and restores the mode of every module on exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Context manager: evaluation mode without gradients; restores modes and torch's CPU random state on exit."""
    # not inference_mode: a masked layer keeps its last weight, and an inference tensor could not be trained through
    with torch.random.fork_rng(devices=[]), evaluation(model), torch.no_grad():
        yield


def logits_of(output: Any, dims: Sequence[int] = (2,)) -> Float[Tensor, "b *s c"]:
    """Read the logits (B, C), else TypeError: a tensor, `logits` of an object or mapping, or the first of a tuple.

    With `dims` (2, 3), those of sequences too, (B, S, C).
    """
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        logits = output.logits
    elif isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor) or logits.ndim not in dims:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise TypeError(f"the model must return (B, C) logits, or an output that has them as `logits`, got {got}")
    return logits


def last_layer(model: nn.Module, *inputs: Any, **named: Any) -> nn.Module:
    """Find the `nn.Linear` whose output a model returns as logits, by one forward pass in evaluation mode.

    The model is called with `inputs` and `named`. Raises ValueError if no linear layer produces the logits.
    """
    with inference(model):
        return trace_last_layer(model, linear_layers(model), inputs, named)[0]


def has_bias(layer: bool | nn.Module) -> bool:
    """Whether a layer has a bias; True and False stand for themselves. TypeError for anything else."""
    if isinstance(layer, bool):
        return layer
    if not isinstance(layer, nn.Module):
        raise TypeError(f"bias is True, False or the last layer itself, got {type(layer).__name__}")
    return getattr(layer, "bias", None) is not None


def linear_layers(model: nn.Module) -> list[nn.Module]:
    """Every `nn.Linear` of a model."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def trace_last_layer(
    model: nn.Module, layers: Sequence[nn.Module], inputs: Sequence[Any], named: Mapping[str, Any]
) -> tuple[nn.Module, Float[Tensor, "b d"], Float[Tensor, "b c"]]:
    """Run a model in its current mode, and find which of `layers` produced its logits; that, its input and the logits.

    Raises ValueError if none of the layers takes (B, D) features and produces the logits.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls.append((module, inputs[0], output))

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(record))
        logits = logits_of(model(*inputs, **named))
    for layer, features, output in reversed(calls):
        same = output is logits or (output.shape == logits.shape and torch.equal(output.to(logits), logits))
        if same and features.ndim == 2:
            return layer, features, logits
    raise ValueError(
        "no nn.Linear of the model takes (B, D) features and produces the logits it returns: extract features "
        "yourself, and pass them to the selectors as a tensor"
    )
