"""Wrong calls and broken files end in one line and an exit code."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from command_line import QUICK, call, fails, run

from dataprune import files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comapre"], "Did you mean 'compare'"),
        (["train", "--kep", "1"], "--kep"),
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--keep", "0"], "--keep is a fraction in (0, 1], got 0.0"),
        (["train", "--keep", "1.2"], "--keep is a fraction in (0, 1], got 1.2"),
        (["train", "--method", "memory", "--keep", "500"], "--keep is a fraction in (0, 1] with memory, got 500"),
        (["train", "--method", "static_random", "--keep", "50000"], "keep asks for 50000 samples, there are"),
        (["compare", "--keep", "500"], "--keep is a fraction in (0, 1]"),
        (["train", "--method", "epm"], "did you mean 'emp'?"),
        (["train", "--data", "digts"], "did you mean 'digits'?"),
        (["train", "--model", "lenett"], "did you mean 'lenet'?"),
        (["train", "--model", "no_such_module:f"], "no_such_module"),
        (["train", "--method", "emp", "--option", "betta=1"], "did you mean 'beta'?"),
        (["train", "--optimizer", "sdg"], "did you mean 'sgd'?"),
        (["train", "--device", "tpu"], "no device 'tpu'"),
        (["train", "--keep", "0.01"], "fewer than one batch of 32"),
        (["train", "--steps", "100000"], "raise --epochs"),
        (["compare", "--methods", "emp,infobach"], "did you mean 'infobatch'?"),
        (["compare", "--methods", ","], "at least one method"),
        (["compare", "--seeds", "0"], "--seeds"),
        (["compare", "--data", "digits", "--keep", "0.01"], "fewer than one batch of 32"),
        (["compare", "--tune-lr", "0.1,x"], "--tune-lr takes comma-separated numbers"),
        (["compare", "--tune-lr", "0.1,0.2"], "add --val-fraction"),
        (["compare", "--methods", "k_centre"], "did you mean 'k_center'?"),
        (["compare", "--methods", "glister"], "add --val-fraction"),
        (["compare", "--methods", "ccs", "--option", "ccs.cutof=0.1"], "did you mean 'cutoff'?"),
        (["compare", "--methods", "tdds", "--score-epochs", "5"], "--option tdds.window=3"),
        (["compare", "--methods", "top"], "top reads a score: choose one with --option top.statistic=NAME"),
        (["train", "--selection", "nowhere.safetensors"], "cannot read the coreset nowhere.safetensors"),
        (["train", "--strategy", "P"], "give --selection FILE"),
        (["train", "--method", "fixed"], "needs --selection FILE"),
        (["train", "--method", "emp", "--selection", "x"], "leave --method emp out"),
        (["train", "--selection", "x", "--keep", "0.1"], "leave --keep and --budget out"),
        (["score", "--statistics", "aumm"], "did you mean 'aum'?"),
        (["score", "--statistics", "aum,aum"], "aum is named twice"),
        (["score", "--option", "tdds.windw=3"], "did you mean 'window'?"),
        (["score", "--option", "tdds.window=1"], "window must be a whole number of at least 2"),
        (["score", "--statistics", "tdds", "--epochs", "6"], "--option tdds.window=3"),
        (["select", "--scores", "nowhere", "--method", "el2n", "--keep", "0.1"], "there is no nowhere"),
        (["select", "--scores", ".", "--method", "el2n", "--keep", "0.1"], "no run of `dataprune train` or `score`"),
        (["select", "--scores", ".", "--method", "el3n", "--keep", "0.1"], "did you mean 'el2n'?"),
        (["select", "--scores", ".", "--method", "el2n"], "--keep"),
        (["compare", "--equal", "flop"], "did you mean 'flops'?"),
        (["compare", "--methods", "el2n", "--keep", "0.3", "--equal", "flops"], "el2n: scoring costs as much as"),
        (["train", "--count-forwards"], "counts against --steps: give it"),
        (["compare", "--engine", "rey"], "did you mean 'ray'"),
        (["compare", "--address", "10.0.0.1:6379"], "add --engine ray"),
    ],
)
def test_wrong_calls_end_in_one_line(arguments: list[str], message: str) -> None:
    fails(2, message, *arguments)


def test_an_empty_or_unreadable_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(1, "empty", "train", "--data", tmp_path / "empty")
    fails(1, "none", "train", "--data", tmp_path / "none")
    if os.geteuid():
        (tmp_path / "empty").chmod(0)
        fails(1, "empty", "train", "--data", tmp_path / "empty")


def test_out_is_a_file_or_holds_another_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    fails(2, "is a file", "train", *QUICK, "--out", tmp_path / "file")
    fails(2, "is a file", "compare", *QUICK, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert call("train", *QUICK, "--out", tmp_path / "out").exit_code == 0
    fails(2, "other settings (lr)", "train", *QUICK, "--lr", 0.2, "--out", tmp_path / "out")


def test_damaged_files(tmp_path: Path) -> None:
    assert call("train", *QUICK, "--out", tmp_path).exit_code == 0
    (tmp_path / "metrics.json").write_text('{"method": "em')
    fails(1, "metrics.json is damaged", "train", *QUICK, "--out", tmp_path)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 half a file")
    fails(1, "checkpoint.pt is damaged", "train", *QUICK, "--out", tmp_path)
    (tmp_path / "config.json").write_text("{")
    fails(1, "config.json is damaged", "train", *QUICK, "--out", tmp_path)


def test_a_run_that_diverges(tmp_path: Path) -> None:
    fails(1, "lower the learning rate", "train", *QUICK, "--lr", "1e6")


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes, write: Any = files.write_bytes) -> None:
        if path.name == "selection_counts.safetensors":
            raise files.unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write(path, content)

    compare = ["compare", *QUICK, "--methods", "full,emp", "--seeds", 1, "--out", tmp_path / "out"]
    assert call(*compare[:-4], "--seeds", 1, "--out", tmp_path / "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", full)
        fails(1, "No space left on device", *compare)
    assert call(*compare).exit_code == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_files_that_may_not_grow(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.argv = ['dataprune', *sys.argv[1:]]\n"
        "from dataprune.cli import main; main()"
    )
    arguments = ["train", *QUICK, "--checkpoint-every", "5", "--out", out]
    done = run("-B", "-c", code, *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "cannot write" in done.stderr and "File too large" in done.stderr
    assert not list(out.glob("*.part")) and files.read_json(out / "config.json")["epochs"] == 4
    assert call(*arguments).exit_code == 0


@pytest.mark.parametrize("command", [["train", *QUICK], ["compare", *QUICK], ["score", *QUICK[:6]], ["report", "."]])
@pytest.mark.parametrize("name", ["", "  ", os.fsdecode(b"caf\xe9")])
def test_out_must_have_a_name_that_can_be_written(command: list[str], name: str) -> None:
    fails(2, "is not UTF-8" if name.strip() else "it names nothing", *command, "--out", name)
    assert not list(Path().iterdir())
    Path("config.yaml").write_text("out: ''\n")
    if command[0] != "report":
        fails(2, "it names nothing", *command, "--config", "config.yaml")
