"""A model that trains in a millisecond and has what pruning meets: a convolution, batch norm, linear layers, biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=5e-4),
    "nesterov": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01, weight_decay=1e-2),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=1e-3, momentum=0.9, weight_decay=0.01),
}


class Net(nn.Module):
    def __init__(self, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(24, 12)
        self.fc = nn.Linear(12, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.norm(self.conv(x)).relu(), 4)
        return self.fc(self.hidden(x.flatten(1)).relu())


def small(seed: int = 0, classes: int = 4) -> Net:
    """For images of (1, 8, 8)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(classes)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, after: Callable[[], object] | None = None
) -> None:
    """So many steps on the same random batches every time; `after` is called at the end of each."""
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(steps):
        x = torch.randn(16, 1, 8, 8, generator=generator)
        y = torch.randint(4, (16,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if after is not None:
            after()


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Effective weights of the prunable layers, computed from the state and not by the library."""
    arrays = {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            state = layer.state_dict()
            value = state["weight_orig"] * state["weight_mask"] if "weight_orig" in state else state["weight"]
            arrays[f"{name}.weight"] = value.numpy().copy()
    return arrays
