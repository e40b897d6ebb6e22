"""The device, processes, threads and random streams of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ... import distributed
from ...errors import UsageError


def choose_device(name: str | None) -> torch.device:
    """Choose the device of that name; without one this rank's GPU where there is one, else the CPU."""
    try:
        if name is None:
            local = distributed.local_rank() % max(torch.cuda.device_count(), 1)
            return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"there is no device {name!r} here: {str(error).splitlines()[0]}") from error
    if device == torch.device("cuda"):
        device = torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
    return device


@contextmanager
def connected(device: torch.device) -> Iterator[None]:
    """Join the process group and select this rank's GPU; restore random state and thread count on exit. Re-entrant."""
    gpus = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.cuda.device(gpus[0] if gpus else -1):
        own_group, threads = distributed.connect(device), torch.get_num_threads()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if own_group:
                distributed.disconnect()


def use_threads(threads: int, shape: tuple[int, ...]) -> None:
    """Set the CPU threads, inside `connected`; 0: torch's choice, or one for images of up to 16 pixels a side."""
    small = len(shape) == 3 and max(shape[1:]) <= 16  # a layer ends before a second thread has woken up
    if threads or small:
        torch.set_num_threads(threads or 1)


def stream(*parts: Any) -> int:
    """Derive the seed of an independent random stream from its name, such as (seed, "model", step)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def reseed(device: torch.device, seed: int) -> None:
    """Seed torch's CPU generator and that of one GPU; torch.manual_seed would reseed all GPUs."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
