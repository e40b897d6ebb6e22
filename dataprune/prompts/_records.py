"""What was rolled out: rewards are checked as they come, and summed up prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import WHOLE
from ..distributed import Part
from ..errors import PlanError

_ALIKE = 16  # prompts with equal, mixed rewards on all ranks: by chance less than once in 1e6 exchanges


class Groups(NamedTuple):
    """The rewards of prompts since the last proposal, of all ranks; a prompt is in it once.

    Attributes:
        ids: prompts, ascending.
        count: rollouts that have a reward; 0 where all failed.
        total: sum of the rewards.
        low: lowest reward, infinite where all failed.
        high: highest reward, negative infinite where all failed.
    """

    ids: Int[Tensor, " k"]
    count: Float[Tensor, " k"]  # type: ignore[assignment]  # hides tuple.count, for which there is no use
    total: Float[Tensor, " k"]
    low: Float[Tensor, " k"]
    high: Float[Tensor, " k"]

    @property
    def varied(self) -> Bool[Tensor, " k"]:
        """Whether rewards differ, so that there is an advantage."""
        return self.high > self.low

    @property
    def easy(self) -> Bool[Tensor, " k"]:
        """Whether all rewards are equal, and at least one half."""
        return (self.count > 0) & ~self.varied & (self.low >= 0.5)

    @property
    def hard(self) -> Bool[Tensor, " k"]:
        """Whether all rewards are equal, and below one half."""
        return (self.count > 0) & ~self.varied & (self.low < 0.5)


def merged(parts: Sequence[Part]) -> Groups:
    """One group a prompt from what all ranks recorded, in parts or whole.

    Raises:
        PlanError: if every rank recorded the same rewards.
    """
    _check_different(parts)
    ids, place = torch.cat([part.index for part in parts]).unique(return_inverse=True)
    rows = torch.cat([part.score.reshape(len(part.index), 4) for part in parts])
    sums = torch.zeros(len(ids), 2).index_add_(0, place, rows[:, :2])
    low = torch.full((len(ids),), torch.inf).scatter_reduce_(0, place, rows[:, 2], "amin")
    high = torch.full((len(ids),), -torch.inf).scatter_reduce_(0, place, rows[:, 3], "amax")
    return Groups(ids, sums[:, 0], sums[:, 1], low, high)


def _check_different(parts: Sequence[Part]) -> None:
    first, *others = parts
    mixed = int((first.score[:, 3] > first.score[:, 2]).sum()) if len(first.index) else 0
    alike = (torch.equal(one.index, first.index) and torch.equal(one.score, first.score) for one in others)
    if others and mixed >= _ALIKE and all(alike):
        raise PlanError(
            f"all {len(parts)} ranks recorded the same rewards of the same prompts, which would count every rollout "
            f"{len(parts)} times: each rank records what it rolled out itself; where all ranks know all rewards, "
            "record them on one rank alone"
        )


def checked_ids(ids: Any, size: int) -> Int[Tensor, " n"]:
    """Prompts as int64 on the CPU; raise unless they are whole numbers in [0, size), each once."""
    index = torch.as_tensor(ids).cpu()
    if index.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if index.dtype not in WHOLE or index.ndim != 1:
        raise TypeError(f"ids must be (n,) whole numbers, got {index.dtype} {tuple(index.shape)}")
    if int(index.min()) < 0 or int(index.max()) >= size:
        raise IndexError(
            f"ids hold {int(index.min())} to {int(index.max())}, but there are prompts 0 to {size - 1}: pass the ids "
            "that `propose` returned; for a set that grows call grow(size) first"
        )
    unique, times = index.unique(return_counts=True)
    if len(unique) < len(index):
        again = int(unique[times > 1][0])
        raise ValueError(
            f"prompt {again} is {int(times.max())} times in one record: give all its rewards in one row, a prompt once"
        )
    return index.long()


def summed(ids: Int[Tensor, " n"], rewards: Any) -> Float[Tensor, "n 4"]:
    """Count, sum, lowest and highest reward of every prompt: what a rank keeps until the next exchange.

    Args:
        ids: prompts.
        rewards: (n, G), or n groups of any size.
    Raises:
        ValueError: unless there is a group for each prompt, and all rewards are in [0, 1].
    """
    values, count = _flat(rewards, ids)
    owner = torch.arange(len(ids)).repeat_interleave(count)
    _check_range(values, ids[owner])
    low, high = torch.full((len(ids),), torch.inf), torch.full((len(ids),), -torch.inf)
    low.scatter_reduce_(0, owner, values, "amin")
    high.scatter_reduce_(0, owner, values, "amax")
    return torch.stack([count.float(), torch.zeros(len(ids)).index_add_(0, owner, values), low, high], dim=1)


def _flat(rewards: Any, ids: Int[Tensor, " n"]) -> tuple[Float[Tensor, " m"], Int[Tensor, " n"]]:
    """All rewards in a row, and how many each prompt has."""
    if not isinstance(rewards, (list, tuple)):
        rewards = torch.as_tensor(rewards).detach().cpu().float()
        if rewards.ndim == 2 and len(rewards) == len(ids):
            return rewards.flatten(), torch.full((len(ids),), rewards.shape[1])
    groups = [torch.as_tensor(group).detach().cpu().float() for group in rewards]
    if len(groups) != len(ids):
        raise ValueError(f"{len(ids)} prompts have {len(groups)} groups of rewards: one row a prompt is needed")
    for prompt, group in zip(ids.tolist(), groups, strict=True):
        if group.ndim != 1:
            raise ValueError(
                "rewards must be (n, G), or a list of n 1-D tensors where groups differ in size; the rewards of prompt "
                f"{prompt} have the shape {tuple(group.shape)}"
            )
    return torch.cat([*groups, torch.zeros(0)]), torch.tensor([len(group) for group in groups], dtype=torch.int64)


def _check_range(values: Float[Tensor, " m"], prompts: Int[Tensor, " m"]) -> None:
    if len(nan := prompts[values.isnan()]):
        raise ValueError(
            f"rewards of prompt {int(nan[0])} are NaN: leave out rollouts that could not be scored (a list of 1-D "
            "tensors takes groups of different sizes; an empty one says that the whole group failed)"
        )
    if len(values) and not (float(values.min()) >= 0 and float(values.max()) <= 1):
        prompt = int(prompts[(values < 0) | (values > 1)][0])
        raise ValueError(
            f"rewards are between {float(values.min()):g} and {float(values.max()):g} (outside [0, 1] is one of prompt "
            f"{prompt}): record (reward - lowest) / (highest - lowest) with the lowest and highest that your reward "
            "functions can give, as (reward + 1) / 2 for -1 and 1. What advantages are computed from may stay as it is"
        )
