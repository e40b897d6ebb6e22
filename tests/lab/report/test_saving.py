"""What is saved at equal accuracy: each statistic against a slow form of its definition, and the error it controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune.lab.report import saving, significance

stats = pytest.importorskip("scipy.stats")
BUDGETS = (0.2, 0.4, 0.6, 0.8)
MARGIN = 0.003


def rows(**accuracies: Mapping[float, Sequence[float]]) -> list[dict[str, Any]]:
    """Rows with accuracies by method and budget, one for each seed; a run's samples are in proportion to its budget."""
    return [
        {
            "method": method, "budget": budget, "seed": seed, "accuracy": value,
            "samples": 1000 * budget, "steps": 100 * budget, "seconds": 10 * budget,
        }
        for method, by_budget in accuracies.items()
        for budget, values in by_budget.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip


def curve(*means: float, spread: float = 0.0005) -> dict[float, list[float]]:
    """Accuracies of three seeds at the budgets, so many points above 0.9."""
    return {budget: [0.9 + mean / 100 + at * spread for at in (-1, 0, 1)] for budget, mean in zip(BUDGETS, means)}


FULL = {1.0: [0.899, 0.9, 0.901]}  # of each seed, in the order of `curve`


def summary(**accuracies: Mapping[float, Sequence[float]]) -> dict[str, Any]:
    return saving.summarize(rows(full=FULL, **accuracies), margin=MARGIN, held_out=1_000_000)


def line(content: Mapping[str, Any], method: str) -> dict[str, Any]:
    (found,) = [line for line in content["saving"] if line["method"] == method]
    return found


# -- the monotone fit -------------------------------------------------------------------------------------------------


def pooled(values: Sequence[int], weights: Sequence[int]) -> list[list[int]]:
    """Places of the pools of adjacent violators, in exact numbers."""
    pools: list[list[int]] = []
    mean = lambda pool: Fraction(sum(values[at] * weights[at] for at in pool), sum(weights[at] for at in pool))  # noqa: E731
    for place in range(len(values)):
        pools.append([place])
        while len(pools) > 1 and mean(pools[-2]) >= mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return pools


@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 5)), min_size=1, max_size=9))
def test_the_fit_pools_adjacent_violators(pairs: list[tuple[int, int]]) -> None:
    values, weights = (list(column) for column in zip(*pairs))
    fit, pools = saving.monotone(np.array(values, dtype=float), np.array(weights, dtype=float))
    for pool in pooled(values, weights):
        total = sum(weights[at] for at in pool)
        for place in pool:
            assert fit[place] == pytest.approx(sum(values[at] * weights[at] for at in pool) / total)
            assert pools[place] == pytest.approx([weights[at] / total * (at in pool) for at in range(len(values))])


def test_a_fit_of_many_is_the_fit_of_each() -> None:
    random = np.random.default_rng(0)
    values, weight = random.normal(size=(5, 3, 6)), random.uniform(0.5, 2, 6)
    fit, pools = saving.monotone(values, weight)
    for at in np.ndindex(5, 3):
        one = saving.monotone(values[at], weight)
        assert np.array_equal(fit[at], one[0]) and np.array_equal(pools[at], one[1])


# -- the test ---------------------------------------------------------------------------------------------------------


def level_from(differences: Sequence[Sequence[float]], prior: float, margin: float) -> int:
    """Place of the smallest budget from which all are level, of differences by budget; their number where none is."""
    tests = []
    for values in differences:
        n = len(values)
        variance = (4 * prior + (n - 1) * np.var(values, ddof=1)) / (4 + n - 1)
        tests.append((np.mean(values), math.sqrt(variance / n), stats.t.ppf(0.95, 4 + n - 1)))
    scale = 10**12
    pools = pooled([round(scale * mean) for mean, *_ in tests], [round(scale / error**2) for _, error, _ in tests])
    passed = []
    for pool in pools:
        weights = [1 / tests[at][1] ** 2 for at in pool]
        fit = np.average([tests[at][0] for at in pool], weights=weights)
        half = np.average([tests[at][1] * tests[at][2] for at in pool], weights=weights)
        passed += [fit - half > -margin] * len(pool)
    first = len(passed)
    while first and passed[first - 1]:
        first -= 1
    return first


