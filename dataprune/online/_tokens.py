"""Mask the loss of tokens from which little is learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..checks import check_floating
from ..distributions import IGNORED
from ..hashing import Key
from ..schedules import check_fraction
from ._excess import Excess, token_losses
from .chooser import FORWARD


class TokenChooser:
    """Chooses which tokens of a batch carry loss; see `tokens`."""

    def __init__(self, keep: float, *, reference: nn.Module | None, seed: int):
        check_fraction("keep", keep)
        self._excess = None if reference is None else Excess(reference, keep, losses=token_losses, cost=0.0, seed=seed)
        self.keep, self.seed = keep, seed
        self._step, self._rows = 0, 0
        self._kept: Tensor | int = 0
        self._valid: Tensor | int = 0

    @contextmanager
    def reading(self, model: nn.Module) -> Iterator[None]:
        """Context manager for the pass that trains: the reference is run on the same inputs, without gradients."""
        with ExitStack() as stack:
            if self._excess is not None:
                self._excess._watch(stack, model)
            yield

    def choose(
        self, losses: Float[Tensor, "b s"], outputs: Any = None, targets: Int[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b s"]:
        """Choose the tokens that carry loss: `loss = (weight * losses).sum() / weight.sum()`.

        Args:
            losses: a loss for every token.
            outputs: unused.
            targets: ids of the tokens that are predicted; -100 marks those that carry no loss.
        Returns:
            weight: 1 for the `keep` of the valid tokens of this batch with the highest scores, else 0.
        Raises:
            TypeError: if losses are no floating-point tensor.
            ValueError: if losses are not (B, S), or targets have another shape.
        """
        check_floating("losses", losses, ", a loss for every token")
        if losses.ndim != 2 or (targets is not None and targets.shape != losses.shape):
            shown = None if targets is None else tuple(targets.shape)
            raise ValueError(
                f"losses and targets must both be (B, S), a token each, got {tuple(losses.shape)}, {shown}"
            )
        with torch.no_grad():
            score = losses.detach().float()
            valid = torch.ones_like(score, dtype=torch.bool) if targets is None else targets != IGNORED
            if self._excess is not None:
                if targets is None:
                    raise ValueError("the reference's losses need the targets too: choose(losses, logits, targets)")
                score = score - self._excess.reference_losses(score, targets)
            flat = score.masked_fill(~valid, -torch.inf).flatten()
            order = Key(self.seed, self._step).hash(torch.arange(len(flat), device=flat.device)).argsort()
            order = order[flat[order].argsort(descending=True, stable=True)]
            count = (self.keep * valid.sum() + 0.5).floor().clamp(min=1)
            weight = torch.zeros_like(flat)
            weight[order] = (torch.arange(len(flat), device=flat.device) < count).float()
            weight = weight.view_as(score) * valid
        self._step, self._rows = self._step + 1, self._rows + len(losses)
        self._kept, self._valid = self._kept + weight.sum(), self._valid + valid.sum()
        return weight

    def stats(self) -> dict[str, float]:
        """`tokens` that could carry loss, those `kept`, and `flops` in units of a training row: no row is saved."""
        reference = 0 if self._excess is None else self._rows * FORWARD
        return {"tokens": int(self._valid), "kept": int(self._kept), "flops": self._rows + reference}


def tokens(keep: float, *, reference: nn.Module | None = None, seed: int = 0) -> TokenChooser:
    """Mask the loss of all but the tokens with the highest loss above a reference model's. It saves no compute.

        chooser = dataprune.online.tokens(0.6, reference=reference)
        with chooser.reading(model):
            logits = model(ids).logits[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        weight = chooser.choose(losses, logits, ids[:, 1:])
        loss = (weight * losses).sum() / weight.sum()

    Every token is still in the forward and the backward pass, and the reference's forward pass comes on top.

    Args:
        keep: fraction of a batch's valid tokens that carry loss, in (0, 1].
        reference: a language model; without it the highest losses are kept.
        seed: decides between equal scores.
    Source: Rho-1, Lin et al. 2024, arXiv:2404.07965, Eq. 3 and 4. Differs: without a reference.
    """
    return TokenChooser(keep, reference=reference, seed=seed)
