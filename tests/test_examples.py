"""The examples run as they are, as a user would run them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dataprune.lab.training.run import run as train
from dataprune.lab.training.settings import Settings

EXAMPLES = Path(__file__).parents[1] / "examples"
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def run(name: str, *arguments: str | Path, cwd: Path, folder: Path = EXAMPLES) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(folder / name), *arguments], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example in this process, where torch is loaded already, and returns what it prints."""

    def run_here(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_here


def test_every_example_is_run() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {
        "accelerate_loop.py", "hf_trainer.py", "instruction_tuning.py", "lightning_loop.py", "plain_loop.py",
        "prompts_loop.py", "prompts_trl.py", "ray_train.py", "tensors.py",
    }  # fmt: skip
    for name in ("test_hf_example.py", "test_lightning_example.py", "test_ray.py"):
        assert (Path(__file__).parent / "integrations" / name).exists()


def test_plain_loop_resumes(example: Callable[..., str]) -> None:
    first = example("plain_loop.py", "--epochs", "6", "--checkpoint", "state.pt")
    again = example("plain_loop.py", "--epochs", "6", "--checkpoint", "state.pt")  # from its last checkpoint
    assert "resumed at step" in again
    assert first.splitlines()[-1] == again.splitlines()[-1]


def test_tensors(example: Callable[..., str]) -> None:
    assert "epoch 9: kept 10%" in example("tensors.py")


@pytest.mark.parametrize("policy", ["greso", "filter_after"])
def test_prompts_loop(example: Callable[..., str], policy: str) -> None:
    output = example("prompts_loop.py", "--policy", policy, "--steps", "60")
    before, after = (float(text) for text in output.split(" in ")[0].removeprefix("success ").split(" -> "))
    rollouts = int(output.split(" steps and ")[1].split()[0])
    assert after > before and (rollouts == 60 * 32 * 8) == (policy == "greso")


@pytest.mark.slow
def test_prompts_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the extra trl is not installed: pip install -c constraints.txt -e '.[trl]'")
    first = run("prompts_trl.py", "--steps", "20", cwd=tmp_path).splitlines()[-1]
    again = run("prompts_trl.py", "--steps", "40", "--resume", cwd=tmp_path).splitlines()[-1]
    assert " in 20 steps and 1280 rollouts" in first and " in 40 steps and 2560 rollouts" in again


@pytest.mark.slow
def test_instruction_tuning(tmp_path: Path) -> None:
    pytest.importorskip(
        "transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'"
    )
    output = run("instruction_tuning.py", "--samples", "160", "--epochs", "4", cwd=tmp_path).splitlines()[-1]
    before, after = (float(text) for text in output.split(",")[0].split("answers ")[1].split(" -> "))
    assert after < before - 1 and "in 19 steps" in output  # 10 and thrice 3 of 16


@pytest.mark.slow
def test_entropy_benchmark(tmp_path: Path) -> None:
    small = ("--batch", "1", "--tokens", "512", "--vocabulary", "32000", "--rounds", "1")
    measured = json.loads(run("entropy.py", *small, cwd=tmp_path, folder=EXAMPLES.parent / "benchmarks"))
    assert measured["chunks_mib"] < measured["plain_mib"]


@pytest.mark.slow
def test_fast_path_benchmark(tmp_path: Path) -> None:
    small = ("--data", "synthetic", "--model", "small_cnn", "--size", "64", "--batch-size", "8", "--rounds", "2")
    output = run(
        "fast_path.py",
        "--device",
        "cpu",
        *small,
        "--out",
        "found.json",
        cwd=tmp_path,
        folder=EXAMPLES.parent / "benchmarks",
    )
    rows = {row["method"]: row for row in json.loads((tmp_path / "found.json").read_text())["models"][0]["rows"]}
    assert list(rows) == ["full, no pruner", "random, no pruner", "rs2", "loss", "emp", "infobatch"]
    assert all(name in output for name in rows)
    shares = {name: row["share_trained"] for name, row in rows.items()}
    assert shares["rs2"] == shares["loss"] == shares["emp"] == shares["random, no pruner"] == 16 / 64
    assert shares["full, no pruner"] == rows["full, no pruner"]["efficiency"] == 1
    for name in ("rs2", "loss", "emp", "infobatch"):
        assert rows[name]["rounds"] == 2
        assert 0 < rows[name]["calls_share"] < 1
        assert rows[name]["loss_seconds_per_sample"] > 0


@pytest.mark.slow
def test_the_picture_of_forgotten_digits(tmp_path: Path, data_folder: Path) -> None:
    settings = Settings(
        data="mnist", data_folder=str(data_folder / "mnist"), train_size=300, method="full", model="mlp", epochs=3,
        statistics="forgetting", device="cpu",
    )  # fmt: skip
    train(settings, tmp_path / "run")
    run("forgotten_digits.py", tmp_path / "run", tmp_path / "out", cwd=tmp_path, folder=EXPERIMENTS)
    record = json.loads((tmp_path / "out" / "forgotten.json").read_text())
    assert sum(record["samples_by_score"]) == 300 == record["samples"]
    assert (tmp_path / "out" / "forgotten.png").stat().st_size > 20_000