@given(st.lists(st.lists(st.integers(-9, 6), min_size=2, max_size=5), min_size=4, max_size=4))
def test_the_level_budget_is_its_slow_form(counts: list[list[int]]) -> None:
    differences = {budget: [count / 1000 for count in row] for budget, row in zip(BUDGETS, counts)}
    corrected = [np.var(row, ddof=1) / (1 - 2 / (9 * (len(row) - 1))) ** 3 for row in differences.values()]
    prior = max(float(np.median(corrected)), 1e-7)
    assert significance.prior_variance(list(differences.values()), 1e-7) == pytest.approx(prior)
    one = saving.Curve.of(differences, prior)
    level = one.level(one.mean, MARGIN)
    first = level_from(list(differences.values()), prior, MARGIN)
    assert level.tolist() == [place >= first for place in range(4)]


@pytest.mark.parametrize(
    ("means", "saved", "budget"),
    [
        ((-3, -1, 0.1, 0.1), 0.4, 0.6),
        ((0.1, 0.1, 0.1, 0.2), 0.8, 0.2),  # level everywhere
        ((-3, -2, -1, -0.8), 0.0, None),  # level nowhere
        ((-3, 0.1, -1, 0.1), 0.2, 0.8),  # what is level below a budget that is not does not count
        ((-3, 0.1, -0.01, 0.1), 0.6, 0.4),  # a small violation of the order is averaged
    ],
)
def test_what_is_saved(means: tuple[float, ...], saved: float, budget: float | None) -> None:
    found = line(summary(memory=curve(*means)), "memory")
    assert found["saved"] == pytest.approx(saved) and found["budget"] == budget
    assert found["low"] <= found["saved"] <= found["high"]


@pytest.mark.parametrize("mean", [0.0, -0.2, -0.3, -0.4])
def test_too_little_power_is_not_told(mean: float) -> None:
    content = summary(memory={budget: [0.9 + mean / 100 + at for at in (-0.02, 0.01, 0.01)] for budget in BUDGETS})
    assert {name: line(content, "memory")[name] for name in ("saved", "low", "high")} == dict.fromkeys(
        ("saved", "low", "high")
    )
    assert {cell["state"] for cell in content["cells"]} == {"not told"}


def test_a_small_test_set_tells_little() -> None:
    runs = rows(full=FULL, memory=curve(0.0, 0.0, 0.0, 0.0))
    told = [saving.summarize(runs, margin=MARGIN, held_out=size)["saving"][0]["saved"] for size in (300, 1_000_000)]
    assert told == [None, pytest.approx(0.8)]


def test_a_diverged_method_is_surely_below() -> None:
    found = line(summary(loss={budget: [0.1, 0.4, 0.2] for budget in BUDGETS}, memory=curve(-3, -1, 0, 0)), "loss")
    assert (found["saved"], found["low"]) == (0, 0)
    assert found["high"] == pytest.approx(0.2)  # larger budgets were not tried


def test_accuracy_is_paired_by_seed() -> None:
    noisy = {1.0: [0.8, 0.9, 0.95]}  # of three different starts, each of which the method follows
    methods = {budget: [value + 0.0005 for value in noisy[1.0]] for budget in BUDGETS}
    content = saving.summarize(rows(full=noisy, memory=methods), margin=MARGIN, held_out=1_000_000)
    assert line(content, "memory")["saved"] == pytest.approx(0.8)


def test_scoring_counts_and_may_cost_more_than_it_saves() -> None:
    runs = rows(full=FULL, el2n=curve(-3, -3, 0.1, 0.1))
    for row in runs:
        if row["method"] == "el2n":
            row |= {"scoring_samples": 1000, "scoring_forwarded_samples": 0, "scoring_seconds": 10.0}
    found = saving.summarize(runs, margin=MARGIN, held_out=1_000_000)["saving"][0]
    assert found["saved"] == pytest.approx(1 - 1.6)


