"""The only module that talks to torch.distributed. Without a process group it is one rank, alone."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from .errors import PlanError


class Part(NamedTuple):
    """What one rank brought to an exchange."""

    header: list[int]
    index: Int[Tensor, " k"]  # type: ignore[assignment]  # hides tuple.index, which a part has no use for
    score: Float[Tensor, "k *values"]


def rank() -> int:
    """This process among all, 0 where there is no process group."""
    return dist.get_rank() if _connected() else 0


def world_size() -> int:
    """How many processes train together, 1 where there is no process group."""
    return dist.get_world_size() if _connected() else 1


def local_rank() -> int:
    """This process among those on its machine, as torchrun says, else 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def connect(device: torch.device) -> bool:
    """Join the processes that torchrun started; whether there were any."""
    if "WORLD_SIZE" not in os.environ or _connected():
        return False
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True


def disconnect() -> None:
    """Leave the process group."""
    if _connected():
        dist.destroy_process_group()


def agreed(value: bool) -> bool:
    """What rank 0 says. Collective."""
    if world_size() == 1:
        return value
    flag = torch.tensor(int(value), device=_device())
    dist.broadcast(flag, 0)
    return bool(flag)


def barrier() -> None:
    """Wait for all ranks. Collective."""
    if world_size() > 1:
        dist.barrier()


def exchange(header: list[int], index: Int[Tensor, " k"], score: Float[Tensor, "k *values"]) -> list[Part]:
    """Give every rank what all ranks bring. Collective: every rank must call it, as often as the others.

    Indices and scores travel apart, as int64 and float32: one float tensor for both would round large indices.

    Args:
        header: integers of which every rank brings equally many.
        index: positions, int64 on the CPU; ranks may bring different numbers of them.
        score: their scores, float32 on the CPU; one per position, or a row of equally many on all ranks that bring any.
    Returns:
        One part per rank, in rank order; on the CPU.
    """
    if world_size() == 1:
        return [Part(header, index, score)]
    device = _device()
    try:
        sizes = [math.prod(score.shape[1:]), len(index)]
        heads = _gather(torch.tensor([*header, *sizes], dtype=torch.int64, device=device))
    except RuntimeError as error:
        if "timed out" not in str(error).lower() and "timeout" not in str(error).lower():
            raise
        raise PlanError(
            f"rank {rank()} waited for the other ranks in vain: pruner.select, pruner.sync, prompts.propose, and loops "
            "over a pruned loader where an epoch begins, are collective. Call them on every rank, not under "
            "`if rank == 0`"
        ) from error
    lengths = [int(head[-1]) for head in heads]
    longest, widest = max(lengths), max(int(head[-2]) for head in heads)
    if score.shape[1:].numel() < widest:  # rows whose length this rank, without records, does not know
        score = score.new_zeros(0, widest)
    indices = _gather(_padded(index, longest).to(device))
    scores = _gather(_padded(score, longest).to(device))
    return [
        Part(head[:-2].tolist(), one[:length].cpu(), other[:length].cpu())
        for head, one, other, length in zip(heads, indices, scores, lengths, strict=True)
    ]


def total(array: np.ndarray) -> np.ndarray:
    """The sum over all ranks of an array of one shape and dtype. Collective: every rank must call it."""
    if world_size() == 1:
        return array
    summed = torch.from_numpy(array.copy()).to(_device())
    dist.all_reduce(summed)
    return summed.cpu().numpy()


def spread(tensor: Tensor, source: int) -> Tensor:
    """What rank `source` holds in a tensor of this shape and dtype; on the given tensor's device. Collective."""
    if world_size() == 1:
        return tensor
    moved = tensor.to(_device()).contiguous()
    dist.broadcast(moved, source)
    return moved.to(tensor.device)


def gathered(tensor: Float[Tensor, "b *shape"]) -> Float[Tensor, "rb *shape"]:
    """The rows of all ranks, in rank order, for a loss that compares across ranks. Collective, forward and backward.

    The gradient that comes back to a rank's rows is the sum of those that all ranks compute for them.

    Args:
        tensor: equally many rows on every rank, of one dtype.
    """
    return tensor if world_size() == 1 else _Gathered.apply(tensor)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return torch.cat(_gather(tensor.to(_device()).contiguous())).to(tensor.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.to(_device(), copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()].to(gradient.device)


def _connected() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    """Where the backend wants its tensors: NCCL only moves those on a GPU."""
    if "gloo" in str(dist.get_backend()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts


def _padded(tensor: Tensor, length: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])
