"""What pilots say can be saved: which are run, and what follows from hand-made accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dataprune.lab.report.significance import critical
from dataprune.lab.sweeps.advice_saving import estimate

pytest.importorskip("scipy")
BUDGETS = [0.3, 0.5, 0.7, 0.85]
SPREAD = (-0.05, 0.0, 0.05)  # points by which three seeds differ
ABOUT: dict[str, Any] = {"margin": 0.3, "held_out": 5000, "seeds": 3}


class Pilots:
    """Runs with accuracies by method, so many points below those of `full` by budget, and what was asked for."""

    def __init__(self, **points: dict[float, float]):
        self.points, self.asked = {"full": {1.0: 0.0}, **points}, list[tuple[list[str], float]]()

    def __call__(self, names: Sequence[str], budget: float) -> list[dict[str, Any]]:
        self.asked.append((list(names), budget))
        return [
            {
                "method": name, "budget": budget, "seed": seed, "samples": 1000 * budget, "steps": 100 * budget,
                "accuracy": 0.99 + (self.points[name][budget] + (spread if name != "full" else 0)) / 100,
                "seconds": budget,
            }
            for name in names
            for seed, spread in enumerate(SPREAD)
        ]  # fmt: skip


def test_budgets_are_tried_from_the_largest_while_a_method_is_level() -> None:
    memory = {0.85: 0.1, 0.7: 0.0, 0.5: 0.0, 0.3: -2.0}
    short = {0.85: 0.0, 0.7: -1.5}
    pilots = Pilots(memory=memory, short=short)
    found = estimate(["memory", "short"], BUDGETS, pilots, prior=1e-6, **ABOUT)
    both = ["memory", "short"]
    assert pilots.asked == [(["full"], 1.0), (both, 0.85), (both, 0.7), (["memory"], 0.5), (["memory"], 0.3)]
    saved = {line["method"]: (line["saved"], line["low"], line["high"]) for line in found["saving"]}
    assert saved == {"memory": pytest.approx((0.5,) * 3), "short": pytest.approx((0.15,) * 3)}
    beyond = found["saving"][0]["beyond_short"]
    assert beyond["saved"] == pytest.approx(0.35)
    assert found["sentence"] == (
        "On this data `memory` saves 50 % (50 to 50), all the data for fewer steps saves 15 % (15 to 15)."
    )
    assert found["margin"] == pytest.approx(0.3) and found["full"]["accuracy_mean"] == pytest.approx(0.99)


def test_what_is_level_at_the_planned_budget_saves_at_least_that() -> None:
    pilots = Pilots(short=dict.fromkeys(BUDGETS, 0.1))
    found = estimate(["short"], BUDGETS, pilots, prior=1e-6, **ABOUT)
    assert [budget for _, budget in pilots.asked] == [1.0, 0.85, 0.7, 0.5, 0.3]
    assert found["sentence"] == "On this data all the data for fewer steps saves 70 % or more (at least 70)."


def test_nothing_is_run_where_it_could_not_be_told() -> None:
    deviation = 0.005  # the differences of two runs vary by half a point

    def enough(seeds: int) -> bool:
        """Whether two equal methods would be level, by the moderated variance of so many seeds."""
        return critical(0.95, 4 + seeds - 1) * deviation / seeds**0.5 < 0.003

    least = next(seeds for seeds in range(2, 100) if enough(seeds))
    pilots = Pilots()
    found = estimate(["memory", "short"], BUDGETS, pilots, prior=deviation**2, **ABOUT)
    assert pilots.asked == [] and found["cells"] == [] and found["full"] is None
    assert [(line["method"], line["saved"], line["low"]) for line in found["saving"]] == [
        ("memory", None, None),
        ("short", None, None),
    ]
    text = "How much `memory` or all the data for fewer steps saves is not told: on 5,000 held-out samples the "
    assert found["sentence"].startswith(text + "difference of two runs varies by 0.50 points from seed to seed; try ")
    count = int(found["sentence"].partition("--seeds ")[2].partition(",")[0])
    assert abs(count - least) <= 2 and count > 3  # an even number of seeds is a little more regular than an odd one
    assert estimate(["short"], BUDGETS, Pilots(), prior=0.01, **ABOUT)["sentence"].endswith(
        "too much for a margin of 0.3: more held-out samples, or a larger --margin."
    )


def test_what_is_neither_level_nor_below_is_not_told() -> None:
    pilots = Pilots(memory={0.85: 0.1, 0.7: -1.5}, short={0.85: -0.28})
    found = estimate(["memory", "short"], BUDGETS, pilots, prior=1e-6, **ABOUT)
    assert [line["saved"] for line in found["saving"]] == [pytest.approx(0.15), None]
    told, _, untold = found["sentence"].partition(". ")
    assert told == "On this data `memory` saves 15 % (15 to 15)"
    assert untold.startswith("How much all the data for fewer steps saves is not told: on 5,000 held-out samples")
    assert "try --seeds 4" in untold