def test_planned_runs_that_are_missing_are_not_told() -> None:
    runs = [row for row in rows(full=FULL, memory=curve(0, 0, 0, 0)) if (row["budget"], row["seed"]) not in ((0.4, 1),)]
    told = saving.summarize(runs, margin=MARGIN, held_out=1_000_000, planned={"memory": BUDGETS, "rs2": BUDGETS})
    assert line(told, "memory")["saved"] is not None  # two seeds are there
    runs = [row for row in runs if (row["budget"], row["seed"]) != (0.4, 2)]
    told = saving.summarize(runs, margin=MARGIN, held_out=1_000_000, planned={"memory": BUDGETS, "rs2": BUDGETS})
    assert [line["saved"] for line in told["saving"]] == [None, None]


@pytest.mark.parametrize("runs", [[], rows(full=FULL), rows(memory=curve(0, 0, 0, 0)), rows(full={1.0: [0.9]})])
def test_a_folder_that_has_only_begun_has_a_summary(runs: list[dict[str, Any]]) -> None:
    content = saving.summarize(runs, margin=MARGIN, held_out=100, planned={"memory": BUDGETS})
    assert line(content, "memory")["saved"] is None and saving.unsettled(content) == []


# -- the interval -----------------------------------------------------------------------------------------------------


def test_resampled_means_vary_as_means_of_new_seeds_would() -> None:
    random = np.random.default_rng(1)
    table = random.normal(size=(5, 2))
    table[3:, 1] = np.nan  # of the second column three seeds
    drawn = saving.resampled(table, 40_000)
    for column, present in ((0, [0, 1, 2, 3, 4]), (1, [0, 1, 2])):
        values = table[present, column]
        assert drawn[:, column].mean() == pytest.approx(values.mean(), abs=0.02)
        groups = [values[:3], values[3:]]  # seeds that have the same runs
        variance = sum(len(group) * np.var(group, ddof=1) for group in groups if len(group)) / len(values) ** 2
        assert drawn[:, column].var() == pytest.approx(variance, rel=0.05)


def test_methods_are_resampled_together() -> None:
    table = np.random.default_rng(2).normal(size=(4, 1))
    drawn = saving.resampled(np.hstack([table, table]), 100)
    assert np.array_equal(drawn[:, 0], drawn[:, 1])
    assert np.array_equal(saving.resampled(table, 10), saving.resampled(table, 10))


def test_the_interval_is_that_of_claims_on_resampled_seeds() -> None:
    random = np.random.default_rng(3)
    accuracies = {
        budget: (0.9 + mean / 100 + random.normal(0, 0.001, 6)).tolist()
        for budget, mean in zip(BUDGETS, (-0.6, -0.25, -0.2, -0.05))
    }
    full = {1.0: (0.9 + random.normal(0, 0.001, 6)).tolist()}
    content = saving.summarize(rows(full=full, memory=accuracies), margin=MARGIN, held_out=1_000_000)
    differences = np.array([np.subtract(accuracies[budget], full[1.0]) for budget in BUDGETS])
    prior = significance.prior_variance(differences.tolist(), 0.9 * 0.1 / 1_000_000)
    one, claims = saving.Curve.of(dict(zip(BUDGETS, differences.tolist())), prior), []
    for _ in range(3000):
        chosen = random.integers(6, size=6)
        centered = differences - differences.mean(1, keepdims=True)
        means = differences.mean(1) + math.sqrt(6 / 5) * centered[:, chosen].mean(1)
        level = one.level(means, MARGIN)
        claims.append(next((1 - budget for budget, passed in zip(BUDGETS, level) if passed), 0.0))
    found = line(content, "memory")
    assert found["low"] < found["high"]
    for name, share in (("low", 0.025), ("high", 0.975)):
        assert any(
            found[name] == pytest.approx(float(np.quantile(claims, share + off, method="nearest")))
            for off in (-0.015, 0, 0.015)
        )


