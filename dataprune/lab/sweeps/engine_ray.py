"""The runs of a sweep spread over a Ray cluster; their records come back to the process that drives it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch

from ...errors import UsageError
from ..data.named import Data
from ..training import run_folder, setup
from ..training.settings import Settings
from .engines import CarryOut, Engine, Job, Record, Report, alone, carried_out, side_by_side


class Done(NamedTuple):
    """What a worker gives back: the record, and the folder's files where the driver does not see that folder."""

    record: Record
    files: dict[str, bytes]


def on_ray(address: str | None = None, jobs: int | None = None) -> Engine:
    """An engine that gives every run a Ray task of its own, with one GPU where the cluster has any.

    The data travels from here to the workers; only an image folder too large for that must lie at the same place on all
    machines. Where a worker sees the sweep's folder (one machine, or a shared file system) it trains there, and an
    interrupted run goes on from its last checkpoint; elsewhere it trains in a folder of its own, whose files come back.

    Args:
        address: of a running cluster; RAY_ADDRESS by default, else a Ray of its own on this machine's cores.
        jobs: runs side by side, at most; by default as many as the cluster has room for. With more of them than GPUs
            they share these.
    Raises:
        UsageError: without Ray, under torchrun, or where there is no cluster at `address`.
    """

    @contextmanager
    def engine(settings: Settings, data: Data, report: Report | None) -> Iterator[CarryOut]:
        alone("--engine ray")
        with ExitStack() as stack:
            ray = stack.enter_context(connected(address))
            stack.enter_context(setup.connected(torch.device("cpu")))
            held = ray.put(data)
            share = gpu_share(gpus_of(ray, settings.device), jobs)
            threads = max(1, settings.threads)
            task = ray.remote(num_cpus=threads, num_gpus=share)(_work)

            def start(job: Job) -> Future[Record]:
                selection = job.settings.selection
                needed = {"coreset": selection and Path(selection), "weights": job.weights}
                given = {name: path.read_bytes() for name, path in needed.items() if path and path.exists()}
                job.out.mkdir(parents=True, exist_ok=True)
                mark = (job.out / f".{uuid4().hex}").resolve()
                mark.touch()
                stack.callback(mark.unlink, missing_ok=True)
                here = job._replace(out=job.out.resolve())
                return _written(job, task.remote(here, [held], given, str(mark), threads).future())

            yield lambda every: side_by_side(every, start, jobs, report)

    return engine


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, joined to a cluster or started here; left or stopped at the end, unless it was there before."""
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install -c constraints.txt -e '.[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
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
    """What one of so many jobs takes of a GPU: all of it, or a part such that all of them fit.

    Example:
        >>> [gpu_share(4, jobs) for jobs in (None, 3, 6, 8)], gpu_share(0, 3)
        ([1.0, 1.0, 0.5, 0.5], 0.0)
    """
    return 1.0 / max(1, -(-(jobs or 1) // gpus)) if gpus else 0.0


def cause(error: BaseException) -> BaseException:
    """What a task raised, out of what Ray has wrapped it in."""
    while type(error).__module__.partition(".")[0] == "ray":
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None or inner is error:
            return error
        error = inner
    return error


def _answers(address: str) -> None:
    """Raise OSError unless something listens at host:port; Ray itself would wait for it for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _written(job: Job, done: Future[Done]) -> Future[Record]:
    """The record of a run whose folder is complete here."""
    record: Future[Record] = Future()

    def write(done: Future[Done]) -> None:
        try:
            found = done.result()
            for name in sorted(found.files, key=lambda name: name == "metrics.json"):  # last: it says that all is there
                run_folder.write(job.out / name, found.files[name])
            # once more: the coreset has another path there than here
            run_folder.write_json(job.out / "config.json", job.settings.as_dict())
            record.set_result(found.record)
        except Exception as error:
            record.set_exception(cause(error))

    done.add_done_callback(write)
    return record


# -- in a worker of Ray ----------------------------------------------------------------------------------------------

_held: dict[str, Data] = {}  # of the sweep that this worker last had a run of


def _work(job: Job, held: list[Any], given: dict[str, bytes], mark: str, threads: int) -> Done:
    import ray

    if held[0].hex() not in _held:
        _held.clear()
        _held[held[0].hex()] = ray.get(held[0])
    torch.set_num_threads(threads)
    return train(job, _held[held[0].hex()], given, mark)


def train(job: Job, data: Data, given: dict[str, bytes], mark: str) -> Done:
    """Carry a run out in its folder, or in one of this machine where that folder's mark is not to be seen.

    Args:
        job: the run.
        data: of the run.
        given: what is in the files that the run needs: "coreset", the settings' `selection`, and "weights".
        mark: a file that the driver made in the run's folder.
    """
    with tempfile.TemporaryDirectory() as own:
        seen = Path(mark).exists()
        out = job.out if seen else Path(own, "run")
        paths = {name: Path(own, f"{name}.safetensors") for name in given}
        for name, path in paths.items():
            path.write_bytes(given[name])
        settings = replace(job.settings, selection=str(paths["coreset"])) if "coreset" in paths else job.settings
        there = job._replace(settings=settings, out=out, weights=paths.get("weights", job.weights))
        record = carried_out(there, data)
        files = {} if seen else {path.name: path.read_bytes() for path in out.iterdir()}
    return Done(record, files)
