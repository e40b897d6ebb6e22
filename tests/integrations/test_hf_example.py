"""The example and the page run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")


ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / "hf_trainer.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"DATAPRUNE_DATA": str(cwd), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_example_resumes(tmp_path: Path) -> None:
    first = run("--epochs", "4", cwd=tmp_path)
    assert "on 2470 samples trained in 80 steps, 52% fewer than in full epochs" in first
    assert sorted(path.name for path in (tmp_path / "runs/hf_trainer").iterdir()) == ["checkpoint-67", "checkpoint-80"]
    assert run("--epochs", "4", "--resume", cwd=tmp_path) == first
