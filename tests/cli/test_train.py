"""dataprune train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import QUICK, call, fails, run


@pytest.mark.slow
def test_train_as_a_module_prints_its_result_on_stdout(tmp_path: Path) -> None:
    done = run("-m", "dataprune", "train", *QUICK, "--json", "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out/metrics.json").read_text())
    again = call("train", *QUICK, "--out", tmp_path / "out")  # a finished run is only read
    assert again.exit_code == 0 and again.stderr.startswith("note: this run was finished before")
    assert again.stdout.startswith("learnability: accuracy 0.") and again.stdout.endswith(f"run: {tmp_path / 'out'}\n")


def test_train_continues_in_its_default_folder(tmp_path: Path) -> None:
    first = call("train", *QUICK, "--json")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("train-digits-learnability-seed0-")
    assert call("train", *QUICK, "--json").stdout == first.stdout
    assert call("train", *QUICK, "--seed", 1).exit_code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.ddp
def test_torchrun_prints_once(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "dataprune", "train"]
    done = run(*launch, *QUICK, "--batch-size", 16, "--json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["world_size"] == 2
    wrong = run(*launch, *QUICK, "--keep", 7)
    assert wrong.returncode != 0 and wrong.stdout == ""
    assert wrong.stderr.count("error: --keep is a fraction") == 1


def test_train_chooses_inside_the_batch(tmp_path: Path) -> None:
    result = call("train", *QUICK, "--online", "loss", "--option", "sample=true", "--json")
    assert result.exit_code == 0, result.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("train-digits-online:loss-seed0-")
    record = json.loads(result.stdout)
    steps = 4 * (320 // 107)  # super-batches of round(32 / 0.3)
    assert (record["method"], record["samples"], record["forwarded_samples"]) == (
        "online:loss",
        32 * steps,
        107 * steps,
    )
    config = tmp_path / "online.yaml"
    config.write_text("online: loss\noption: {sample: true}\n")
    again = call("train", *QUICK, "--config", config)
    assert again.exit_code == 0 and again.stderr.startswith("note: this run was finished before")


def test_train_refuses_two_methods() -> None:
    fails(2, "--online loss takes the place of --method: leave --method emp out", "train", *QUICK, "--online", "loss",
          "--method", "emp")  # fmt: skip
    fails(2, "unknown online recipe 'los'; did you mean 'loss'?", "train", *QUICK, "--online", "los")
    fails(2, "online:loss: every batch is chosen alike", "train", *QUICK, "--online", "loss", "--warmup", 2)
