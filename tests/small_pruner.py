"""A pruner of 50 samples that tests of the core share, and ways to record and train with it."""

from __future__ import annotations

import io
from typing import Any

import torch
from methods_under_test import signals

from dataprune import Pruner, criteria, policies, schedules

SIZE = 50


def pruner(size: int = SIZE, *, epochs: int = 6, keep: float = 0.4, policy: Any = None, **options: Any) -> Pruner:
    policy = policies.top_k() if policy is None else policy
    schedule = options.pop("schedule", schedules.window(keep, 1, epochs))
    return Pruner(size, options.pop("criterion", criteria.loss), policy, schedule, epochs=epochs, **options)


def record(p: Pruner, index: list[int], losses: list[float]) -> None:
    p.update(torch.tensor(index), torch.tensor(losses))


def train(p: Pruner, epoch: int) -> None:
    for index in p.batches(epoch, 8, drop_last=False):
        p.update(index, *signals(epoch, index))


def reloaded(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
