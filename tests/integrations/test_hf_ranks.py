"""Two ranks under torchrun and accelerate launch: no sample twice, none missing, the same run after resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SCRIPT = Path(__file__).parent / "hf_ranks.py"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# its way of starting several processes, on the CPU too: with --cpu it asks for MPI
ACCELERATE = [
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip


def launch(launcher: list[str], out: Path, *names: str) -> list[dict[str, Any]]:
    """What each rank found."""
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(SCRIPT), str(out), *names],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    names = ["naive", "sharded_twice", "plan", "infobatch", "full", "resume", "online"]
    return launch(TORCHRUN, tmp_path_factory.mktemp("ranks"), *names)


def test_accelerate_shards_rank_local_selections_again(ranks: list[dict[str, Any]]) -> None:
    for trained in (
        [i for rank in ranks for epoch in rank["naive"] for i in epoch],
        [i for rank in ranks for batch in rank["sharded_twice"] for i in batch],
    ):
        assert len(trained) == len(set(trained)) == 32  # of 48, and no error


def check_plan(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["plan"] for rank in ranks)
    assert first["selected"] == second["selected"]
    for selected, rank0, rank1 in zip(first["selected"], first["epochs"], second["epochs"], strict=True):
        assert set(rank0) | set(rank1) == set(selected)
        assert len(rank0) == len(rank1) and len(set(rank0)) == len(rank0)
        assert len(set(rank0) & set(rank1)) <= 1  # 15 samples: one is trained by both
    assert [len(epoch) for epoch in first["epochs"]] == [24, 8, 8, 24]
    for record in (first, second):
        assert record["steps"] == 3 + 1 + 1 + 3 and record["rate"] == 0.0 and record["scored"] == 48
        assert record["samples"][-1] == 128


def test_the_plan_is_trained(ranks: list[dict[str, Any]]) -> None:
    check_plan(ranks)


def test_the_plan_is_trained_under_accelerate_launch(tmp_path: Path) -> None:
    check_plan(launch(ACCELERATE, tmp_path, "plan"))


def test_infobatch_agrees_on_its_lengths(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["infobatch"] for rank in ranks)
    assert [len(epoch) for epoch in first["epochs"]] == [len(epoch) for epoch in second["epochs"]]
    assert first["steps"] == second["steps"] < 12
    assert first["rate"] == second["rate"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("labels", ["class", "language"])
@pytest.mark.parametrize("average", [True, False])
def test_full_is_the_stock_trainer(ranks: list[dict[str, Any]], labels: str, average: bool) -> None:
    for rank in ranks[:1]:  # only rank 0 logs
        ours, stock = rank["full"][f"{labels} {average}"]
        assert len(ours) == 4
        # with counts of its own on each rank, which samples share a rank decides how tokens are weighted
        assert ours == pytest.approx(stock, rel=1e-5 if average or labels == "class" else 0.05)


@pytest.mark.parametrize("at", ["2", "3", "4", "6"])
def test_resuming(ranks: list[dict[str, Any]], at: str) -> None:
    for rank in ranks:
        assert all(rank["resume"][at].values()), rank["resume"][at]


def test_each_rank_chooses_from_its_own_super_batches(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["online"] for rank in ranks)
    for rank0, rank1 in zip(first["epochs"], second["epochs"], strict=True):
        # three super-batches for two ranks: accelerate begins again for the fourth
        assert len(rank0) == len(rank1) == 8 and not set(rank0[:4]) & set(rank1[:4])
    for rank in (first, second):
        assert rank["seen"] and rank["weights"]
