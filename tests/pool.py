"""Processes that form a gloo group when asked to: they start once, and serve every distributed test."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

TIMEOUT = 60  # seconds that a test's ranks may take together: a deadlock fails, it does not hang


class RankError(AssertionError):
    """A rank raised; its traceback is the message."""


class Pool:
    """`size` idle processes.

    Example:
        with Pool(3) as pool:
            per_rank = pool.run(function, *args, world_size=2)
    """

    def __init__(self, size: int):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._runs = 0
        self._processes: list[tuple[Any, Any]] = []
        for _ in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,))  # no daemon: it may start workers
            process.start()
            there.close()
            self._processes.append((process, here))

    def run(self, function: Callable[..., Any], *args: Any, world_size: int) -> list[Any]:
        """What `function(rank, world_size, *args)` returns on each rank, within a process group of its own.

        The function must be at the top of its module; arguments and results are pickled.

        Raises:
            RankError: if any rank raises, or takes too long.
        """
        results = self.outcomes(function, *args, world_size=world_size)
        failed = [f"rank {rank}:\n{text}" for rank, (done, text) in enumerate(results) if not done]
        if failed:
            raise RankError("\n".join(failed))
        return [value for _, value in results]

    def outcomes(self, function: Callable[..., Any], *args: Any, world_size: int) -> list[tuple[bool, Any]]:
        """As `run`, but (True, result) or (False, traceback) for each rank."""
        self._runs += 1
        store = Path(self._folder.name) / str(self._runs)
        where = (function.__code__.co_filename, function.__name__)
        pipes = [pipe for _, pipe in self._processes[:world_size]]
        for rank, pipe in enumerate(pipes):
            pipe.send((where, str(store), rank, world_size, args))
        results = []
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(TIMEOUT + 20):
                raise RankError(f"rank {rank} of {where[1]} gave no answer in {TIMEOUT + 20} s")
            results.append(pipe.recv())
        return results

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self._processes:
            pipe.close()
            process.join(5)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _serve(pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This process .* is multi-threaded, use of fork", DeprecationWarning)
    while True:
        try:
            where, store, rank, world_size, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            function = _find(*where)
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=TIMEOUT),
            )
            try:
                answer = (True, function(rank, world_size, *args))
            finally:
                dist.destroy_process_group()
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send(answer)


def _find(path: str, name: str) -> Callable[..., Any]:
    """A function by its file, whatever name the test runner gave the module."""
    key = "_ranks_of_" + "_".join(Path(path).with_suffix("").parts[1:])  # file names occur in several folders
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return getattr(sys.modules[key], name)
