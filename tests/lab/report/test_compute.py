"""Shares of the compute of `full`, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataprune.errors import UsageError
from dataprune.lab.report.compute import compute, compute_share, reached, relative_flops, scoring_compute, short_of_plan
from dataprune.lab.report.tables import comparison, equal_flops, plain

FULL = {"method": "full", "samples": 1200}


def test_a_sample_that_is_only_forwarded_is_a_third_of_a_trained_one() -> None:
    assert compute_share(FULL, FULL) == 1.0
    assert compute_share({"method": "emp", "samples": 300}, FULL) == 0.25
    assert compute_share({"method": "emp", "samples": 300, "forwarded_samples": 900}, FULL) == 600 / 1200


def test_scoring_counts_with_the_ratio_of_the_models() -> None:
    row = {"method": "k_center", "samples": 100, "scoring_samples": 240, "scoring_forwarded_samples": 60}
    assert scoring_compute(row) == 240 + 20 and compute(row) == 100 + 260
    assert scoring_compute({**row, "scoring_flops": 0.5}) == 130
    assert compute_share({**row, "scoring_flops": 0.5}, FULL) == (100 + 130) / 1200
    assert scoring_compute(FULL) == 0


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"method": "el2n", "samples": 100}, None),  # trained on a coreset that came from somewhere
        ({"method": "el2n", "samples": 100, "scoring_samples": 200}, 300),  # its scores came from training alone
        ({"method": "k_center", "samples": 100, "scoring_samples": 200}, None),  # before passes were counted
        ({"method": "random_coreset", "samples": 100}, 100),
    ],
)
def test_what_is_not_known_is_not_told(row: dict[str, Any], expected: float | None) -> None:
    assert compute(row) == expected
    assert compute_share(row, FULL) == (None if expected is None else expected / 1200)


def test_models_are_compared_by_what_their_layers_multiply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_of_two_sizes.py").write_text(
        "from torch import nn\n"
        "def small(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], classes))\n"
        "def large(shape, classes): return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), "
        "nn.Linear(6 * (shape[1] - 2) * (shape[2] - 2), classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    small, large = (f"models_of_two_sizes:{name}" for name in ("small", "large"))
    multiplied = 6 * 36 * 9 + 6 * 36 * 10  # of the convolution at 36 places, and of the layer behind it
    assert relative_flops(large, small, (1, 8, 8), 10) == pytest.approx(multiplied / (64 * 10))
    assert relative_flops(small, small, (1, 8, 8), 10) == 1.0
    with pytest.raises(UsageError, match="unknown model"):
        relative_flops("mpl", small, (1, 8, 8), 10)


def result(**rows: dict[str, Any]) -> dict[str, Any]:
    """A comparison at equal FLOPs of a plan of 30 steps of 10 samples."""
    runs = []
    for method, row in {"full": {"samples": 1200}, **rows}.items():
        share = compute_share({"method": method, **row}, FULL)
        runs.append({"method": method, "seed": 0, "accuracy": 0.5, "seconds": 1.0, "reached_keep": 0.1, **row})
        runs[-1] |= {"flops": share, "steps": row["samples"] // 10}
    lines = [{**row, "accuracy_mean": 0.5, "speedup": 1.0} for row in runs]
    about = {"data": "digits", "model": "mlp", "epochs": 3, "keep": 0.1, "planned_flops": 0.25, "equal": "flops"}
    return {**about, "runs": runs, "summary": lines}


def test_equal_flops_are_reached_up_to_a_step() -> None:
    within = {"samples": 190, "scoring_samples": 100}  # 290 of 300: one more step would be all
    beyond = {"samples": 180, "scoring_samples": 100}
    made = result(short={"samples": 300}, el2n=within, aum=beyond, emp={"samples": 300, "forwarded_samples": 90})
    assert [reached(made, row) for row in made["runs"]] == [False, True, True, False, False]
    assert short_of_plan(made) == ["aum 23.3 %", "emp 27.5 %"]
    text = "Every run but full was given 25.0 % of full's FLOPs, scoring included."
    assert equal_flops(made) == f"{text} Another share was reached by aum 23.3 % and emp 27.5 %."
    assert equal_flops(result(short={"samples": 300})) == text
    assert not reached({**made, "equal": "steps"}, made["runs"][1])


def test_the_table_shows_shares_of_full() -> None:
    shown = plain(comparison(result(short={"samples": 300}, k_center={"samples": 100, "scoring_samples": 240})))
    assert "FLOPs" in shown and "100 %" in shown and "25.0 %" in shown and "–" in shown
    assert "Another share was reached by k_center –." in " ".join(shown.split())
