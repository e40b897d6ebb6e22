"""One loss per sample from what a Hugging Face model returns, and what a criterion may read beside it.

Models average over the batch; this reads their logits (or log-probabilities) again. Nothing here imports transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...distributions import IGNORED

_CHUNK = 1 << 22  # logits softened at a time, as in `criteria`


@dataclass(frozen=True)
class SampleLosses:
    """The losses of a batch, sample by sample."""

    total: Float[Tensor, " b"]  # summed over the terms of a sample: its tokens, its labels, or the one that it has
    count: Int[Tensor, " b"]  # terms of a sample; 0 where no token is valid
    outputs: Any  # for the criterion: logits, or a stand-in that carries their entropy
    targets: Any  # for the criterion
    # whether a sample without terms may have some in another pass: the masks of a masked language model are drawn
    # anew, while an answer that was cut off stays cut off
    by_chance: bool = False

    def mean(self) -> Float[Tensor, " b"]:
        """The mean over a sample's terms; 0 where it has none, or if by chance the mean of the other samples."""
        means, some = self.total / self.count.clamp(min=1), self.count > 0
        return means.where(some, means.where(some, 0).sum() / some.sum().clamp(min=1)) if self.by_chance else means


def read(
    outputs: Any, labels: Any, *, shift: bool = False, smoothing: float = 0.0, problem: str | None = None
) -> SampleLosses | None:
    """The per-sample losses of a batch, attached to the graph where gradients are on; None where no logits fit.

    Classes: cross-entropy. Tokens: the sum of cross-entropies over labels that are not -100. One number (or a row of
    numbers, where `problem` says so): the squared error. Several labels at once: binary cross-entropy.

    Args:
        outputs: of the model: with `logits`, a tuple (loss, logits), or TRL's fused head with `log_probs`.
        labels: (B,) or (B, S) class ids, or floating-point targets.
        shift: whether the logits at a token predict the next one, as in causal language models.
        smoothing: of the labels, as in `TrainingArguments.label_smoothing_factor`.
        problem: the model's `config.problem_type`; by the shapes where None.
    """
    if _field(outputs, "log_probs") is not None:
        return _fused(outputs)
    logits = _field(outputs, "logits")
    if isinstance(outputs, tuple) and logits is None and len(outputs) > 1:
        logits = outputs[1]
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor) or not logits.is_floating_point():
        return None
    labels = labels.to(logits.device)
    single = logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1)
    if problem == "regression" or (single and problem is None):
        return _squared(logits, labels)
    if problem == "multi_label_classification" or (problem is None and labels.is_floating_point()):
        return _binary(logits, labels, certain=problem is not None)
    if labels.is_floating_point() or logits.ndim not in (2, 3) or labels.shape != logits.shape[:-1]:
        return None
    if logits.ndim == 2:
        losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
        return SampleLosses(losses, (labels != IGNORED).long(), logits.detach(), labels)
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = token_losses(logits, labels, smoothing)
    count = (labels != IGNORED).sum(dim=1)
    targets = labels if shift else labels.where(count[:, None] > 0, 0)  # then the entropy is that of all its tokens
    return SampleLosses(losses.sum(dim=1), count, logits.detach(), targets, by_chance=not shift)


def token_losses(
    logits: Float[Tensor, "b s c"], labels: Int[Tensor, "b s"], smoothing: float = 0.0
) -> Float[Tensor, "b s"]:
    """Cross-entropy of every token, 0 where its label is -100; without gradients no second tensor of logits exists."""
    batch, _, classes = logits.shape
    rows = max(1, _CHUNK // classes)
    samples = max(1, min(batch, rows))
    span = max(1, rows // samples)

    def piece(part: Tensor, target: Tensor) -> Tensor:
        flat, ids = part.flatten(0, 1).float(), target.flatten()
        losses = F.cross_entropy(flat, ids, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing)
        return losses.view(target.shape)

    # split, not flattened: logits[:, :-1] would be copied whole
    groups = zip(logits.split(samples), labels.split(samples))
    return torch.cat(
        [torch.cat([piece(*both) for both in zip(x.split(span, 1), y.split(span, 1))], dim=1) for x, y in groups]
    )


def shaped_by(entropy: Float[Tensor, " b"]) -> tuple[Tensor, Tensor]:
    """Outputs for models that give the entropy without logits: a Gaussian that has it, as criteria read it."""
    entropy = entropy.detach().float()
    return entropy, torch.exp(2 * entropy - math.log(2 * math.pi * math.e))


def _field(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def _squared(logits: Tensor, labels: Tensor) -> SampleLosses | None:
    batch = len(logits)
    if logits.numel() != labels.numel():
        return None
    error = (logits.reshape(batch, -1).float() - labels.reshape(batch, -1).float()).square()
    count = torch.full((batch,), error.shape[1], device=logits.device)
    return SampleLosses(error.sum(dim=1), count, (logits.detach(), None), labels)  # without a predicted variance


def _binary(logits: Tensor, labels: Tensor, *, certain: bool) -> SampleLosses | None:
    if logits.ndim != 2 or logits.shape != labels.shape:
        return None
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    count = torch.full((len(logits),), logits.shape[1], device=logits.device)
    targets = labels.round().long() if certain else labels  # whole numbers tell a criterion that labels are independent
    return SampleLosses(losses.sum(dim=1), count, logits.detach(), targets)


def _fused(outputs: Any) -> SampleLosses:
    """TRL's heads give log-probability and entropy of each token, 0 where its label is -100, and no logits."""
    log_probs, valid, entropy = (_field(outputs, name) for name in ("log_probs", "label_mask", "entropy"))
    count = valid.sum(dim=1)
    carried = None if entropy is None else shaped_by(entropy.float().sum(dim=1) / count.clamp(min=1))
    return SampleLosses(-log_probs.float().sum(dim=1), count, carried, None)


@contextmanager
def outputs_of(model: torch.nn.Module) -> Iterator[list[Any]]:
    """What the model returns while this is open."""
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, arguments, outputs: seen.append(outputs))
    try:
        yield seen
    finally:
        handle.remove()
