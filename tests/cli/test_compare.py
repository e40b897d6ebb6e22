"""dataprune compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import QUICK, call


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
        "compare.json",
        "accuracy.svg",
        "accuracy.png",
        "figures",
        "report.html",
        "report.md",
        "runs",
    }


def test_a_comparison_outlives_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataprune.lab.report import page

    def failing(*arguments: Any, **more: Any) -> Any:
        raise OSError("no space")

    monkeypatch.setattr(page, "write", failing)
    result = call("compare", *QUICK, "--methods", "emp", "--seeds", 1, "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0 and json.loads(result.stdout)["summary"][0]["method"] == "emp"
    assert result.stderr == (
        f"note: the report could not be written (no space); once that is mended: dataprune report {tmp_path / 'out'}\n"
    )
