"""The figure: what is drawn, where it is written, and that it is the same for the same result."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from dataprune.lab.report import plots
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
    files = plots.write(plots.accuracy(result()), tmp_path / "accuracy")
    assert files == [tmp_path / "accuracy.svg", tmp_path / "accuracy.png"]
    assert b"<svg" in files[0].read_bytes() and files[1].read_bytes().startswith(b"\x89PNG")
    again = plots.write(plots.accuracy(result()), tmp_path / "again")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accuracy.png", "accuracy.svg", "again.png", "again.svg",
    ]  # fmt: skip


def test_one_run_of_one_method_has_no_deviation(tmp_path: Path) -> None:
    plots.write(plots.accuracy(result(1, ("emp",))), tmp_path / "accuracy")
    cells = list(comparison(result(1, ("emp",))).columns[1].cells)
    assert cells == ["90.00"]
    assert list(comparison(result(3, ("emp",))).columns[1].cells) == ["90.00 ± 1.00"]


def test_a_full_disk_leaves_the_former_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svg, _ = plots.write(plots.accuracy(result()), tmp_path / "accuracy")
    former = svg.read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*accuracy.svg: No space left"):
        plots.write(plots.accuracy(result(1)), tmp_path / "accuracy")
    assert svg.read_bytes() == former and not list(tmp_path.glob("*.part"))


def test_points_stand_at_their_samples_and_accuracies() -> None:
    made = result()
    figure = plots.accuracy(made)
    (axes,) = figure.axes
    lines = [np.stack([line.get_xdata(orig=False), line.get_ydata(orig=False)], 1).tolist() for line in axes.lines]
    points = {tuple(line[0]) for line in lines if len(line) == 1}
    assert {(line["samples"], 100 * line["accuracy_mean"]) for line in made["summary"]} <= points  # others are caps
    assert [line for line in lines if [x for x, _ in line] == [0, 1]] == [[[0, 90], [1, 90]]]  # full
    assert axes.get_title(loc="left") == "tiny, mlp: 5 epochs, keep 0.2, 3 seeds"
    assert {text.get_text().split()[0] for text in axes.texts} == {"full", "short", "rs2", "emp"}


def test_a_method_far_below_does_not_flatten_the_others() -> None:
    made = result()
    made["summary"][3]["accuracy_mean"] = 0.1
    (axes,) = plots.accuracy(made).axes
    low, _ = axes.get_ylim()
    assert low > 80 and "emp  10.0 ± 1.0 (below the axis)" in {text.get_text() for text in axes.texts}


def test_labels_of_equal_methods_do_not_overlap() -> None:
    made = result(methods=tuple(f"m{place}" for place in range(12)))
    for line in made["summary"]:
        line["accuracy_mean"] = 0.9
    (axes,) = plots.accuracy(made).axes
    places = sorted(text.get_position()[1] for text in axes.texts)
    assert min(after - before for before, after in itertools.pairwise(places)) > 0
