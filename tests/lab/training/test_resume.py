"""A run that is killed at any instant resumes as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from dataprune import files
from dataprune.lab.training import run as training
from dataprune.lab.training.settings import Settings

pytestmark = pytest.mark.slow

KILLS = 10
SETTINGS = tiny.settings(epochs=10, checkpoint_every=3)


def child(settings: Settings, out: str, rank: int, ranks: int, port: int, tear: int) -> None:
    """Train; with `tear`, die while that many-th file is half written."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if tear:
        left = [tear]
        whole = files.write_bytes

        def torn(path: Path, content: bytes) -> None:
            left[0] -= 1
            if left[0] == 0:
                part = f".{path.name}.{socket.gethostname()}.{os.getpid()}.0.part"
                path.with_name(part).write_bytes(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            whole(path, content)

        files.write_bytes = torn
    training.run(settings, Path(out), data=tiny.data())


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo: building the first optimizer imports it, for longer than the run itself takes
    context.set_forkserver_preload(["dataprune.lab.training.run", "torch.distributed", "torch._dynamo"])
    first = context.Process(target=int)  # waits for these imports, so that no run's duration holds them
    first.start()
    first.join()
    return context


def start(context, settings: Settings, out: Path, ranks: int = 1, tear: int = 0) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=child, args=(settings, str(out), rank, ranks, port, tear if rank == 0 else 0))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def end(processes: list) -> list[int | None]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def kill(processes: list) -> bool:
    """Whether any of them was still at work."""
    alive = [process.is_alive() for process in processes]
    for process in processes:
        process.kill()
    end(processes)
    return any(alive)


@pytest.mark.parametrize(("workers", "ranks"), [(0, 1), (2, 1), pytest.param(0, 2, marks=pytest.mark.ddp)])
def test_ten_kills(context, tmp_path: Path, workers: int, ranks: int) -> None:
    settings = replace(SETTINGS, workers=workers)
    started = time.monotonic()
    assert end(start(context, settings, tmp_path / "whole", ranks)) == [0] * ranks
    duration = time.monotonic() - started
    dice = random.Random(1)
    killed, number = 0, 0
    while killed < KILLS:
        out = tmp_path / f"killed{number}"
        while not (out / "metrics.json").exists():
            processes = start(context, settings, out, ranks)
            if killed < KILLS:
                deadline = time.monotonic() + dice.uniform(0.1, 0.9) * duration
                while time.monotonic() < deadline and any(process.is_alive() for process in processes):
                    time.sleep(0.01)
                killed += kill(processes)
            else:
                assert end(processes) == [0] * ranks
        tiny.same_end(tmp_path / "whole", out)
        number += 1


def test_killed_in_mid_write(context, tmp_path: Path) -> None:
    assert end(start(context, SETTINGS, tmp_path / "whole")) == [0]
    out = tmp_path / "torn"
    for tear in range(1, KILLS + 1):
        assert end(start(context, SETTINGS, out, tear=tear)) == [-signal.SIGKILL]
    assert end(start(context, SETTINGS, out)) == [0]
    tiny.same_end(tmp_path / "whole", out)
    assert not list(out.glob("*.part"))
