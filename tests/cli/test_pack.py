"""dataprune pack."""

from __future__ import annotations

from pathlib import Path

from command_line import QUICK, call, fails

from dataprune.lab.report import pack


def test_a_run_is_packed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert call("train", *QUICK, "--method", "rs2", "--out", folder).exit_code == 0
    packed = call("pack", folder)
    assert packed.exit_code == 0 and packed.stdout.startswith(f"packed: {folder}.json (")
    assert [entry.name for entry in pack.read(tmp_path / "run.json")] == ["run"]
    reported = call("report", tmp_path / "run.json", "--out", tmp_path / "report")
    assert reported.exit_code == 0 and (tmp_path / "report/report.html").exists()
    named = call("pack", folder, "--out", tmp_path / "results" / "name.json")
    assert named.exit_code == 0 and (tmp_path / "results" / "name.md").exists()


def test_a_folder_without_results(tmp_path: Path) -> None:
    fails(2, "holds no results", "pack", tmp_path)
