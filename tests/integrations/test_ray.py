"""Ray Train with two workers: what they train is what was selected, and Ray's own sampler is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import dataprune
from dataprune import PlanError

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed: dataprune[ray]")
MODES = ("ours", "naive", "naive and selected", "fails", "infobatch")


def run(*arguments: str | Path, cwd: Path) -> str:
    """In a process of its own: Ray leaves threads behind, and warns of what is its own business."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HOME": str(cwd)},  # where Ray keeps results
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each worker found, by mode."""
    out = tmp_path_factory.mktemp("ray")
    run(Path(__file__).with_name("ray_loop.py"), out, *MODES, cwd=out)
    return {mode: [json.loads((out / f"{mode}-{rank}.json").read_text()) for rank in (0, 1)] for mode in MODES}


@needs_ray
@pytest.mark.slow
@pytest.mark.ddp
def test_workers_share_what_is_selected(records: dict[str, list[dict[str, Any]]]) -> None:
    first, second = records["ours"]
    assert first["selected"] == second["selected"] and first["weight"] == second["weight"]
    assert [len(index) for index in first["selected"]] == [480, 120, 120, 120]
    for selected, rank0, rank1 in zip(first["selected"], first["epochs"], second["epochs"], strict=True):
        assert not set(rank0) & set(rank1) and len(set(rank0)) == len(rank0) == len(rank1) == len(selected) // 16 * 8
        assert set(rank0) | set(rank1) <= set(selected)  # all of it but the last, smaller batches
    assert first["selected"][1] != first["selected"][2]
    for rank in (first, second):
        assert rank["steps"] == 30 + 3 * 7 and rank["done"] == 1 and rank["lr"] == 0


@needs_ray
@pytest.mark.slow
@pytest.mark.ddp
def test_lengths_that_become_known_one_by_one(records: dict[str, list[dict[str, Any]]]) -> None:
    first, second = records["infobatch"]
    assert first["selected"] == second["selected"] and first["steps"] == second["steps"] < 120
    assert first["done"] == second["done"] == 1 and first["lr"] == pytest.approx(0, abs=1e-12)
    for selected, rank0, rank1 in zip(first["selected"], first["epochs"], second["epochs"], strict=True):
        assert len(set(rank0) & set(rank1)) <= len(selected) % 2  # an odd number: one is trained by both
        assert set(rank0) | set(rank1) <= set(selected)


@needs_ray
@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("mode", ["naive", "naive and selected"])
def test_rays_own_sampler_is_refused(mode: str, records: dict[str, list[dict[str, Any]]]) -> None:
    """Left alone it trains everything in every epoch; the first one is full anyway, so it is right by chance."""
    for rank in records[mode]:
        assert "add_dist_sampler=False" in rank["error"]
        assert [len(index) for index in rank["epochs"]] == [240, 8 if mode == "naive" else 240]


@needs_ray
@pytest.mark.slow
@pytest.mark.ddp
def test_a_failed_worker_resumes_in_the_middle_of_an_epoch(records: dict[str, list[dict[str, Any]]]) -> None:
    for whole, resumed in zip(records["ours"], records["fails"], strict=True):
        assert resumed["resumed"] == 1 and [len(index) for index in resumed["epochs"]] == [32, 56, 56]
        assert resumed["epochs"][0] == whole["epochs"][1][24:] and resumed["epochs"][1:] == whole["epochs"][2:]
        assert resumed["weight"] == whole["weight"] and resumed["lr"] == whole["lr"]


@needs_ray
@pytest.mark.slow
@pytest.mark.ddp
def test_the_example_resumes(tmp_path: Path) -> None:
    first = run(ROOT / "examples" / "ray_train.py", "--epochs", "5", cwd=tmp_path).splitlines()
    line = next(line for line in first if line.startswith("test accuracy"))
    assert line.endswith("after 88 of 88 planned steps, 192 samples per worker in epoch 4")
    assert line in run(ROOT / "examples" / "ray_train.py", "--epochs", "5", cwd=tmp_path).splitlines()


def loader(size: int = 48) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(size)), batch_size=8, shuffle=True)


@needs_ray
def test_unsuitable_loaders_and_options() -> None:
    from dataprune.integrations.ray import prepare_data_loader

    pruner = dataprune.rs2(48, keep=0.5, epochs=4)
    with pytest.raises(TypeError, match="add_dist_sampler is always False"):
        prepare_data_loader(loader(), pruner, add_dist_sampler=True)

    class Prepared:
        __module__ = "ray.train.torch.train_loop_utils"

    with pytest.raises(TypeError, match="prepared this loader already"):
        prepare_data_loader(Prepared(), pruner)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size=len"):
        prepare_data_loader(loader(40), pruner)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataprune.integrations.ray import prepare_data_loader

    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    with pytest.raises(ImportError, match=r"pip install -c constraints.txt -e '\.\[ray\]'"):
        prepare_data_loader(loader(), dataprune.rs2(48, keep=0.5, epochs=4))


def test_a_loop_that_never_selects_is_an_error() -> None:
    """Whatever replaced the sampler; an epoch may be full, and a batch more than that is tolerated."""
    pruner = dataprune.loss(48, keep=0.5, epochs=4)
    every = torch.arange(48).split(8)
    for index in (*every, every[0]):
        pruner.update(index, torch.rand(8))
    with pytest.raises(PlanError, match="none was selected: nothing is pruned"):
        pruner.update(every[1], torch.rand(8))
    planned = dataprune.loss(48, keep=0.5, epochs=4)
    for epoch in range(4):
        for index in planned.batches(epoch, 8):
            planned.update(index, torch.rand(len(index)))


LISTENS = """
import psutil
from dataprune.lab.training.ray_cluster import connected
with connected(None) as ray:
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    print(*{socket.laddr.ip for socket in sockets if socket.status == "LISTEN"})
"""


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_we_start_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    call = [sys.executable, "-W", "ignore", "-c", LISTENS]
    done = subprocess.run(call, capture_output=True, text=True, timeout=150, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    addresses = set(done.stdout.split())
    assert addresses and all(address.removeprefix("::ffff:").startswith("127.") for address in addresses), addresses
