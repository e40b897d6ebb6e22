"""The distribution that a model's outputs carry, and its entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .errors import suggest

Distribution = Literal["softmax", "bernoulli", "gaussian"]

IGNORED = -100  # torch's own ignore_index: a token that carries no loss
_LOWEST = torch.finfo(torch.float32).min
_SUM_TO_ONE = 0.02  # rounding of soft labels, in half precision as well
_CHUNK = 1 << 22  # logits softened at a time, so that no second (B, S, V) tensor ever exists


def check_distribution(name: str) -> None:
    """Raise ValueError unless it is the name of a distribution."""
    if name not in get_args(Distribution):
        raise ValueError(suggest(str(name), list(get_args(Distribution)), what="distribution"))


def find(outputs: Any, targets: Any) -> Any:
    """A `Distribution`, or "multi-hot" where the values of (B, C) targets decide between soft and several labels."""
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1:
        if not isinstance(targets, Tensor) or targets.shape != outputs.shape:
            return "softmax"
        return "multi-hot" if targets.is_floating_point() else "bernoulli"
    if isinstance(outputs, (tuple, list)) and len(outputs) == 2:
        return "gaussian"
    if isinstance(outputs, Tensor) and outputs.ndim == 3 and outputs.shape[-1] > 1:
        if targets is None:
            raise ValueError(
                f"outputs {tuple(outputs.shape)} may be (B, S, C) or (B, C, S): pass the targets (B, S) too, or "
                'distribution="softmax" with the classes last. The names are "softmax", "bernoulli" and "gaussian"'
            )
        return "softmax"
    if isinstance(outputs, Tensor) and (outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1)):
        if not isinstance(targets, Tensor):
            raise ValueError(
                f"outputs {tuple(outputs.shape)} may be the logit of a binary classifier or a regression: pass the "
                'targets too, or distribution="bernoulli" or "gaussian" ("softmax" needs logits (B, C))'
            )
        binary = not targets.is_floating_point() or bool(((targets == 0) | (targets == 1)).all())
        return "bernoulli" if binary else "gaussian"
    shown = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(
        f"the memory term needs outputs that carry a distribution, got {shown}: pass logits (B, C) or (B, S, C) "
        "(flatten positions into S), or (mean, variance) for regression"
    )


def soft_or_multi_hot(targets: Float[Tensor, "b c"], soft: Tensor, several: Tensor) -> Tensor:
    """Scores (B,) for soft labels, or those for several labels at once, as the values of the targets are.

    Found without waiting for the device: NaN where they are neither, on a CPU ValueError.
    """
    is_soft = ((targets.sum(dim=1) - 1).abs() < _SUM_TO_ONE).all() & (targets >= 0).all()
    multi_hot = ((targets == 0) | (targets == 1)).all()
    if targets.is_cpu and not bool(is_soft | multi_hot):
        raise ValueError(
            'targets (B, C) are neither class probabilities, distribution="softmax", nor zeros and ones, "bernoulli": '
            'name the distribution, and for a regression pass outputs (mean, variance) or (mean, None), "gaussian"'
        )
    return torch.where(is_soft, soft, torch.where(multi_hot, several, torch.nan))


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Mean over the labels of log(1 + exp(-|z|)) + |z| / (1 + exp(|z|)), which neither overflows nor cancels."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)).abs().clamp(max=100)
    each = torch.exp(-z)
    each = torch.log1p(each) + z * each / (1 + each)
    return each if each.ndim == 1 else each.flatten(1).mean(dim=1)


def plogp(logits: Float[Tensor, "... c"]) -> Float[Tensor, "..."]:
    """Minus the entropy: sum of p log p. Row by row: a score must not depend on the batch, so nor on the ranks."""
    logs = torch.log_softmax(logits, -1, dtype=None if logits.element_size() > 2 else torch.float32)
    logs.clamp_(min=_LOWEST)  # an excluded class, at -inf, must give 0 * finite, not NaN
    return logs.exp().mul_(logs).sum(-1)


def token_mean(
    score: Callable[[Float[Tensor, "b s c"], Int[Tensor, "b s"] | None], Float[Tensor, "b s"]],
    logits: Tensor,
    targets: Any,
) -> Float[Tensor, " b"]:
    """Mean of a score over the tokens of each sample whose target is not -100; 0 for a sample without one.

    Args:
        score: of tokens, from their logits and ids; it is asked for a part of them at a time.
        logits: (B, S, C), or (B, C, S) where targets are (B, S).
        targets: (B, S) ids; anything else marks no token as ignored, and the score is given None.
    """
    if logits.ndim != 3:
        raise ValueError(f"outputs must be (B, C) or (B, S, C), got {tuple(logits.shape)}: flatten positions into S")
    if isinstance(targets, Tensor) and logits.shape[:2] != targets.shape == (len(logits), logits.shape[2]):
        logits = logits.transpose(1, 2)  # classes second, as torch's own cross_entropy takes them
    batch, tokens, classes = logits.shape
    ids = targets.to(logits.device) if isinstance(targets, Tensor) and not targets.is_floating_point() else None
    if ids is not None and ids.shape != logits.shape[:2]:
        raise ValueError(
            f"outputs {tuple(logits.shape)} and targets {tuple(targets.shape)} do not agree: "
            "outputs are (B, S, C) with the classes last, targets (B, S)"
        )
    rows = max(1, _CHUNK // classes)
    samples = max(1, min(batch, rows))
    span = max(1, rows // samples)
    # split, not flattened: logits[:, :-1], as language models shift them, would be copied whole
    groups = zip(logits.split(samples), [None] * batch if ids is None else ids.split(samples))
    each = torch.cat([torch.cat([score(*part) for part in _spans(*group, span)], dim=1) for group in groups])  # (b, s)
    if ids is None:
        return each.sum(dim=1) / tokens
    valid = ids != IGNORED
    # filled, not multiplied by 0: what stands at an ignored token may be anything
    return each.masked_fill(~valid, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def _spans(logits: Tensor, ids: Tensor | None, span: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    parts = logits.split(span, dim=1)
    return zip(parts, [None] * len(parts) if ids is None else ids.split(span, dim=1))


def gaussian_entropy(outputs: Any, batch: int) -> Tensor:
    """Entropy of (mean, variance), summed over dimensions; ValueError for anything else."""
    pair = (
        isinstance(outputs, (tuple, list)) and len(outputs) == 2 and all(isinstance(part, Tensor) for part in outputs)
    )
    if not pair or outputs[0].shape != outputs[1].shape or outputs[1].ndim not in (1, 2) or len(outputs[1]) != batch:
        if isinstance(outputs, Tensor) or (len(outputs) == 2 and outputs[1] is None):
            shown = "no variance. A regression without one has no memory term: use `loss` there"
        else:
            shown = str([tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in outputs])
        raise ValueError(
            f"a Gaussian's outputs are (mean, variance) of one shape, (B,) or (B, D) with B = {batch}, got {shown}. Of "
            "(logits, features) pass the logits alone"
        )
    variance = outputs[1].to(torch.promote_types(outputs[1].dtype, torch.float32))
    if variance.is_cpu and not bool((variance > 0).all()):  # on other devices the scores are checked when flushed
        raise ValueError(
            "the second of a pair of outputs must be the predicted variance, which is positive: exponentiate a "
            "log-variance, and of (logits, features) pass the logits alone"
        )
    each = 0.5 * torch.log(2 * math.pi * math.e * variance)
    return each if each.ndim == 1 else each.sum(dim=1)
