"""Two ranks under Lightning's DDP: no sample twice, none missing, the same run after resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "lightning", reason="the extra lightning is not installed: pip install -c constraints.txt -e '.[lightning]'"
)

pytestmark = [pytest.mark.ddp, pytest.mark.slow]

SCRIPT = Path(__file__).parent / "lightning_ranks.py"


def launch(out: Path, name: str) -> list[Any]:
    """What each rank found."""
    (out / name).mkdir()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(out), name],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"{name}{rank}.json").read_text()) for rank in range(2)]


def test_lightnings_own_sampler_breaks_pruning(tmp_path: Path) -> None:
    outcomes = launch(tmp_path, "naive")
    assert any("Error" in rank for rank in outcomes if isinstance(rank, str)), outcomes


def test_lightnings_own_sampler_is_refused(tmp_path: Path) -> None:
    for rank in launch(tmp_path, "refused")[:1]:
        assert "Trainer(use_distributed_sampler=False)" in rank


@pytest.mark.parametrize(
    ("name", "shares", "steps"),
    [("plan", [24, 8, 8, 24], 3 + 1 + 1 + 3), ("grows", [6, 12, 18, 24], 1 + 1 + 2 + 2), ("decides", None, None)],
)
def test_the_plan_is_trained(tmp_path: Path, name: str, shares: list[int] | None, steps: int | None) -> None:
    first, second = launch(tmp_path, name)
    assert first["selected"] == second["selected"]
    for selected, rank0, rank1 in zip(first["selected"], first["epochs"], second["epochs"], strict=True):
        assert set(rank0) | set(rank1) == set(selected)
        assert len(rank0) == len(rank1) == -(-len(selected) // 2) and len(set(rank0)) == len(rank0)
        assert len(set(rank0) & set(rank1)) <= 1  # an odd number: one is trained by both
    assert first["steps"] == second["steps"] and first["samples"] == 2 * sum(map(len, first["epochs"]))
    if shares is not None:
        assert [len(epoch) for epoch in first["epochs"]] == shares
        assert first["steps"] == steps and first["rate"] == second["rate"] == 0.0


def test_resuming(tmp_path: Path) -> None:
    for rank in launch(tmp_path, "resume"):
        assert len(rank) == 7
        for at, same in rank.items():
            assert all(same.values()), (at, same)
