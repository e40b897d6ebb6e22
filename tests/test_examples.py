"""The examples run as they are, as a user would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {"plain_loop.py", "tensors.py"}


def test_plain_loop_resumes(tmp_path: Path) -> None:
    first = run("plain_loop.py", "--epochs", "6", "--checkpoint", "state.pt", cwd=tmp_path)
    again = run("plain_loop.py", "--epochs", "6", "--checkpoint", "state.pt", cwd=tmp_path)  # from its last checkpoint
    assert "resumed at step" in again
    assert first.splitlines()[-1] == again.splitlines()[-1]


def test_tensors(tmp_path: Path) -> None:
    assert "epoch 9: kept 10%" in run("tensors.py", cwd=tmp_path)
