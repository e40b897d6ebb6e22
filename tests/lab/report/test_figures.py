"""The figure: what is drawn, where it is written, and that it is the same for the same result."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from dataprune.lab.report.figures import _spread, accuracy_against_samples
from dataprune.lab.report.tables import comparison


def result(seeds: int = 3, methods: tuple[str, ...] = ("full", "short", "rs2", "emp")) -> dict[str, Any]:
    runs, summary = [], []
    for place, method in enumerate(methods):
        samples = 10_000 if method == "full" else 2_000
        for seed in range(seeds):
            runs.append({"method": method, "seed": seed, "accuracy": 0.9, "samples": samples, "reached_keep": 0.2})
        summary.append(
            {"method": method, "accuracy_mean": 0.9 - place / 50, "accuracy_std": 0.01, "samples": samples, "steps": 9,
             "seconds": 1.0, "speedup": None}
        )  # fmt: skip
    return {"data": "tiny", "model": "mlp", "keep": 0.2, "epochs": 5, "runs": runs, "summary": summary}


def test_svg_and_png_are_written_and_repeat(tmp_path: Path) -> None:
    files = accuracy_against_samples(result(), tmp_path / "accuracy")
    assert files == [tmp_path / "accuracy.svg", tmp_path / "accuracy.png"]
    assert b"<svg" in files[0].read_bytes() and files[1].read_bytes().startswith(b"\x89PNG")
    again = accuracy_against_samples(result(), tmp_path / "again")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accuracy.png", "accuracy.svg", "again.png", "again.svg",
    ]  # fmt: skip


def test_one_run_of_one_method_has_no_deviation(tmp_path: Path) -> None:
    accuracy_against_samples(result(1, ("emp",)), tmp_path / "accuracy")
    cells = list(comparison(result(1, ("emp",))).columns[1].cells)
    assert cells == ["90.00"]
    assert list(comparison(result(3, ("emp",))).columns[1].cells) == ["90.00 ± 1.00"]


def test_a_full_disk_leaves_the_former_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svg, _ = accuracy_against_samples(result(), tmp_path / "accuracy")
    former = svg.read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*accuracy.svg: No space left"):
        accuracy_against_samples(result(1), tmp_path / "accuracy")
    assert svg.read_bytes() == former and not list(tmp_path.glob("*.part"))


def test_equal_samples_stand_side_by_side() -> None:
    shifts = _spread([100.0, 20.0, 20.2, 20.1], 100.0)
    assert shifts[0] == 0
    assert len(set(shifts[1:])) == 3 and sum(shifts[1:]) == pytest.approx(0, abs=1e-9)
