"""`dataprune joint`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import call, fails
from tiny_joint import made_up

from dataprune import files

QUICK = ("--model", "mlp", "--train-size", 320, "--test-size", 60, "--epochs", 2, "--score-epochs", 2, "--ratios", 0.2,
         "--finetune-epochs", 1, "--amounts", "0,0.5", "--lr", 0.05, "--device", "cpu")  # fmt: skip


@pytest.mark.slow
def test_the_command_continues_in_its_default_folder(tmp_path: Path) -> None:
    first = call("joint", *QUICK, "--seeds", 1)
    assert first.exit_code == 0, first.output
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("joint-digits-") and "high − base" in first.stdout and "joint.json" in first.stdout
    names = ("fine_tuning", "before_and_after", "flops", "sparsity")
    figures = [out / f"{name}{suffix}" for name in names for suffix in (".svg", ".png")]
    assert all(file.exists() for file in figures)
    second = call("joint", *QUICK, "--seeds", 2, "--json")
    assert second.exit_code == 0 and json.loads(second.stdout) == json.loads((out / "joint.json").read_text())
    assert json.loads(second.stdout)["grid"]["seeds"] == [0, 1]
    before = (out / "joint.json").read_bytes()
    shown = call("joint", "--table", "--out", out)
    assert shown.exit_code == 0 and "paired t-test over 2 seeds" in " ".join(shown.stdout.split())
    assert (out / "joint.json").read_bytes() == before


def test_the_command_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "model: mlp\ntrain-size: 320\nepochs: 1\nscore-epochs: 2\nfinetune-epochs: 1\nratios: 0.5\namounts: 0,0.5\n"
        "data-method: emp\nseeds: 1\nreinitialize: true\nfinetune-on: coreset\nwarmup: 0\n"
    )
    done = call("joint", "--config", tmp_path / "grid.yaml", "--out", tmp_path / "out", "--json", "--lr", 0.05)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["grid"] == {"arms": ["emp"], "ratios": [0.5], "amounts": [0.0, 0.5], "seeds": [0]}
    assert result["reinitialize"] and result["finetune_on"] == "coreset" and result["epochs"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--amounts", "0.2,1"), "--amounts are shares of the weights in [0, 1), got 1"),
        (("--amounts", "a"), "--amounts takes comma-separated numbers, got 'a'"),
        (("--ratios", "1.5"), "--ratios are fractions of the data in (0, 1), got 1.5"),
        (("--table", "--out", "nowhere"), "nowhere/joint.json does not exist"),
        (("--data-method", "epm"), "did you mean 'emp'"),
    ],
)
def test_wrong_calls_end_in_one_line(arguments: tuple, message: str) -> None:
    fails(2, message, "joint", *arguments)


def test_the_table_of_an_unfinished_grid_says_what_is_missing(tmp_path: Path) -> None:
    result = made_up()
    del result["cells"][4]
    files.write_json(tmp_path / "joint.json", result)
    shown = call("joint", "--table", "--out", tmp_path)
    assert shown.exit_code == 2 and shown.stdout == ""
    assert "1 of 30 cells are missing (low ratio 0.5 amount 0 seed 0)" in shown.stderr
    assert not list(tmp_path.glob("*.svg"))


@pytest.mark.slow
@pytest.mark.ddp
def test_parallel_jobs_write_the_same_results(tmp_path: Path) -> None:
    for name, more in (("one", ()), ("two", ("--jobs", 2))):
        done = call("joint", *QUICK, "--seeds", 1, "--out", tmp_path / name, "--json", *more)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "one/joint.json").read_text() == (tmp_path / "two/joint.json").read_text()
    assert call("joint", *QUICK, "--engine", "rai").exit_code == 2
