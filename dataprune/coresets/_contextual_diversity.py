"""Contextual diversity: samples that cover the predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ..errors import check_known
from ..selection import Selection
from . import budget
from ._k_center import Space, cover


def contextual_diversity(
    outputs: Float[Tensor, "n c"] | budget.Array,
    *,
    keep: float,
    seed: int = 0,
    first: int | None = None,
    chosen: Selection | Int[Tensor, " m"] | budget.Array | None = None,
    labels: Integer[Tensor, " n"] | budget.Array | None = None,
    balance: budget.Balance = "none",
    space: Literal["auto", "logits", "probabilities"] = "auto",
    floor: float = 1e-12,
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep a greedy k-center under the symmetric divergence KL(p‖q) + KL(q‖p) of class probabilities.

    The result is that of `k_center`, and so are the arguments `seed`, `first`, `chosen` and `balance`.

    Args:
        outputs: logits or probabilities, one row per sample, of any floating-point type, on any device.
        space: kind of outputs; "auto" takes them as probabilities where no number is negative and every row sums to
            one (within 1 %), else as logits.
        floor: probabilities are raised to this, so that the divergence is finite; in (0, 1).
    Raises:
        ValueError: if floor is out of range, or outputs are not the probabilities that `space` says.
    Example:
        >>> contextual_diversity(torch.tensor([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1]]), keep=0.6, first=0).index
        tensor([0, 2])

    Source: Agarwal et al. 2020, arXiv:2008.05723, section 3.2. Differs: one distribution per sample, as in
        classification; the paper mixes those of all pixels or boxes. Probabilities are clamped.
    """
    outputs = budget.check_features("outputs", outputs)
    check_known(space, ("auto", "logits", "probabilities"), what="space")
    if not 0 < floor < 1:
        raise ValueError(f"floor is the smallest probability, in (0, 1), got {floor!r}")
    normalised = space != "logits" and _are_probabilities(outputs)
    if space == "probabilities" and not normalised:
        raise ValueError('outputs are no probabilities (negative, or rows that do not sum to one): space="logits"?')
    width, make = 2 * outputs.shape[1], partial(SymmetricDivergence, logits=not normalised, floor=floor)
    return cover("contextual_diversity", outputs, width, make, keep, seed, first, chosen, labels, balance, max_memory)


@dataclass
class SymmetricDivergence(Space):
    """KL(p‖q) + KL(q‖p) of class probabilities that are at least `floor`, from logits or from probabilities."""

    logits: bool = True
    floor: float = 1e-12

    def __post_init__(self) -> None:
        self.scale = -math.log(self.floor)

    def left(self, at: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        chunk = self.read(at).to(dtype)
        if self.logits:
            log = chunk.log_softmax(dim=1).clamp(min=math.log(self.floor))
            p = log.exp()
        else:
            p = chunk.clamp(min=self.floor)
            log = p.log()
        return torch.cat([p, log], dim=1), torch.linalg.vecdot(p, log)

    def right(self, left: Tensor) -> Tensor:
        p, log = left.chunk(2, dim=-1)
        return torch.cat([log, p], dim=-1)


def _are_probabilities(outputs: Tensor) -> bool:
    rows = max(1, (1 << 22) // outputs.shape[1])
    return all(
        bool((chunk >= 0).all()) and bool(((chunk.sum(dim=1, dtype=torch.float64) - 1).abs() < 1e-2).all())
        for chunk in outputs.split(rows)
    )
