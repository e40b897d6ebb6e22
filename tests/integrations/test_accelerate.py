"""A plain loop under Accelerate, on two ranks: the selection is trained, whole and once; what `prepare` would break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "accelerate_ranks.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    out = tmp_path_factory.mktemp("ranks")
    start(*TORCHRUN, SCRIPT, out, cwd=out)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.ddp
@pytest.mark.slow
def test_a_prepared_loader_is_sharded_twice_and_the_pruner_says_so(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "a framework shards what PruneSampler has sharded already" in rank["prepared"]


@pytest.mark.ddp
@pytest.mark.slow
def test_a_prepared_schedule_is_over_half_way(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert len(rank["twice"]) == 8 and rank["twice"][3:] == [0.0] * 5 and rank["twice"][2] > 0


@pytest.mark.ddp
@pytest.mark.slow
def test_the_plan_is_trained(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["plan"] for rank in ranks)
    assert first["selected"] == second["selected"]
    for selected, rank0, rank1 in zip(first["selected"], first["epochs"], second["epochs"], strict=True):
        assert set(rank0) | set(rank1) == set(selected)
        assert len(rank0) == len(rank1) and len(set(rank0)) == len(rank0)
        assert len(set(rank0) & set(rank1)) <= 1  # 15 samples: one is trained by both
    assert [len(epoch) for epoch in first["epochs"]] == [24, 8, 8, 24]
    for record in (first, second):
        assert record["steps"] == 3 + 1 + 1 + 3 and record["rates"][-1] == 0.0 and record["scored"] == 48
    assert first["weights"] == second["weights"]


@pytest.mark.ddp
@pytest.mark.slow
def test_resuming(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert len(rank["resume"]) == 7
        for at, same in rank["resume"].items():
            assert all(same.values()), (at, same)


@pytest.mark.slow
def test_example_resumes(tmp_path: Path) -> None:
    example = ROOT / "examples" / "accelerate_loop.py"
    call = ("-W", "error", example, "--epochs", "7", "--checkpoint", "state")
    first = start(*call, cwd=tmp_path).splitlines()
    assert "after 112 of 112 planned steps, 39% of a full run's samples" in first[-1]
    again = start(*call, cwd=tmp_path).splitlines()
    assert "resumed at step 110" in again[-2] and again[-1] == first[-1]


@pytest.mark.ddp
@pytest.mark.slow
def test_example_with_two_processes(tmp_path: Path) -> None:
    example = ROOT / "examples" / "accelerate_loop.py"
    output = start(*TORCHRUN, example, "--epochs", "7", cwd=tmp_path)
    assert "56 of 56 planned steps, 39% of a full run's samples" in output.splitlines()[-1]
