"""What a batch says of its samples: pure functions from (losses, outputs, targets) to one score per sample.

A score is higher for a sample that should be kept first. Every criterion takes the same three arguments, whether it
reads them or not, so that any of them fits any pruner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Criterion = Callable[[Tensor, Any, Any], Tensor]
Reads = Literal["losses", "probabilities", "features", "nothing"]

IGNORED = -100  # torch's own ignore_index: a token that carries no loss
_LOWEST = torch.finfo(torch.float32).min
_CHUNK = 1 << 22  # logits softened at a time, so that no second (B, S, V) tensor ever exists


@runtime_checkable
class Declared(Protocol):
    """A criterion that declares more of itself than a plain function can; dataclasses inherit the defaults.

    Attributes:
        values: shape of one sample's score: () for a number, (V,) for a row, which the policy's own book takes in.
        reads: what it looks at beside the losses.
    """

    values: tuple[int, ...] = ()
    reads: Reads = "probabilities"

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        """Score a batch: (B, *values)."""
        ...


def reads(criterion: Criterion) -> Reads:
    """What a criterion looks at: a plain function of your own may look at the outputs."""
    if isinstance(criterion, Declared):
        return criterion.reads
    return "losses" if criterion is loss else "probabilities"


def carries_losses(criterion: Criterion) -> bool:
    """Whether a score is NaN or infinite where the loss is."""
    return criterion is loss or isinstance(criterion, (loss_plus_entropy, loss_minus_distance))


def values(criterion: Criterion) -> tuple[int, ...]:
    """Shape of one sample's score."""
    return criterion.values if isinstance(criterion, Declared) else ()


def loss(losses: Float[Tensor, " b"], outputs: Any, targets: Any) -> Float[Tensor, " b"]:
    """The training loss itself: hard samples first.

    Args:
        losses: per-sample training losses.
        outputs: unused.
        targets: unused.
    Returns:
        The losses.
    Example:
        >>> loss(torch.tensor([0.5, 2.0]), None, None)
        tensor([0.5000, 2.0000])

    Source: Raju et al. 2021, arXiv:2111.12621, section 3; "LFL" in Xiao et al., arXiv:2408.16031. Differs: nothing.
    """
    return losses


def entropy(losses: Float[Tensor, " b"], outputs: Any, targets: Any) -> Float[Tensor, " b"]:
    """Entropy H of the model's predictive distribution, in nats: the memory term of EMP on its own.

    Args:
        losses: unused.
        outputs: what the distribution is read from.
            (B, C) logits; (B, S, C) logits of sequences, averaged over the tokens whose target is not -100; or a pair
            (mean, variance) of (B,) or (B, D) tensors for Gaussian regression, summed over D.
        targets: (B, S) class ids where outputs are (B, S, C); otherwise unused (soft targets are fine).
    Returns:
        Entropies in [0, log C] for classes; any real number for a Gaussian; 0 for a sample without a valid token.
    Raises:
        ValueError: if outputs carry no distribution: None, (B,), (B, 1), or a shape that is none of the above.
    Example:
        >>> entropy(torch.zeros(1), torch.zeros(1, 4), None)
        tensor([1.3863])

    Source: Xiao et al., arXiv:2408.16031, Eq. 7. Differs: sequences and variances are not in the paper.
    """
    if isinstance(outputs, (tuple, list)) and len(outputs) == 2:
        return _gaussian_entropy(outputs[1], len(losses))
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[-1] < 2:
        shown = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the memory term needs outputs that carry a distribution, got {shown}: pass logits (B, C) or (B, S, C), "
            "or (mean, variance) for regression; a single regression output has none, use `loss` there"
        )
    if len(outputs) != len(losses):
        raise ValueError(f"{len(losses)} losses but {len(outputs)} rows of outputs: pass those of the same batch")
    if outputs.ndim == 2:
        return _plogp(outputs).neg_()
    if outputs.ndim == 3:
        return _token_entropy(outputs, targets)
    raise ValueError(f"outputs must be (B, C) or (B, S, C), got {tuple(outputs.shape)}: flatten positions into S")


