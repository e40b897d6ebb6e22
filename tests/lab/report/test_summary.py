"""Summaries over seeds against loops."""

from __future__ import annotations

import statistics

import pytest

from dataprune.lab.report.summary import summarize, summarize_methods


def row(method: str, seed: int, accuracy: float, seconds: float = 2.0, **more: float) -> dict[str, object]:
    return {"method": method, "seed": seed, "accuracy": accuracy, "samples": 10 + seed, "steps": 5, "seconds": seconds,
            **more}  # fmt: skip


def test_lines_hold_means_and_deviations() -> None:
    rows = [row("emp", seed, value) | {"keep": keep} for keep in (0.1, 0.3) for seed, value in enumerate((0.5, 0.7))]
    lines = summarize(rows, ("keep", "method"))
    assert [(line["keep"], line["method"], line["seeds"]) for line in lines] == [(0.1, "emp", 2), (0.3, "emp", 2)]
    assert lines[0]["accuracy_mean"] == pytest.approx(0.6)
    assert lines[0]["accuracy_std"] == pytest.approx(statistics.stdev([0.5, 0.7]))
    assert (lines[0]["samples"], lines[0]["steps"], lines[0]["seconds"]) == (10, 5, 2.0)
    assert summarize(rows[:1], ("method",))[0]["accuracy_std"] == 0.0


def test_a_score_is_summarized_where_all_rows_have_it() -> None:
    rows = [row("emp", 0, 0.5, finetuned_accuracy=0.8), row("emp", 1, 0.5, finetuned_accuracy=0.9)]
    assert summarize(rows, ("method",))[0]["finetuned_accuracy_mean"] == pytest.approx(0.85)
    (line,) = summarize([*rows, row("emp", 2, 0.5)], ("method",))
    assert "finetuned_accuracy_mean" not in line and "val_accuracy_mean" not in line


def test_speedups_are_against_full_and_count_scoring() -> None:
    rows = [
        row("el2n", 0, 0.4, 1.0, scoring_seconds=3.0, scoring_samples=80),
        row("full", 0, 0.9, 4.0),
        row("full", 1, 0.9, 8.0),
    ]
    full, el2n = summarize_methods(rows, ["full", "emp", "el2n"])
    assert full["speedup"] == 1.0 and "scoring_seconds" not in full
    assert (el2n["speedup"], el2n["total_speedup"], el2n["scoring_samples"]) == (6.0, 1.5, 80)
    (alone,) = summarize_methods(rows[:1], ["el2n"])
    assert alone["speedup"] is None and alone["total_speedup"] is None
