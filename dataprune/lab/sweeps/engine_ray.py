"""Run the jobs of a sweep on a Ray cluster; records and files return to the driving process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch

from ... import files
from ..data.named import Data
from ..training import device
from ..training.ray_cluster import cause, connected, gpu_share, gpus_of
from ..training.run_folder import RunRecord
from ..training.settings import Settings
from .engines import Drive, Engine, Job, Report, perform, refuse_torchrun, side_by_side


class Done(NamedTuple):
    """Result of a worker: the record, and the files of the run's folder if the driver cannot see that folder."""

    record: RunRecord
    files: dict[str, bytes]


def on_ray(address: str | None = None, jobs: int | None = None) -> Engine:
    """An engine that runs each job as a Ray task, with one GPU where the cluster has any.

    The data is sent to the workers; only an image folder too large for that must have the same path on all machines. A
    worker that sees the sweep's folder (same machine, or shared file system) trains there, and an interrupted run
    resumes from its last checkpoint. Elsewhere it trains in a temporary folder, whose files are sent back.

    `address` is that of a running cluster; by default RAY_ADDRESS, else a new Ray on this machine's cores. At most
    `jobs` run in parallel, by default as many as the cluster has room for; more jobs than GPUs share them.
    """

    @contextmanager
    def engine(settings: Settings, data: Data, report: Report | None) -> Iterator[Drive]:
        refuse_torchrun("--engine ray")
        with ExitStack() as stack:
            ray = stack.enter_context(connected(address))
            stack.enter_context(device.connected(torch.device("cpu")))
            stored = ray.put(data)
            share = gpu_share(gpus_of(ray, settings.device), jobs)
            threads = max(1, settings.threads)
            task = ray.remote(num_cpus=threads, num_gpus=share)(_work)

            def start(job: Job) -> Future[RunRecord]:
                selection = job.settings.selection
                needed = {"coreset": selection and Path(selection), "weights": job.weights}
                contents = {name: path.read_bytes() for name, path in needed.items() if path and path.exists()}
                job.out.mkdir(parents=True, exist_ok=True)
                mark = (job.out / f".{uuid4().hex}").resolve()
                mark.touch()
                stack.callback(mark.unlink, missing_ok=True)
                here = replace(job, out=job.out.resolve())
                return _written(job, task.remote(here, [stored], contents, str(mark), threads).future())

            yield lambda all_steps: side_by_side(all_steps, start, jobs, report)

    return engine


def _written(job: Job, done: Future[Done]) -> Future[RunRecord]:
    """The record of a run, after its files are written here."""
    record: Future[RunRecord] = Future()

    def write(done: Future[Done]) -> None:
        try:
            result = done.result()
            for name in sorted(result.files, key=lambda name: name == "metrics.json"):  # last: it marks a finished run
                files.write_bytes(job.out / name, result.files[name])
            # again, since the coreset has another path on the worker
            files.write_json(job.out / "config.json", job.settings.as_dict())
            record.set_result(result.record)
        except Exception as error:
            record.set_exception(cause(error))

    done.add_done_callback(write)
    return record


# -- in a worker of Ray ----------------------------------------------------------------------------------------------

_data: dict[str, Data] = {}  # of the last sweep that this worker had a job of, by Ray's id


def _work(job: Job, stored: list[Any], contents: dict[str, bytes], mark: str, threads: int) -> Done:
    import ray

    key = stored[0].hex()
    if key not in _data:
        _data.clear()
        _data[key] = ray.get(stored[0])
    torch.set_num_threads(threads)
    return train(job, _data[key], contents, mark)


def train(job: Job, data: Data, contents: dict[str, bytes], mark: str) -> Done:
    """Run a job in its folder, or in a temporary one if the file `mark` that the driver made there is not visible.

    `contents` are those of the files that the run needs: "coreset", the settings' `selection`, and "weights".
    """
    with tempfile.TemporaryDirectory() as own:
        visible = Path(mark).exists()
        out = job.out if visible else Path(own, "run")
        paths = {name: Path(own, f"{name}.safetensors") for name in contents}
        for name, path in paths.items():
            path.write_bytes(contents[name])
        settings = replace(job.settings, selection=str(paths["coreset"])) if "coreset" in paths else job.settings
        record = perform(replace(job, settings=settings, out=out, weights=paths.get("weights", job.weights)), data)
        return Done(record, {} if visible else {path.name: path.read_bytes() for path in out.iterdir()})
