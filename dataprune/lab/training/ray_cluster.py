"""Connections to a Ray cluster, its GPUs, and the errors of its tasks."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import UsageError, needs

_SEVERAL_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # on any system: whether other machines may join


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Context manager: connects to a cluster or starts one here, and shuts down what it started on exit.

    One that it starts listens on the loopback alone: whoever reaches Ray's ports may run code.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        os.environ.setdefault(_SEVERAL_MACHINES, "0")  # Ray reads it when it is imported
    with needs("--engine ray needs Ray", "ray", UsageError):
        import ray
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        options |= {"num_cpus": cores, "include_dashboard": False}
    try:
        _answers(address)
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def gpus_of(ray: Any, device: str | None) -> int:
    """GPUs of the cluster that may be used."""
    return 0 if (device or "").startswith("cpu") else int(ray.cluster_resources().get("GPU", 0))


def gpu_share(gpus: int, jobs: int | None) -> float:
    """Share of a GPU that one of so many parallel jobs takes: all of it, or a part such that all jobs fit.

    Example:
        >>> [gpu_share(4, jobs) for jobs in (None, 3, 6, 8)], gpu_share(0, 3)
        ([1.0, 1.0, 0.5, 0.5], 0.0)
    """
    return 1.0 / max(1, -(-(jobs or 1) // gpus)) if gpus else 0.0


def cause(error: BaseException) -> BaseException:
    """The exception of a task, without Ray's wrappers."""
    while type(error).__module__.partition(".")[0] == "ray":
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None or inner is error:
            return error
        error = inner
    return error


def _answers(address: str) -> None:
    """Raise OSError unless something listens at host:port; Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
