"""dataprune compare."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import QUICK, call, fails


@pytest.mark.slow
def test_compare_prints_a_table_or_json(tmp_path: Path) -> None:
    arguments = ["compare", *QUICK, "--methods", "full, short,emp", "--seeds", 2, "--out", tmp_path / "out"]
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "speed-up" in result.stdout and "2 seeds" in result.stdout and "accuracy.svg" in result.stdout
    assert "…" not in result.stdout
    as_json = call(*arguments, "--json")
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "out/compare.json").read_text())
    assert as_json.stderr == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".sweep.lock",
        "compare.json",
        "accuracy.svg",
        "accuracy.png",
        "figures",
        "report.html",
        "report.md",
        "runs",
        "sweep.json",
    }


def test_a_comparison_outlives_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataprune.lab.report import page

    def failing(*arguments: Any, **more: Any) -> Any:
        raise OSError("no space")

    monkeypatch.setattr(page, "write", failing)
    result = call("compare", *QUICK, "--methods", "emp", "--seeds", 1, "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0 and json.loads(result.stdout)["summary"][0]["method"] == "emp"
    assert result.stderr == (
        f"note: the report could not be written (no space); to write it later: dataprune report {tmp_path / 'out'}\n"
    )


def test_the_main_job_depends_on_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataprune.cli import compare
    from dataprune.lab.sweeps import sweep
    from dataprune.lab.training import build

    calls: list[Any] = []

    def stop(comparison: Any, *arguments: Any, **more: Any) -> None:
        calls.append(comparison)
        raise ValueError("stopped")

    monkeypatch.setattr(sweep, "carry_out", stop)
    monkeypatch.setattr(build, "load_data", lambda settings: tiny.data())
    monkeypatch.setattr(compare, "FASHION_MNIST", tmp_path / "none")
    names = ("data", "test_size", "train_size", "epochs", "keep", "batch_size")

    def job(*arguments: Any) -> dict[str, Any]:
        fails(1, "stopped", "compare", *arguments)
        comparison = calls.pop()
        given = {name: getattr(comparison.settings, name) for name in names}
        return {name: value for name, value in given.items() if value is not None} | {"seeds": len(comparison.seeds)}

    digits = {"data": "digits", "batch_size": 32, **compare.MAIN_JOB["digits"]}
    assert job() == digits
    assert job("--epochs", 7, "--seeds", 2) == {**digits, "epochs": 7, "seeds": 2}
    assert job("--budget", 0.5) == {name: value for name, value in digits.items() if name != "keep"}
    (tmp_path / "main.yaml").write_text("keep: 0.5\n")
    assert job("--config", tmp_path / "main.yaml") == {**digits, "keep": 0.5}
    plain = {"data": "digits", "epochs": 20, "batch_size": 32, "seeds": 3}
    assert job("--data", "digits") == plain
    assert job("--task", "contrastive")["seeds"] == 3
    monkeypatch.setattr(compare, "FASHION_MNIST", tmp_path)
    assert job() == {"data": "fashion-mnist", **compare.MAIN_JOB["fashion-mnist"]}
    assert job("--data", "digits") == plain


@pytest.mark.slow
def test_after_a_comparison_the_command_that_trains_the_best_method(tmp_path: Path) -> None:
    for methods in ("short,rs2", "aum"):
        out = tmp_path / methods
        shown = call("compare", *QUICK, "--methods", methods, "--seeds", 1, "--out", out)
        (line,) = [line for line in shown.stdout.splitlines() if line.startswith("highest mean accuracy")]
        words = shlex.split(line.partition("To train with it: ")[2])
        assert words[:2] == ["dataprune", "train"]
        rows = {row["method"]: row for row in json.loads((out / "compare.json").read_text())["runs"]}
        best = max(rows.values(), key=lambda row: row["accuracy"])
        trained = call(*words[1:], "--device", "cpu", "--json")
        assert trained.exit_code == 0, trained.output
        record = json.loads(trained.stdout)
        assert (record["steps"], record["accuracy"]) == (best["steps"], best["accuracy"])
    assert "highest" not in call("compare", *QUICK, "--methods", "full", "--seeds", 1).stdout


@pytest.mark.slow
def test_compare_at_equal_flops(tmp_path: Path) -> None:
    given = [
        "--methods",
        "full,short,el2n",
        "--seeds",
        1,
        "--score-epochs",
        1,
        "--keep",
        0.5,
        "--out",
        tmp_path / "out",
    ]
    shown = call("compare", *QUICK, *given, "--equal", "flops")
    assert shown.exit_code == 0, shown.output
    result = json.loads((tmp_path / "out/compare.json").read_text())
    steps = {row["method"]: row["steps"] for row in result["runs"]}
    assert steps["el2n"] < steps["short"] < steps["full"]
    assert "FLOPs" in shown.stdout and "highest mean accuracy at equal FLOPs" in shown.stdout
    assert "or as much compute with scoring (--equal flops)" in shown.stdout
    report = (tmp_path / "out/report.md").read_text()
    assert "| Equal FLOPs, all but full | passed |" in report and "| FLOPs |" in report
    fails(2, "equal was", "compare", *QUICK, *given)
