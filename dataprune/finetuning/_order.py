"""The order by a score."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..hashing import bits


def descending(scores: Float[Tensor, " n"], seed: int = 0) -> Int[Tensor, " n"]:
    """Positions by falling score; equal scores in random order, NaN last.

    Args:
        scores: one per row, such as the length of its response.
        seed: decides between equal scores.
    Returns:
        A permutation of 0 to N - 1; its first K are the K rows to keep.
    Example:
        >>> descending(torch.tensor([0.1, float("nan"), 0.7]))
        tensor([2, 0, 1])
    """
    values = scores.detach().cpu().numpy()
    return torch.from_numpy(np.lexsort((ties(len(values), seed), -values)))  # numpy sorts NaN last


def ties(size: int, seed: int) -> np.ndarray:
    """Random numbers of all rows, which decide between equal scores."""
    return bits(seed, 0, torch.arange(size)).numpy()
