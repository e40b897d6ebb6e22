"""Claims beside measurements: which runs are compared, how they are averaged, and how the table says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dataprune import METHODS, coresets
from dataprune.lab.report import claims
from dataprune.lab.report.claims import Claim, Mean
from dataprune.lab.report.pack import Entry, Run

BASELINES = ("full", "elfl")  # all the data; another name of rs2
GENERAL = ("top", "bottom", "stratified", "random_coreset")  # selectors of any score, and static_random by another name


def rows(**accuracies: list[float]) -> list[dict[str, Any]]:
    """Runs of 10 steps and 100 samples by method, a seed for each accuracy."""
    return [
        {"method": method, "seed": seed, "accuracy": value, "steps": 10, "samples": 100, "seconds": 2.0}
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def comparison(runs: list[dict[str, Any]], noise: float = 0.0, **more: Any) -> Entry:
    settings = {"label_noise": noise}
    run = Run("runs/a", Path("a"), settings, None, [], [], "rs2", 0)
    return Entry("compared", "compare.json", {"runs": runs, "keep": 0.3, **more}, [run], Path("compared"))


def measured(*entries: Entry, method: str = "emp") -> dict[str, Any]:
    [line] = claims.measure(entries, [Claim(method, "someone 2026")])
    return line["measured"]


def test_every_method_has_a_line_and_a_source() -> None:
    lines = claims.known()
    names = [line.method for line in lines]
    assert len(set(names)) == len(names)
    missing = {*METHODS, *coresets.METHODS} - {*BASELINES, *GENERAL} - set(names)
    assert not missing, "add to dataprune/lab/report/claims.yaml what their authors claim, and the source"
    for line in lines:
        assert line.source and (line.others is None) == (line.reported is None), line.method
        assert "|" not in f"{line.claim}{line.others}"


def test_differences_are_paired_by_seed_and_averaged_over_settings() -> None:
    first = comparison(rows(short=[0.5, 0.6], emp=[0.7, 0.6, 0.9]))  # the third seed has no pair
    second = comparison(rows(short=[0.5, 0.5], emp=[0.5, 0.6]))
    mean = measured(first, second)["steps"]["clean"]["short"]
    assert mean["mean"] == pytest.approx((0.1 + 0.05) / 2)
    assert (mean["least"], mean["most"]) == (pytest.approx(0.05), pytest.approx(0.1))
    assert mean["settings"] == 2 and mean["seeds"] == (2, 2)


def test_the_interval_of_one_setting_is_students() -> None:
    values = [0.01, 0.03, -0.02, 0.04]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean = Mean.of([values])
    assert mean is not None and (mean.low, mean.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_of_two_settings_is_welchs() -> None:
    """The half sum of two means is half of a difference, the second with its sign exchanged."""
    first, second = np.random.default_rng(0).normal(size=(2, 5)) * [[1.0], [4.0]]
    second = second[:3]
    reference = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    mean = Mean.of([first.tolist(), second.tolist()])
    assert mean is not None and (mean.low, mean.high) == (
        pytest.approx(reference.low / 2),
        pytest.approx(reference.high / 2),
    )


def test_the_interval_covers_the_mean_of_many_settings() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        means, spread = rng.normal(size=12), rng.uniform(0.1, 2, size=12)
        mean = Mean.of([(m + s * rng.normal(size=3)).tolist() for m, s in zip(means, spread)])
        assert mean is not None and mean.low is not None and mean.high is not None
        hits += mean.low <= means.mean() <= mean.high
    assert 0.92 < hits / 400 < 0.99


def test_a_setting_of_one_seed_takes_the_variance_of_the_others() -> None:
    with_one = Mean.of([[0.1, 0.3], [0.0, 0.1], [0.2]])
    assert with_one is not None and with_one.seeds == (1, 2) and with_one.low is not None
    error = np.sqrt(0.02 / 2 + 0.005 / 2 + (0.02 + 0.005) / 2) / 3
    freedom = (9 * error**2) ** 2 / ((0.02 / 2) ** 2 + (0.005 / 2) ** 2)
    assert with_one.mean - with_one.low == pytest.approx(stats.t.ppf(0.975, freedom) * error)
    alone = Mean.of([[0.2], [0.1]])
    assert alone is not None and alone.low is None and alone.mean == pytest.approx(0.15)
    equal = Mean.of([[0.1, 0.1]])
    assert equal is not None and equal.low == equal.high == pytest.approx(0.1)
    assert Mean.of([]) is None


def test_runs_of_other_steps_are_not_compared() -> None:
    runs = rows(short=[0.5, 0.5], emp=[0.7, 0.6])
    runs[-1]["steps"] = 11
    mean = measured(comparison(runs))["steps"]["clean"]["short"]
    assert mean["mean"] == pytest.approx(0.2) and mean["seeds"] == (1, 1) and mean["low"] is None


def test_wrong_labels_stand_apart() -> None:
    result = measured(
        comparison(rows(short=[0.5], emp=[0.7])), comparison(rows(short=[0.5], rs2=[0.6], emp=[0.4]), noise=0.2)
    )["steps"]
    assert result["clean"]["short"]["mean"] == pytest.approx(0.2) and result["clean"]["rs2"] is None
    assert result["noisy"]["short"]["mean"] == pytest.approx(-0.1)
    assert result["noisy"]["rs2"]["mean"] == pytest.approx(-0.2)


def test_equal_compute_needs_equal_samples_or_a_comparison_at_equal_flops() -> None:
    scored = rows(short=[0.5, 0.5], el2n=[0.6, 0.7])
    for row in scored[2:]:
        row |= {"scoring_samples": 300, "scoring_seconds": 4.0}
    result = measured(comparison(scored), method="el2n")
    assert result["steps"]["clean"]["short"]["mean"] == pytest.approx(0.15)
    assert result["flops"]["clean"]["short"] is None  # four times the compute
    assert result["compute"] == pytest.approx(4) and result["seconds"] == pytest.approx(3)
    for row in scored:
        row["samples"] = 400 if row["method"] == "short" else 100
    result = measured(comparison(scored, equal="flops"), method="el2n")
    assert result["steps"]["clean"]["short"] is None
    assert result["flops"]["clean"]["short"]["mean"] == pytest.approx(0.15)
    assert result["compute"] is None  # relative to `short` at equal steps


def test_samples_that_are_only_forwarded_are_compute() -> None:
    runs = rows(short=[0.5], emp=[0.6])
    runs[1]["forwarded_samples"] = 150
    result = measured(comparison(runs))
    assert result["compute"] == pytest.approx(1.5) and result["flops"]["clean"]["short"] is None


def test_what_coresets_cost_is_unknown_without_a_record() -> None:
    assert measured(comparison(rows(short=[0.5], el2n=[0.6])), method="el2n")["compute"] is None


def test_arms_of_a_paper_count_where_they_are_a_method_without_options() -> None:
    base = {"seed": 0, "steps": 10, "samples": 100, "seconds": 2.0, "keep": 0.3, "panel": "one"}
    result = {
        "plan": {
            "settings": {"epochs": 3},
            "panels": {"one": {"label-noise": 0.2}},
            "arms": {
                "short": {},
                "emp": {},
                "emp, wide": {"method": "emp", "option": {"beta": 9}},
                "loss": {"option": {}, "epochs": 3},
            },
        },
        "rows": [
            {**base, "arm": "short", "method": "short", "accuracy": 0.5},
            {**base, "arm": "emp", "method": "emp", "accuracy": 0.6},
            {**base, "arm": "emp, wide", "method": "emp", "accuracy": 0.9},
            {**base, "arm": "loss", "method": "loss", "accuracy": 0.9},
        ],
    }
    entry = Entry("paper", "result.json", result, [], Path("paper"))
    [setting] = claims.settings([entry])
    assert setting.name == "paper, one" and setting.noise == 0.2 and set(setting.rows) == {"short", "emp"}
    assert measured(entry)["steps"]["noisy"]["short"]["mean"] == pytest.approx(0.1)


def test_savings_are_quoted_and_their_budgets_are_settings() -> None:
    runs = [{**row, "budget": budget} for budget in (0.5, 0.7) for row in rows(short=[0.5], emp=[0.6])]
    saving = [
        {"method": "emp", "saved": 0.3, "low": 0.25, "high": 0.375, "beyond_short": {"saved": -0.1}},
        {"method": "short", "saved": None, "low": None, "high": None},
    ]
    entry = Entry("digits", "saving.json", {"runs": runs, "saving": saving}, [], Path("digits"))
    assert sorted(setting.keep for setting in claims.settings([entry])) == [0.5, 0.7]
    lines = claims.measure([entry], [Claim("emp", "x"), Claim("short", "x")])
    assert lines[0]["saved"] == [
        {"name": "digits", "saved": 0.3, "low": 0.25, "high": 0.375, "beyond_short": {"saved": -0.1}}
    ]
    head, cells = claims.rows(lines)
    column = head.index("saved at equal accuracy")
    assert [line[column] for line in cells] == ["digits: 30 % (25 to 38), −10 beyond short", "digits: not told"]


def test_results_without_a_baseline_measure_nothing() -> None:
    [line] = claims.measure([comparison(rows(emp=[0.5]))], [Claim("emp", "someone 2026", "all", "no", "others")])
    assert line["measured"] is None
    head, [cells] = claims.rows([line])
    assert cells == [
        "emp", "all (someone 2026)", "no (others)", *["not measured"] * 6, "0",
    ]  # fmt: skip
    assert len(head) == len(cells)


def test_the_table_says_what_was_measured() -> None:
    clean = comparison(rows(short=[0.5, 0.52], rs2=[0.51, 0.5], emp=[0.6, 0.61]))
    noisy = comparison(rows(short=[0.5], emp=[0.4]), noise=0.2)
    _, [cells] = claims.rows(claims.measure([clean, noisy], [Claim("emp", "someone 2026")]))
    assert cells[1:3] == ["nothing (someone 2026)", "none found"]
    assert cells[3:] == [
        "+9.5 (+3.1 to +15.9)\nwrong labels −10.0", "+10.0 (−2.7 to +22.7)", "the same", "not measured", "1 × short",
        "1 × short", "2 settings, 1 to 2 seeds",
    ]  # fmt: skip
    text = claims.markdown(claims.measure([clean, noisy], [Claim("emp", "someone 2026")]))
    assert "| `emp` | nothing (someone 2026) | none found | +9.5 (+3.1 to +15.9)<br>wrong labels −10.0 |" in text
