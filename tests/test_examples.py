"""The examples run as they are, as a user would run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataprune.training.fit import fit
from dataprune.training.settings import Settings

EXAMPLES = Path(__file__).parents[1] / "examples"
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def run(name: str, *arguments: str | Path, cwd: Path, folder: Path = EXAMPLES) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(folder / name), *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {"hf_trainer.py", "plain_loop.py", "tensors.py"}
    assert (Path(__file__).parent / "integrations" / "test_hf_example.py").exists()


def test_plain_loop_resumes(tmp_path: Path) -> None:
    first = run("plain_loop.py", "--epochs", "6", "--checkpoint", "state.pt", cwd=tmp_path)
    again = run("plain_loop.py", "--epochs", "6", "--checkpoint", "state.pt", cwd=tmp_path)  # from its last checkpoint
    assert "resumed at step" in again
    assert first.splitlines()[-1] == again.splitlines()[-1]


def test_tensors(tmp_path: Path) -> None:
    assert "epoch 9: kept 10%" in run("tensors.py", cwd=tmp_path)


@pytest.mark.slow
def test_the_picture_of_forgotten_digits(tmp_path: Path, data_folder: Path) -> None:
    settings = Settings(
        data="mnist", data_folder=str(data_folder / "mnist"), train_size=300, method="full", model="mlp", epochs=3,
        statistics="forgetting", device="cpu",
    )  # fmt: skip
    fit(settings, tmp_path / "run")
    run("forgotten_digits.py", tmp_path / "run", tmp_path / "out", cwd=tmp_path, folder=EXPERIMENTS)
    record = json.loads((tmp_path / "out" / "forgotten.json").read_text())
    assert sum(record["samples_by_score"]) == 300 == record["samples"]
    assert (tmp_path / "out" / "forgotten.png").stat().st_size > 20_000
