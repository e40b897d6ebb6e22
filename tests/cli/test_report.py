"""dataprune report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import QUICK, call, fails


@pytest.mark.slow
def test_report_of_single_runs_and_wrong_calls(tmp_path: Path) -> None:
    for method in ("full", "emp"):
        assert call("train", *QUICK, "--method", method, "--out", tmp_path / method).exit_code == 0
    result = call("report", tmp_path / "full", tmp_path / "emp", "--out", tmp_path / "out", "--watts", 90)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"report: {tmp_path}/out/report.html, as Markdown: {tmp_path}/out/report.md\n"
    page = (tmp_path / "out/report.html").read_text()
    assert "digits, mlp" in page and "time × 90 W (given with --watts)" in page
    result = call("report", tmp_path / "emp", "--json")
    assert json.loads(result.stdout)["page"] == str(tmp_path / "emp/report.html")
    assert "no run of full to compare with" in (tmp_path / "emp/report.html").read_text()
    fails(2, "nowhere is no folder: give folders of `dataprune compare` or `train`", "report", "nowhere")
    fails(2, "--watts must be a positive number, got -1", "report", tmp_path / "emp", "--watts", -1)
    fails(2, "Missing argument 'RUNS...'", "report")
    (tmp_path / "notes.csv").write_text("a,b\n")
    fails(2, "notes.csv is no folder: give folders of", "report", tmp_path / "notes.csv")
    (tmp_path / "emp/metrics.json").write_text("{")
    fails(1, "metrics.json is damaged", "report", tmp_path / "emp")
