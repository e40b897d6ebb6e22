"""What every command does alike: notes, warnings, errors, interruptions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import QUICK, call, fails, run

from dataprune.cli.errors import INTERRUPTION
from dataprune.lab.data.named import Data
from dataprune.lab.training import build
from dataprune.lab.training import run as training


def test_notes_on_the_data_go_to_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    load = build.load_data

    def noted(settings: Any) -> Data:
        return load(settings)._replace(note="digits have no test split")

    for module in (build, training):
        monkeypatch.setattr(module, "load_data", noted)
    for command in (["train"], ["compare", "--methods", "emp", "--seeds", 1]):
        result = call(*command, *QUICK, "--json")
        assert result.stderr == "note: digits have no test split\n"
        json.loads(result.stdout)


@pytest.mark.filterwarnings("default")
def test_warnings_are_lines_on_stderr() -> None:
    short = ["--data", "digits", "--model", "mlp", "--epochs", 2, "--train-size", 320, "--keep", 0.3, "--json"]
    result = call("train", *short)
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: ") and "--warmup 0" in line
    json.loads(result.stdout)
    result = call("compare", *short, "--methods", "rs2,loss,emp", "--seeds", 1)  # once, however many runs it is true of
    assert result.stderr == f"{line}\n"
    json.loads(result.stdout)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fails(2, "is a file", "train", "--out", tmp_path / "file")
    done = run("-m", "dataprune", "train", "--out", tmp_path / "file", "--debug")
    assert done.returncode == 1 and done.stdout == ""
    assert "Traceback" in done.stderr and "is a file" in done.stderr


def test_an_interruption_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "_train_step", stop)
    for command in ("train", "compare"):
        result = call(command, *QUICK)
        assert result.exit_code == 130 and result.stdout == ""
        assert result.stderr == f"{INTERRUPTION}\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", [["train"], ["train", "--json"], ["compare", "--methods", "rs2", "--seeds", "1"]])
def test_a_closed_stdout_loses_nothing(command: list[str]) -> None:
    given = ["-m", "dataprune", *command, *QUICK, "--out", "out"]
    code = "import subprocess, sys; r = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE); r.stdout.close()"
    done = run("-c", f"{code}; sys.exit(r.wait())", sys.executable, *given)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("epoch ")]
    assert done.returncode == 1 and lines == [
        "error: stdout was closed before all was printed; results are written, and the same call prints them"
    ]
    again = run(*given)
    assert again.returncode == 0 and "accuracy" in again.stdout and "epoch" not in again.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "command",
    [
        "methods",
        pytest.param("methods --json", marks=pytest.mark.slow),
        "--help",
        pytest.param("select --help", marks=pytest.mark.slow),
        pytest.param("--version", marks=pytest.mark.slow),
        pytest.param("", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_full_disk_behind_stdout_is_one_line(command: str, unbuffered: str) -> None:
    call = [sys.executable, "-m", "dataprune", *command.split()]
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    line = "error: stdout failed (No space left on device) before all was printed; results are written, and the same"
    assert done.returncode == 1 and done.stderr == f"{line} call prints them\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", "train", "compare", "select"])
def test_help_on_an_ascii_terminal(command: str) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = run("-m", "dataprune", *command.split(), "--help", env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "Usage" in done.stdout and done.stdout.isascii()
