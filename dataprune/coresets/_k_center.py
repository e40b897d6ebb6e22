"""k-center: samples that cover the features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..selection import Selection
from . import budget
from .covering import Space, cover


def k_center(
    features: Float[Tensor, "n d"],
    *,
    keep: float,
    seed: int = 0,
    first: int | None = None,
    labels: Integer[Tensor, " n"] | None = None,
    balance: budget.Balance = "none",
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep a greedy k-center: repeatedly the sample that is farthest from all kept ones.

    Euclidean distance in float32; in float64 once float32 cannot resolve the distances, or where torch is allowed less
    than float32 (TF32). The result covers all samples with at most twice the smallest possible radius.

    Args:
        seed: draws the first sample, and decides between equal distances.
        balance: "none", or "class": each class is covered on its own, with the same number of places, as far as it has
            samples.
    Returns:
        max(1, floor(keep * N + 0.5)) positions with weight one, in the order in which they were chosen (class by class
        under balance="class"): the first k of them are the k-center of k samples.
    Raises:
        ValueError: as for `moderate`, or if first is no position.
    Example:
        >>> k_center(torch.tensor([[0.0], [1.0], [4.0], [10.0]]), keep=0.75, first=0).index
        tensor([0, 3, 2])

    Source: Sener and Savarese 2018, arXiv:1708.00489, Algorithm 1. Differs: one random first sample where the paper
        starts from a labelled pool; without its mixed-integer refinement.
    """
    features = budget.check_features("features", features)
    width = features.shape[1]
    return cover("k_center", features, width, Euclidean, keep, seed, first, labels, balance, max_memory)


@dataclass
class Euclidean(Space):
    """Squared Euclidean distance of features."""

    def __post_init__(self) -> None:
        size = len(self.values) if self.members is None else len(self.members)
        parts = [slice(start, start + self.rows) for start in range(0, size, self.rows)]
        total = torch.zeros(self.values.shape[1], dtype=torch.float64, device=self.values.device)
        for part in parts:
            total += self.read(part).double().sum(dim=0)
        # squares of centred rows are small: less is lost when they are subtracted
        self.mean = total / size
        self.scale = max(float(self.left(part, torch.float32)[1].max()) for part in parts)
        if not self.scale <= torch.finfo(torch.float32).max / 4:
            raise ValueError("features are so large that their squares overflow float32: divide them by a constant")

    def left(self, at: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        chunk = self.read(at)
        if chunk.dtype != torch.float64:
            chunk = chunk.to(dtype)
        chunk = (chunk - self.mean.to(chunk.dtype)).to(dtype)
        return chunk, torch.linalg.vecdot(chunk, chunk)

    def right(self, left: Tensor) -> Tensor:
        return 2 * left
