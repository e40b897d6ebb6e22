"""k-center: samples that cover the features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..selection import Selection
from .budget import Balance, check_features
from .chunks import MAX_MEMORY
from .covering import cover


def k_center(
    features: Float[Tensor, "n d"],
    *,
    keep: float,
    seed: int = 0,
    first: int | None = None,
    labels: Integer[Tensor, " n"] | None = None,
    balance: Balance = "none",
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """Keep a greedy k-center: repeatedly the sample that is farthest from all kept ones.

    Euclidean distance in float32; in float64 once float32 cannot resolve the distances, or where torch is allowed less
    than float32 (TF32). The result covers all samples with at most twice the smallest possible radius.

    Args:
        features: as for `moderate`.
        keep: as for `moderate`.
        seed: draws the first sample, and decides between equal distances.
        first: position of the first sample, instead of a random one; only with balance="none".
        labels: class ids; needed where balance is "class", else unused.
        balance: "none", or "class": each class is covered on its own, with the same number of places, as far as it has
            samples.
        max_memory: as for `moderate`.
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
    features = check_features("features", features)
    return cover(
        "k_center",
        features,
        features.shape[1],
        Euclidean,
        keep=keep,
        seed=seed,
        first=first,
        labels=labels,
        balance=balance,
        max_memory=max_memory,
    )


@dataclass
class Euclidean:
    """Squared Euclidean distance.

    Args:
        features: (N, D) of any floating-point type; read in chunks, never copied.
        rows: chunk size.
        members: positions of the rows that count, or None for all.
    """

    features: Tensor
    rows: int
    members: Tensor | None = None

    def __post_init__(self) -> None:
        size = len(self.features) if self.members is None else len(self.members)
        total = torch.zeros(self.features.shape[1], dtype=torch.float64, device=self.features.device)
        for start in range(0, size, self.rows):
            chunk = self._read(slice(start, start + self.rows)).double()
            total += chunk.sum(dim=0)
        # squares of centred rows are small: less is lost when they are subtracted
        self.mean = total / size
        self.scale = 0.0
        for start in range(0, size, self.rows):
            _, norm = self.left(slice(start, start + self.rows), torch.float32)
            self.scale = max(self.scale, float(norm.max()))
        if not self.scale <= torch.finfo(torch.float32).max / 4:
            raise ValueError("features are so large that their squares overflow float32: divide them by a constant")

    def left(self, at: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        chunk = self._read(at)
        if chunk.dtype != torch.float64:
            chunk = chunk.to(dtype)
        chunk = (chunk - self.mean.to(chunk.dtype)).to(dtype)
        return chunk, torch.linalg.vecdot(chunk, chunk)

    def right(self, left: Tensor) -> Tensor:
        return 2 * left

    def _read(self, at: Tensor | slice) -> Tensor:
        return self.features[at if self.members is None else self.members[at]]