@dataclass(frozen=True)
class loss_plus_entropy(Declared):
    """Add beta times the entropy of the prediction to the loss: EMP's score.

    Outputs with a single value per sample, (B,) or (B, 1), are a regression head: it has no distribution, its entropy
    is the same for all, and the score is the loss.

    Args:
        beta: weight of the memory term.
    Raises:
        ValueError: if beta is not a finite number; when called, if the outputs are missing or no logits.
    Example:
        >>> loss_plus_entropy(beta=1.0)(torch.tensor([1.0]), torch.zeros(1, 4), None)
        tensor([2.3863])

    Source: Xiao et al., arXiv:2408.16031, Eq. 8. Differs: nothing.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        if outputs is None:
            raise ValueError("EMP scores the model's outputs too: call pruner.loss(index, losses, outputs, targets)")
        if isinstance(outputs, Tensor) and not outputs.is_floating_point():
            raise ValueError(
                f"outputs hold {outputs.dtype}: pass the logits, as in pruner.loss(index, losses, logits, y)"
            )
        if isinstance(outputs, Tensor) and (outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1)):
            return losses
        if isinstance(outputs, Tensor) and outputs.ndim == 2 and len(outputs) == len(losses):
            return torch.add(losses, _plogp(outputs), alpha=-self.beta)  # the common case, with one call less
        return torch.add(losses, entropy(losses, outputs, targets), alpha=self.beta)


@dataclass(frozen=True)
class loss_minus_distance(Declared):
    """Subtract beta times the distance ‖f_i − f_j‖₂ of a sample's views from the loss: EMP's contrastive score.

    The outputs are a pair (f_i, f_j), each (B, D): what the encoder makes of the first and of the second views.

    Args:
        beta: weight of the memory term.
    Raises:
        ValueError: if beta is not a finite number; when called, if the outputs are not such a pair.
    Example:
        >>> views = (torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        >>> loss_minus_distance(beta=1.0)(torch.tensor([7.0]), views, None)
        tensor([2.])

    Source: Xiao et al., arXiv:2408.16031, Eq. 12 and 13. Differs: nothing.
    """

    beta: float = 5.0
    reads = "features"

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        return torch.add(losses, _distance(outputs, len(losses)), alpha=-self.beta)


def _distance(outputs: Any, batch: int) -> Float[Tensor, " b"]:
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2 or not all(isinstance(f, Tensor) for f in outputs):
        shown = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"outputs must be the features of the two views, pruner.loss(index, losses, (f_i, f_j)), got {shown}: this "
            "method is for contrastive learning; for logits use `emp`"
        )
    f_i, f_j = outputs
    if f_i.ndim != 2 or f_i.shape != f_j.shape or len(f_i) != batch:
        raise ValueError(
            f"the two views' features must both be (B, D) with B = {batch}, as there are losses; got "
            f"{tuple(f_i.shape)} and {tuple(f_j.shape)}"
        )
    if not f_i.is_floating_point() or not f_j.is_floating_point():
        raise ValueError(f"the two views' features must be floating point, got {f_i.dtype} and {f_j.dtype}")
    dtype = torch.promote_types(torch.promote_types(f_i.dtype, f_j.dtype), torch.float32)
    # nearby views in half precision: rounded differences would be all that is left
    return torch.linalg.vector_norm(f_i.to(dtype) - f_j.to(dtype), dim=1)


def _check_beta(beta: float) -> None:
    if isinstance(beta, bool) or not isinstance(beta, Real) or not math.isfinite(beta):
        raise ValueError(f"beta is the weight of the memory term, a finite number, got {beta!r}")


def _plogp(logits: Float[Tensor, "... c"]) -> Float[Tensor, "..."]:
    """Minus the entropy: sum of p log p."""
    logs = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    logs.clamp_(min=_LOWEST)  # an excluded class, at -inf, must give 0 * finite, not NaN
    return torch.linalg.vecdot(logs.exp(), logs)


def _token_entropy(logits: Float[Tensor, "b s c"], targets: Any) -> Float[Tensor, " b"]:
    batch, tokens, classes = logits.shape
    valid = torch.ones(batch, tokens, dtype=torch.bool, device=logits.device)
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        if targets.shape != logits.shape[:2]:
            raise ValueError(
                f"outputs {tuple(logits.shape)} and targets {tuple(targets.shape)} do not agree: "
                "outputs are (B, S, C) with the classes last, targets (B, S)"
            )
        valid = targets.to(logits.device) != IGNORED
    rows = max(1, _CHUNK // classes)
    samples = max(1, min(batch, rows))
    span = max(1, rows // samples)
    # split, not flattened: logits[:, :-1], as language models shift them, would be copied whole
    each = torch.cat(
        [torch.cat([_plogp(part) for part in group.split(span, dim=1)], dim=1) for group in logits.split(samples)]
    )  # (b, s)
    # filled, not multiplied by 0: what stands at an ignored token may be anything
    return -each.masked_fill(~valid, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def _gaussian_entropy(variance: Any, batch: int) -> Tensor:
    if not isinstance(variance, Tensor) or variance.ndim not in (1, 2) or len(variance) != batch:
        raise ValueError("the second of a pair of outputs must be the predicted variance, of shape (B,) or (B, D)")
    variance = variance.to(torch.promote_types(variance.dtype, torch.float32))
    each = 0.5 * torch.log(2 * math.pi * math.e * variance)
    return each if each.ndim == 1 else each.sum(dim=1)
