"""EMP's memory term layer by layer: criteria that read the outputs of several layers, and a hook that collects them.

Source: this project's answer to the question that Xiao et al., arXiv:2408.16031, leave open (Limitations and Future
Works), whether the memory term should differ between layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .criteria import Declared, loss_plus_entropy
from .errors import suggest

_TINY = torch.finfo(torch.float32).tiny


@dataclass(eq=False)
class memory(Declared):
    """Add to the loss the uncertainty of every layer about the class: L + sum over l of beta_l * H_l.

    The outputs are pooled layers (B, D_l), the last the logits (B, C), the targets class ids. H of the logits is the
    entropy of their softmax; that of another layer the entropy of softmax(-|h - mu_c|^2 / tau), where mu_c are running
    means of the classes, this batch inside, and tau is twice the running variance within classes, per dimension: the
    posterior of round Gaussians. A class that never occurred is not in it.

    The means are saved with the pruner. With several ranks each has the means of what it trained, and a state those of
    the rank that saved it: all ranks select alike, as scores are exchanged, but another number of ranks, or a resumed
    run that loads one rank's state everywhere, scores a little differently.

    Args:
        betas: weight of each layer, in the order of the outputs; 0 passes over a layer, and (0, ..., beta) is `emp`.
        temperature: factor on tau, positive.
        decay: of the sums behind the means, for each batch, in [0, 1).
    Raises:
        ValueError: for an argument out of range; when called, if outputs or targets are not as above.
    Source: this project. Differs from Xiao et al., Eq. 8, where all betas but the last are not 0.
    """

    betas: tuple[float, ...]
    temperature: float = 1.0
    decay: float = 0.99

    def __post_init__(self) -> None:
        self.betas = _checked(self.betas)
        if not 0 < self.temperature < math.inf or not 0 <= self.decay < 1:
            raise ValueError(f"temperature must be positive and decay in [0, 1), got {self.temperature}, {self.decay}")
        self._emp = loss_plus_entropy(self.betas[-1])
        self._sums: dict[str, Tensor] = {}  # by layer, (C, D + 2): of h, 1 and the squared distance

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        *layers, logits = _matched(outputs, self.betas)
        score = self._emp(losses, logits, targets)
        labelled = isinstance(targets, Tensor) and targets.shape == losses.shape and logits.ndim == 2
        if any(self.betas[:-1]) and not labelled:
            raise ValueError("the means of classes need logits (B, C) and targets (B,), class ids")
        for number, (beta, layer) in enumerate(zip(self.betas, layers, strict=False)):
            if beta:
                if not isinstance(layer, Tensor) or layer.ndim != 2 or len(layer) != len(losses):
                    raise ValueError(f"layer {number} must be pooled to (B, D), B = {len(losses)}: `collect` does so")
                with torch.autocast(layer.device.type, enabled=False):
                    y = targets.to(layer.device, torch.int64)
                    score = torch.add(score, self._entropy(str(number), layer.float(), y, logits.shape[1]), alpha=beta)
        return score

    def _entropy(self, name: str, h: Float[Tensor, "b d"], y: Int[Tensor, " b"], classes: int) -> Float[Tensor, " b"]:
        sums = self._sums.get(name)
        sums = h.new_zeros(classes, h.shape[1] + 2) if sums is None else sums.to(h.device)
        onehot = F.one_hot(y, classes).float()
        sums = sums * self.decay
        sums[:, :-1] += onehot.T @ torch.cat([h, torch.ones_like(h[:, :1])], dim=1)
        seen = sums[:, -2] > 0
        means = sums[:, :-2] / sums[:, -2:-1].clamp(min=_TINY)
        squared = torch.cdist(h, means, compute_mode="donot_use_mm_for_euclid_dist").square()
        sums[:, -1] += onehot.T @ squared.gather(1, y[:, None])[:, 0]
        self._sums[name] = sums
        variance = sums[:, -1].sum() / (sums[:, -2].sum() * h.shape[1])
        logits = -squared / (2 * self.temperature * variance).clamp(min=_TINY)
        return torch.special.entr(torch.softmax(logits.masked_fill(~seen, -torch.inf), dim=1)).sum(1)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums behind the means, by layer (copies)."""
        return {name: sums.cpu().clone() for name, sums in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self._sums = {name: sums.clone() for name, sums in state.items()}


@dataclass(frozen=True)
class distance(Declared):
    """Subtract from the loss the distance of a sample's views in every layer: NX - sum over l of beta_l * d_l.

    The outputs are one pair (f_i, f_j) for each layer, each (B, D_l); d_l is the distance ‖f_i - f_j‖₂ over the mean
    length of the batch's features, so that layers of any width and scale are on one footing.

    Args:
        betas: weight of each layer, in the order of the outputs.
    Raises:
        ValueError: if a beta is not a finite number; when called, if the outputs are not such pairs.
    Source: this project. Differs from Xiao et al., Eq. 13, in the division, with one layer too.
    """

    betas: tuple[float, ...]
    reads = "features"

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", _checked(self.betas))

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        score = losses
        for beta, pair in zip(self.betas, _matched(outputs, self.betas), strict=True):
            if len(pair) != 2 or any(f.ndim != 2 or f.shape != pair[0].shape or len(f) != len(losses) for f in pair):
                raise ValueError(f"each layer's outputs are a pair (f_i, f_j), each (B, D) with B = {len(losses)}")
            f_i, f_j = pair[0].float(), pair[1].float()
            length = torch.cat([f_i, f_j]).norm(dim=1).mean().clamp(min=_TINY)
            score = torch.sub(score, (f_i - f_j).norm(dim=1) / length, alpha=beta)
        return score


@contextmanager
def collect(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Context manager: a list that holds, after each forward pass, the pooled output (B, D) of each named submodule.

    Outputs are detached. Images (B, D, ...) are averaged over all that follows D, sequences (B, S, D) over S; of a
    tuple the first counts.

    Args:
        model: whose forward passes are listened to.
        names: as in `model.named_modules()`.
    Raises:
        ValueError: if there is no such submodule.
    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> with collect(model, ["0"]) as layers:
        ...     logits = model(torch.zeros(5, 3))
        ...     outputs = (*layers, logits)  # for the criterion `memory`
        >>> [tuple(part.shape) for part in outputs]
        [(5, 4), (5, 2)]
    """
    modules = dict(model.named_modules())
    layers: list[Tensor] = [torch.empty(0, 0)] * len(names)
    with ExitStack() as hooks:
        for place, name in enumerate(names):
            if name not in modules:
                raise ValueError(suggest(name, list(modules), what="submodule"))

            def keep(module: nn.Module, inputs: Any, output: Any, place: int = place) -> None:
                layers[place] = _pooled(output[0] if isinstance(output, (tuple, list)) else output)

            hooks.enter_context(modules[name].register_forward_hook(keep))
        yield layers


def _pooled(output: Tensor) -> Float[Tensor, "b d"]:
    output = output.detach()
    if output.ndim == 3:
        return output.float().mean(1)
    return output.float().flatten(2).mean(2) if output.ndim > 2 else output.float().clone()  # ReLU may be in place


def _checked(betas: Sequence[float]) -> tuple[float, ...]:
    if isinstance(betas, (int, float)) or not len(betas):
        raise ValueError(f"betas holds one weight for each layer, got {betas!r}")
    return tuple(loss_plus_entropy(beta).beta for beta in betas)


def _matched(outputs: Any, betas: tuple[float, ...]) -> Sequence[Any]:
    if not isinstance(outputs, (tuple, list)) or len(outputs) != len(betas):
        shown = f"{len(outputs)} of them" if isinstance(outputs, (tuple, list)) else type(outputs).__name__
        raise ValueError(f"outputs must be a tuple with one entry for each of the {len(betas)} betas, got {shown}")
    return outputs
