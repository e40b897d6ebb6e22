"""Choose rows whose last-layer gradients differ."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import criteria
from .chooser import OWN, Chooser


def divbs(keep: float, *, seed: int = 0) -> Chooser:
    """Rows whose last-layer gradients differ: each is drawn by how much of the mean gradient it still explains.

    The outputs are the logits (B, C), whose gradients are those of the last layer's bias, or (logits, features), for
    those of its weights and bias; the targets are class ids, the loss cross-entropy.

    Args:
        keep: fraction of a super-batch that is trained, in (0, 1].
        seed: decides the draws.
    Source: Hong et al. 2024, arXiv:2406.04872, greedy selection; drawn in proportion to |<g, residual>|, as in their
        code. Differs: from the products of gradients alone, so that no (B, C * D) matrix exists; the model is not put
        into evaluation mode; rows are drawn at random where the chosen ones already span all gradients.
    """
    return Diverse(keep, seed=seed)


class Diverse(Chooser):
    """A chooser of rows whose gradients differ; see `divbs`."""

    def __init__(self, keep: float, *, seed: int):
        super().__init__(criteria.loss, keep, seed=seed)

    def __repr__(self) -> str:
        return f"Diverse(keep={self.keep}, seed={self.seed})"

    def _rows(self, score: Tensor, count: int, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        products = _gradient_products(outputs, targets)
        self._check(~products.isfinite().all(1))
        remaining = products.mean(1)  # products of all gradients with the residual of their mean
        columns = products.new_empty(count, len(products))  # of the partial Cholesky decomposition
        taken = torch.zeros_like(remaining, dtype=torch.bool)
        rows = torch.empty(count, dtype=torch.int64, device=products.device)
        smallest = torch.finfo(products.dtype).tiny
        draws = OWN + torch.arange(count, device=products.device)[:, None]
        noise = -(-self._uniform(remaining, draws).log()).log()
        for step in range(count):
            # drawn in proportion to |product|, by the greatest of noisy logarithms
            key = remaining.abs().clamp(min=smallest).log() + noise[step]
            row = key.masked_fill(taken, -torch.inf).argmax(0, keepdim=True)  # (1,): a number would wait for the device
            column = products[row][0] - (columns[:step, row] * columns[:step]).sum(0)
            norm = column[row].clamp(min=0).sqrt()
            new = norm > 1e-4 * products.diagonal()[row].sqrt()  # else those chosen span it, and it adds no direction
            column = torch.where(new, column / norm.clamp(min=smallest), 0.0)
            remaining = remaining - column * (remaining[row] / norm.clamp(min=smallest))
            columns[step], rows[step : step + 1] = column, row
            taken[row] = True
        return rows.sort().values, torch.ones_like(score[:count])


def _gradient_products(outputs: Any, targets: Any) -> Float[Tensor, "b b"]:
    """Products of all pairs of last-layer gradients, from logits, or (logits, features)."""
    pair = isinstance(outputs, (tuple, list)) and len(outputs) == 2
    logits, features = outputs if pair else (outputs, None)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not isinstance(targets, Tensor) or targets.ndim != 1:
        raise ValueError(
            "divbs reads logits (B, C), or (logits, features), and class ids (B,): choose(losses, logits, y)"
        )
    if features is not None and (
        not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(logits)
    ):
        raise ValueError(f"features must be (B, D) with B = {len(logits)}, the input of the last layer")
    error = logits.float().softmax(1)
    error[torch.arange(len(error), device=error.device), targets.to(error.device)] -= 1
    products = error @ error.T
    return products if features is None else products * (features.float() @ features.float().T + 1)
