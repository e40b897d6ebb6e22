"""Engines run the jobs of a sweep: one after another in this process, or in parallel.

A row of a sweep is written as *steps*: a generator that yields the jobs it needs next, which may run in parallel, is
sent their records, and returns the row. An engine drives many of these and yields each row when it is complete.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from ... import distributed, files
from ...errors import CheckpointError, DataError, UsageError
from ..data.named import Data
from ..training import run_folder, tasks
from ..training.device import choose_device, connected
from ..training.epoch_history import EpochRecord
from ..training.run import run
from ..training.run_folder import RunRecord
from ..training.settings import Settings
from ..training.tasks.images import initialize
from .joint import stages

# arm, seed, a line of the run's history; a method `step`, where it has one, is an `OnStep` that takes the `run`'s name
Report = Callable[[str, int, dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """One run of a sweep. It can be pickled; jobs with the same folder are the same job.

    `weights` is the model.safetensors of an earlier run to start from, which must exist until this job is finished.
    Without `prune`, all layers but the last are initialized with it.
    """

    arm: str  # name in errors and on the progress bar, with the seed
    seed: int
    settings: Settings
    out: Path
    save_model: bool = False
    test: bool = True  # evaluate on the test set at the end
    weights: Path | None = None
    prune: stages.Pruning | None = None  # before training; the masks are held while training
    watch: stages.Watched | None = None  # what is measured after every epoch


def perform(job: Job, data: Data, report: Report | None = None) -> RunRecord:
    """Run a job in this process, or read its record where it is finished; errors as for `finished` and `run`."""
    there = job.weights is None or distributed.agreed(job.weights.exists())
    if (record := finished(job)) is not None:  # after the look for weights: who finishes a job may delete them
        return record
    if not there:
        raise UsageError(
            f"{job.weights} does not exist: the finished run did not save its weights (save_model=False); choose "
            "another --out"
        )
    model = tasks.of(job.settings, data).model()
    if job.prune is not None:
        assert job.weights is not None
        stages.prune(model, job.weights, job.prune, job.settings, data, job.out)
    elif job.weights is not None:
        initialize(model, job.weights, data)
    measure = stages.watch(job.watch, model, job.settings, job.out, data)
    step = getattr(report, "step", None)

    def on_epoch(model: nn.Module, line: EpochRecord) -> None:
        measure(line.epoch)
        if report is not None:
            report(job.arm, job.seed, line.as_dict())

    return run(
        job.settings,
        job.out,
        data=data,
        model=model,
        on_epoch=on_epoch,
        on_step=step and partial(step, run=f"{job.arm} seed {job.seed}"),
        save_model=job.save_model,
        test=job.test,
    )


def finished(job: Job) -> RunRecord | None:
    """The record of a job, None where it is not finished; UsageError if the folder is of another run or pruning."""
    record = run_folder.finished(job.out, job.settings)
    if job.prune is not None:
        stages.check_pruning(job.prune, job.out)
    return record


Steps = Generator[list[Job], list[RunRecord], Any]
Drive = Callable[[Sequence[Steps]], Iterator[tuple[int, Any]]]  # yields (position, what these steps returned)
Engine = Callable[[Settings, Data, Report | None], AbstractContextManager[Drive]]


@contextmanager
def local(settings: Settings, data: Data, report: Report | None) -> Iterator[Drive]:
    """Run one job after another in this process; under torchrun, each job on all ranks together."""
    records: dict[Path, RunRecord] = {}

    def run(job: Job) -> RunRecord:
        if job.out not in records:
            try:
                records[job.out] = perform(job, data, report)
            except ValueError as error:
                raise _named(job, error) from error
        return records[job.out]

    def drive(all_steps: Sequence[Steps]) -> Iterator[tuple[int, Any]]:
        for position, steps in enumerate(all_steps):
            try:
                jobs = next(steps)
                while True:
                    jobs = steps.send([run(job) for job in jobs])
            except StopIteration as end:
                yield position, end.value

    with connected(choose_device(settings.device)):
        yield drive


def processes(count: int) -> Engine:
    """Run up to `count` jobs in parallel on this machine, each in a process with its share of the CPU cores."""

    @contextmanager
    def engine(settings: Settings, data: Data, report: Report | None) -> Iterator[Drive]:
        refuse_torchrun("--jobs")
        before = set(multiprocessing.active_children())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = settings.threads or max(1, cores // count)
        with _terminable(), tempfile.TemporaryDirectory() as folder, connected(torch.device("cpu")):
            path = os.path.join(folder, "data.pt")
            torch.save(data, path)
            # spawned: a forked process cannot use a GPU that its parent has initialized
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(path, threads))
            try:
                yield lambda all_steps: side_by_side(all_steps, partial(pool.submit, _work), count, report)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - before:
                    process.terminate()  # interrupted runs resume from their checkpoints, which are written atomically
                pool.shutdown()

    return engine


@contextmanager
def _terminable() -> Iterator[None]:
    """End on SIGTERM by an exception, as on Ctrl-C, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    former = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _end(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def refuse_torchrun(option: str) -> None:
    """Raise UsageError under torchrun, where every rank would drive a sweep of its own."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(f"{option} runs jobs in parallel, one process each: start without torchrun")


def side_by_side(
    all_steps: Sequence[Steps], start: Callable[[Job], Future[RunRecord]], limit: int | None, report: Report | None
) -> Iterator[tuple[int, Any]]:
    """Drive steps whose jobs run elsewhere: yields a position and what these steps returned, in order of completion.

    A job that several steps need runs once; at most `limit` run at once. A failed job ends the steps that need it; the
    others continue, and the first failure is raised at the end. The future of `start` has the record when the job's
    folder is complete.
    """
    outcomes: dict[Path, RunRecord | Exception | None] = {}  # by folder, of requested jobs; None until they end
    queue: deque[Job] = deque()
    running: dict[Future[RunRecord], Job] = {}
    waiting: dict[int, list[Job]] = {}
    failures: list[Exception] = []

    def advance(position: int, step: Callable[[], list[Job]]) -> Iterator[tuple[int, Any]]:
        try:
            waiting[position] = step()
        except StopIteration as end:
            yield position, end.value
        except Exception as error:
            failures.append(error)
        for job in waiting.get(position, ()):
            if job.out not in outcomes:
                try:
                    outcomes[job.out] = finished(job)
                except Exception as error:  # a damaged record, or another run's folder
                    fail(job, error)
                    continue
                if outcomes[job.out] is None:
                    queue.append(job)

    def fail(job: Job, error: Exception) -> None:
        failures.append(_named(job, error))
        outcomes[job.out] = failures[-1]

    for position, steps in enumerate(all_steps):
        yield from advance(position, partial(next, steps))
    while waiting:
        while queue and (limit is None or len(running) < limit):
            job = queue.popleft()
            try:
                running[start(job)] = job
            except Exception as error:  # such as a pool that has lost a process
                fail(job, error)
        results = {position: [outcomes[job.out] for job in jobs] for position, jobs in waiting.items()}
        complete = [position for position, records in results.items() if None not in records]
        for position in complete:
            del waiting[position]
            records = [record for record in results[position] if isinstance(record, RunRecord)]
            if len(records) == len(results[position]):
                yield from advance(position, partial(all_steps[position].send, records))
            else:
                all_steps[position].close()
        for future in wait(running, return_when=FIRST_COMPLETED).done if not complete else ():
            job = running.pop(future)
            try:
                outcomes[job.out] = future.result()
                if report is not None:
                    for line in files.read_json_lines(job.out / "history.jsonl"):
                        report(job.arm, job.seed, line)
            except Exception as error:
                fail(job, error)
    if failures:
        raise failures[0]


def _named(job: Job, error: Exception) -> Exception:
    """The error with the job's name in front."""
    text = str(error) if isinstance(error, ValueError | RuntimeError | OSError) else repr(error)
    if isinstance(error, BrokenProcessPool):
        text = "its process was killed, possibly out of memory: repeat the command with fewer --jobs to continue"
    kinds = (CheckpointError, DataError, UsageError, ValueError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
    named = kind(f"{job.arm}, seed {job.seed}: {text}")
    named.__cause__ = error
    return named


# -- in a worker process of `processes` ------------------------------------------------------------------------------

_data: Data | None = None


def _begin(path: str, threads: int) -> None:
    global _data
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driving process handles Ctrl-C, and ends this one
    signal.signal(signal.SIGTERM, _end)
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_DFL)  # an exception in an exit handler would be printed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _data = torch.load(path, mmap=True, weights_only=False)  # all processes share the pages of one file


def _end_with_parent() -> None:
    """End this process when the driving process was killed and could not end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job) -> RunRecord:
    assert _data is not None
    try:
        return perform(job, _data)
    except SystemExit as end:  # SIGTERM: what was being written is removed; the pool would start the next job
        os._exit(end.code if isinstance(end.code, int) else 1)
