"""Test data for selectors from gradients, and a slow reference that stores every gradient."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dataprune import Key
from dataprune.coresets import budget


def problem(seed: int, size: int, classes: int = 3, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Errors, features and labels; every class occurs where there are enough samples."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(size) % classes
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64) * 2
    errors = logits.softmax(1)
    errors[torch.arange(size), labels] -= 1
    return errors, features, labels


def stored(errors: Tensor, features: Tensor, *, bias: bool = True) -> np.ndarray:
    """(N, C·(D+1)) gradients; without a bias (N, C·D)."""
    right = np.concatenate([features.numpy(), np.ones((len(features), int(bias)))], axis=1)
    return np.einsum("nc,nd->ncd", errors.numpy(), right).reshape(len(errors), -1)


def shares(labels: Tensor, count: int) -> dict[int, int]:
    """Places per class as the selectors give them with seed 0."""
    groups = budget.split(len(labels), count, labels, "proportional", Key(0, 0))
    return {int(labels[positions[0]]): places for positions, places in groups}