def test_beyond_short_is_the_difference_of_both() -> None:
    content = summary(short=curve(-3, -2, -1, 0.1), memory=curve(-3, 0.1, 0.1, 0.2), rs2=curve(-9, -8, -7, -6))
    beyond = {line["method"]: line.get("beyond_short") for line in content["saving"]}
    assert beyond["short"] is None and "beyond_short" not in line(content, "short")
    assert beyond["memory"] == {name: pytest.approx(0.4) for name in ("saved", "low", "high")}
    assert beyond["rs2"]["saved"] == pytest.approx(-0.2)
    assert line(summary(memory=curve(0, 0, 0, 0)), "memory")["beyond_short"] is None  # there is no `short`


# -- whether `full` has converged -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "spread", "state"),
    [(0.0, 0.001, "converged"), (-2.0, 0.001, "converged"), (1.0, 0.001, "not converged"), (0.1, 0.02, "not told")],
)
def test_full_has_converged_where_longer_training_gains_less_than_the_margin(
    gain: float, spread: float, state: str
) -> None:
    longer = {1.5: [value + gain / 100 + at * spread for value, at in zip(FULL[1.0], (1, -1, 0))]}
    found = summary(longer=longer, memory=curve(0, 0, 0, 0))["converged"]
    assert found["state"] == state and found["gain"] == pytest.approx(gain / 100)
    assert "longer" not in {line["method"] for line in summary(longer=longer)["saving"]}


# -- more seeds -------------------------------------------------------------------------------------------------------


def test_more_seeds_go_beside_the_crossing_where_it_is_not_settled() -> None:
    spread = 0.001
    content = summary(
        short=curve(-3, -1, -0.15, 0.0, spread=spread + 0.0008),
        rs2=curve(-3, -3, -3, -3, spread=spread),
        memory=curve(1, 1, 1, 1, spread=spread),
        longer={1.5: [0.9, 0.9004, 0.9]},
    )
    places = saving.unsettled(content)
    assert ("longer", 1.5) in places or content["converged"]["settled"]
    assert not {method for method, _ in places} & {"rs2", "memory"}  # surely below, and surely level
    states = {cell["budget"]: cell["state"] for cell in content["cells"] if cell["method"] == "short"}
    assert states[0.2] == states[0.4] == "below" and {budget for method, budget in places if method == "short"} <= {
        0.6,
        0.8,
    }
    assert ("short", 0.6) in places


def test_seeds_needed_are_the_fewest_that_show_an_equal_method_level() -> None:
    for deviation in (0.001, 0.003, 0.006):
        count = saving.seeds_needed(deviation, MARGIN)
        assert count is not None
        tests = {n: stats.t.ppf(0.95, 4 + n - 1) * deviation / math.sqrt(n) for n in (count - 1, count)}
        assert tests[count] < MARGIN * 1.1 and (count == 2 or tests[count - 1] > MARGIN * 0.85)
    assert saving.seeds_needed(1.0, MARGIN) is None


@pytest.mark.slow
@pytest.mark.parametrize("most", [3, 9])
@pytest.mark.parametrize("shape", ["flat", "rising"])
def test_a_saving_that_is_not_there_is_claimed_in_a_twentieth_of_all_experiments(shape: str, most: int) -> None:
    """The truth is at the margin at all budgets, or rises to it; with more seeds beside the crossing, or without."""
    random, count = np.random.default_rng(0), 8
    true = np.full(count, -MARGIN) if shape == "flat" else np.linspace(-0.03, -MARGIN, count)
    claims = 0
    for _ in range(400):
        full = random.normal(0.9, 0.002, most)
        values, seeds = 0.9 + true[:, None] + random.normal(0, 0.002, (count, most)), [3] * count
        while True:
            runs = rows(
                full={1.0: full.tolist()},
                memory={0.1 * (1 + at): values[at, : seeds[at]].tolist() for at in range(count)},
            )
            content = saving.summarize(runs, margin=MARGIN, held_out=1_000_000, replicates=2)
            more = [round(10 * budget) - 1 for _, budget in saving.unsettled(content)]
            if all(seeds[at] == most for at in more):
                break
            for at in more:
                seeds[at] = min(seeds[at] + 3, most)
        claims += content["cells"][-1]["state"] == "level"
    assert 0.01 < claims / 400 < 0.09
