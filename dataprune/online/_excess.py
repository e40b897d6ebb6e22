"""Choose by the loss above that of a reference model."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import criteria
from ..checks import check_index
from ..distributions import IGNORED
from ..errors import UsageError
from ..modules import inference, logits_of
from .chooser import Chooser, check_ids

Losses = Callable[[Tensor, Any], Tensor]  # (outputs, targets) -> (B,)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Float[Tensor, " b"]:
    """Cross-entropy of classes (B, C), or its mean over the tokens of a row (B, S, C) whose target is not -100."""
    if outputs.ndim == 2:
        return F.cross_entropy(outputs.float(), targets, reduction="none")
    valid = targets != IGNORED
    return token_losses(outputs, targets).sum(1) / valid.sum(1).clamp(min=1)


def excess(
    keep: float,
    *,
    reference: nn.Module | Tensor,
    losses: Losses = cross_entropy,
    cost: float = 0.0,
    seed: int = 0,
) -> Chooser:
    """The highest loss above that of a reference model, which was trained on other, cleaner or all data.

    Args:
        keep: fraction of a super-batch that is trained, in (0, 1].
        reference: a model, which is run in evaluation mode on what the model sees inside `scoring`, and counted; or
            (N,) losses of all samples, of which `choose(..., ids=index)` says which rows have which.
        losses: one loss for every row from the reference's logits and the targets; cross-entropy by default.
        cost: of making the reference, in training rows; counted in `stats`.
        seed: decides between equal scores.
    Source: RHO-LOSS, Mindermann et al. 2022, arXiv:2206.07137, Eq. 3; "learnability" in JEST, Evans et al. 2024,
        arXiv:2406.17711, which draws sub-batches jointly. Differs from the first: nothing.
    """
    return Excess(reference, keep, losses=losses, cost=cost, seed=seed)


class Excess(Chooser):
    """A chooser by the loss above that of a reference model; see `excess`."""

    def __init__(self, reference: nn.Module | Tensor, keep: float, *, losses: Losses, cost: float, seed: int):
        if not isinstance(reference, nn.Module):
            if not isinstance(reference, Tensor) or not reference.is_floating_point() or reference.ndim != 1:
                raise TypeError(
                    "reference is a model, or a floating-point tensor (N,) with a loss for each sample, as "
                    "dynamics.load_scores(path).scores['loss'] is"
                )
            if not bool(reference.isfinite().all()):
                raise ValueError("reference losses must be finite: some are NaN or infinite")
        if not 0 <= cost < math.inf:
            raise ValueError(f"cost is that of the reference, in training rows, at least 0, got {cost}")
        super().__init__(criteria.loss, keep, seed=seed)
        self.reference, self.losses, self.cost = reference, losses, cost
        self._outputs: list[Any] = []  # of the reference, for the rows that are being scored

    def __repr__(self) -> str:
        return f"Excess(keep={self.keep}, cost={self.cost}, seed={self.seed})"

    def _watch(self, stack: ExitStack, model: nn.Module) -> None:
        reference = self.reference
        if isinstance(reference, nn.Module):
            self._outputs.clear()

            def run(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
                with inference(reference):
                    self._outputs.append(reference(*inputs, **named))

            stack.callback(model.register_forward_hook(run, with_kwargs=True).remove)

    def _score(self, losses: Tensor, outputs: Any, targets: Any, ids: Any) -> Tensor:
        return losses - self.reference_losses(losses, targets, ids)

    def reference_losses(self, losses: Tensor, targets: Any, ids: Any = None) -> Tensor:
        """Losses of the reference in the shape of the model's."""
        if isinstance(self.reference, nn.Module):
            if not self._outputs:
                raise UsageError(
                    "the reference has not seen this batch: call the model inside the chooser's context manager"
                )
            logits = torch.cat([logits_of(output, (2, 3)) for output in self._outputs])
            self._outputs.clear()
            self._forwards += len(losses)
            reference = self.losses(logits, targets)
        else:
            index = check_ids(ids, len(losses), "a table of reference losses is read by sample: choose(..., ids=index)")
            check_index(index, len(self.reference)) if index.is_cpu else None
            self.reference = self.reference.to(losses.device)
            reference = self.reference[index.to(losses.device)]
        if reference.shape != losses.shape:
            raise ValueError(f"the reference gives losses {tuple(reference.shape)}, the model {tuple(losses.shape)}")
        return reference

    def stats(self) -> dict[str, float]:
        stats = super().stats()
        return stats | {"flops": stats["flops"] + self.cost}


def token_losses(logits: Float[Tensor, "b s c"], targets: Int[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    logits = logits[:, : targets.shape[1]]  # the last logits of a causal model predict what is not there
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view(targets.shape)
