"""Where the runs of a sweep are carried out: here one after another, or side by side.

A sweep is written as *steps*: a generator that yields the jobs it needs next, all that may run at once, and is sent
their records. An engine drives many of these, and yields what each returned as soon as it has.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...errors import CheckpointError, DataError, UsageError
from ..data.named import Data
from ..training import run_folder, setup
from ..training.run import fit
from ..training.settings import Settings
from ..training.tasks.images import initialize

Record = dict[str, Any]
Report = Callable[[str, int, dict[str, Any]], None]  # method, seed, a line of its history


class Job(NamedTuple):
    """One run: what `fit` is called with.

    Attributes:
        method: what errors and reports call it.
        seed: as method.
        settings: of the run.
        out: its folder, where the sweep is driven; it is also what tells jobs apart.
        save_model: as for `fit`.
        test: as for `fit`.
        weights: model.safetensors of the run that this one goes on from, all but the last layer's; needed until it is
            finished.
    """

    method: str
    seed: int
    settings: Settings
    out: Path
    save_model: bool = False
    test: bool = True
    weights: Path | None = None


def carried_out(job: Job, data: Data, report: Callable[[dict[str, Any]], None] | None = None) -> Record:
    """The record of a job, in its folder.

    Raises:
        UsageError: if the weights that it goes on from are not there.
    """

    def prepare(model: torch.nn.Module) -> None:
        if job.weights is not None and not job.weights.exists():
            raise UsageError(
                f"{job.weights} is not there: the run was finished without a thought of going on from it, and kept no "
                "weights; choose another --out"
            )
        if job.weights is not None:
            initialize(model, job.weights, data)

    return fit(
        job.settings, job.out, data=data, report=report, save_model=job.save_model, test=job.test, prepare=prepare
    )


Steps = Generator[list[Job], list[Record], Any]
CarryOut = Callable[[Sequence[Steps]], Iterator[tuple[int, Any]]]  # (position, what the steps returned)
Engine = Callable[[Settings, Data, Report | None], AbstractContextManager[CarryOut]]


@contextmanager
def local(settings: Settings, data: Data, report: Report | None) -> Iterator[CarryOut]:
    """One run after another, in this process; under torchrun in all of its processes together."""

    def run(job: Job) -> Record:
        def line(found: dict[str, Any]) -> None:
            if report is not None:
                report(job.method, job.seed, found)

        try:
            return carried_out(job, data, line)
        except ValueError as error:
            raise _named(job, error) from error

    def carry_out(every: Sequence[Steps]) -> Iterator[tuple[int, Any]]:
        for position, steps in enumerate(every):
            try:
                jobs = next(steps)
                while True:
                    jobs = steps.send([run(job) for job in jobs])
            except StopIteration as end:
                yield position, end.value

    with setup.connected(setup.choose_device(settings.device)):
        yield carry_out


def processes(count: int) -> Engine:
    """So many processes of this machine side by side, each with its share of the CPU's cores."""

    @contextmanager
    def engine(settings: Settings, data: Data, report: Report | None) -> Iterator[CarryOut]:
        alone("--jobs")
        before = set(multiprocessing.active_children())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = settings.threads or max(1, cores // count)
        with tempfile.TemporaryDirectory() as folder, setup.connected(torch.device("cpu")):
            held = os.path.join(folder, "data.pt")
            torch.save(data, held)
            # spawned, for a forked process cannot use a GPU that its parent has touched
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(held, threads))
            try:
                yield lambda every: side_by_side(every, lambda job: pool.submit(_work, job), count, report)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - before:
                    process.terminate()  # what still runs was interrupted; its checkpoint is whole
                pool.shutdown()

    return engine


def alone(option: str) -> None:
    """Raise UsageError under torchrun, whose processes would each drive a sweep of their own."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(f"{option} runs a comparison's runs side by side, in one process each: start without torchrun")


def side_by_side(
    every: Sequence[Steps], start: Callable[[Job], Future[Record]], limit: int | None, report: Report | None
) -> Iterator[tuple[int, Any]]:
    """Drive steps whose jobs run elsewhere. A run that fails ends its own steps; the others go on to their end.

    Args:
        every: the steps. A folder that several of them need a run in has one run.
        start: begins a job; its future has the record, when the job's folder is complete.
        limit: jobs that may run at once; None where `start` looks after that.
        report: called with a run's history when it is finished.
    Yields:
        A position in `every` and what these steps returned, in the order in which they end.
    Raises:
        RuntimeError or ValueError: the first failure, when all else is finished.
    """
    records: dict[Path, Record | Exception] = {}
    queue: deque[Job] = deque()
    running: dict[Future[Record], Job] = {}
    asked: set[Path] = set()
    waiting: dict[int, list[Job]] = {}
    failures: list[Exception] = []
    ready: deque[tuple[int, Any]] = deque((position, None) for position in range(len(every)))
    while ready or waiting:
        while ready:
            position, found = ready.popleft()
            try:
                jobs = every[position].send(found)
            except StopIteration as end:
                yield position, end.value
                continue
            except Exception as error:
                failures.append(error)
                continue
            waiting[position] = jobs
            for job in jobs:
                if job.out in asked:
                    continue
                asked.add(job.out)
                record = run_folder.finished(job.out, job.settings)
                if record is None:
                    queue.append(job)
                else:
                    records[job.out] = record.as_dict()
        while queue and (limit is None or len(running) < limit):
            job = queue.popleft()
            running[_started(start, job)] = job
        known = [position for position, jobs in waiting.items() if all(job.out in records for job in jobs)]
        for future in wait(running, return_when=FIRST_COMPLETED).done if running and not known else ():
            job = running.pop(future)
            try:
                records[job.out] = future.result()
                _tell(job, report)
            except Exception as error:
                failures.append(_named(job, error))
                records[job.out] = failures[-1]
        for position in known:
            found = [records[job.out] for job in waiting.pop(position)]
            if any(isinstance(one, Exception) for one in found):
                every[position].close()
            else:
                ready.append((position, found))
    if failures:
        raise failures[0]


def _started(start: Callable[[Job], Future[Record]], job: Job) -> Future[Record]:
    try:
        return start(job)
    except Exception as error:  # of a pool that has lost a process, say
        failed: Future[Record] = Future()
        failed.set_exception(error)
        return failed


def _named(job: Job, error: Exception) -> Exception:
    """The error with the run's name before it."""
    text = str(error) if isinstance(error, ValueError | RuntimeError | OSError) else repr(error)
    if isinstance(error, BrokenProcessPool):
        text = "its process was killed, maybe for want of memory: the same command goes on, with fewer --jobs"
    kind = next(
        (kind for kind in (CheckpointError, DataError, UsageError, ValueError) if isinstance(error, kind)), None
    )
    named = (kind or RuntimeError)(f"{job.method}, seed {job.seed}: {text}")
    named.__cause__ = error
    return named


def _tell(job: Job, report: Report | None) -> None:
    if report is not None:
        for line in run_folder.read_lines(job.out / "history.jsonl"):
            report(job.method, job.seed, line)


# -- in a process of `processes` -------------------------------------------------------------------------------------

_held: Data | None = None


def _begin(path: str, threads: int) -> None:
    global _held
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the process that drives: that one ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _held = torch.load(path, mmap=True, weights_only=False)  # pages of one file, which all processes share


def _end_with_parent() -> None:
    """End this process when the one that drives was killed and could not do it; checkpoints are whole at any time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: Job) -> Record:
    assert _held is not None
    return carried_out(job, _held)
