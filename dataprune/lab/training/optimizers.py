"""Optimizers by name, and LARS."""

# pyright: reportPrivateImportUsage=false
# torch's own optimizers are built of its _foreach functions, which it does not list as exported

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from .settings import Settings

_FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices for which torch updates all weights in one kernel


def build(settings: Settings, parameters: Iterable[Tensor]) -> Optimizer:
    """Build the settings' optimizer; torch's own in the fused form where the device has one, several times as fast.

    Weight decay is added to the gradient, by AdamW decoupled from it.
    """
    parameters = list(parameters)
    fused = all(weight.is_floating_point() and weight.device.type in _FUSED for weight in parameters)
    lr, momentum, decay = settings.lr, settings.momentum, settings.weight_decay
    match settings.optimizer:
        case "sgd":
            nesterov = settings.nesterov and momentum > 0
            return SGD(parameters, lr, momentum, weight_decay=decay, nesterov=nesterov, fused=fused)
        case "adam":
            return Adam(parameters, lr, weight_decay=decay, fused=fused)
        case "adamw":
            return AdamW(parameters, lr, weight_decay=decay, fused=fused)
        case _:
            return LARS(parameters, lr, momentum=momentum, weight_decay=decay)


class LARS(Optimizer):
    """SGD with momentum whose rate is scaled, tensor by tensor, to the size of the weights; biases and norms too.

    With w the weights, g their gradient and t = trust·‖w‖ / (‖g‖ + decay·‖w‖), clamped to [0, limit] and 1 where ‖w‖ or
    ‖g‖ is zero: v ← momentum·v + lr·t·(g + decay·w), then w ← w − v. With `scale="step"` the momentum is unscaled:
    v ← momentum·v + (g + decay·w), w ← w − lr·t·v. `clip` limits each element of g + decay·w.

    Source: You, Gitman and Ginsburg 2017, arXiv:1708.03888, Algorithm 1. Differs: the trust ratio is clamped, as in the
        CIFAR recipe of EMP and InfoBatch; InfoBatch's code is `scale="step", clip=10`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust: float = 1e-3,
        limit: float = 50.0,
        scale: Literal["gradient", "step"] = "gradient",
        clip: float | None = None,
    ):
        settings = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust, limit=limit)
        for name, value in settings.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if scale not in ("gradient", "step"):
            raise ValueError(f'scale must be "gradient" or "step", got {scale!r}')
        super().__init__(params, settings | dict(scale=scale, clip=clip))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; `closure` recomputes the loss with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        factors = (group["lr"] * _trust_ratios(weights, gradients, group)).unbind()
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        if group["clip"] is not None:
            gradients = torch._foreach_clamp_max(gradients, group["clip"])
            torch._foreach_clamp_min_(gradients, -group["clip"])
        if group["scale"] == "gradient":
            gradients = torch._foreach_mul(gradients, factors)
        for weight, gradient in zip(weights, gradients, strict=True):
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(gradient)
        velocities = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, gradients)
        steps = velocities if group["scale"] == "gradient" else torch._foreach_mul(velocities, factors)
        torch._foreach_sub_(weights, steps)


def _trust_ratios(weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> Float[Tensor, " tensors"]:
    """The trust ratio of every tensor, left on the device: reading it would synchronise a GPU at every tensor."""
    w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
    ratios = group["trust"] * w / (g + group["weight_decay"] * w)
    return torch.where((w > 0) & (g > 0), ratios, 1.0).clamp(0.0, group["limit"])
