"""The sweep that says what is saved: its runs, more seeds where it is close, and going on in its folder."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny

from dataprune import files
from dataprune.errors import UsageError
from dataprune.lab.report import saving as statistics
from dataprune.lab.sweeps import engines
from dataprune.lab.sweeps import saving as sweeps
from dataprune.lab.sweeps.saving import Saving, until_settled
from dataprune.lab.training import run as training

SETTINGS: dict[str, Any] = {"model": "mlp", "epochs": 6, "method": "memory", "keep": None}
BUDGETS = (0.4, 0.8)


def saving(**changes: Any) -> Saving:
    given: dict[str, Any] = {"methods": ("short", "memory"), "budgets": BUDGETS, "seeds": 2, "most": 2, "margin": 5.0}
    own = changes.pop("settings", {})
    return Saving(tiny.settings(**(SETTINGS | own)), **(given | changes))


def places(result: Mapping[str, Any]) -> Counter[tuple[str, float]]:
    """How many runs each method has at each budget."""
    return Counter((row["method"], row["budget"]) for row in result["runs"])


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("saving")
    return out, until_settled(saving(), out, data=tiny.data())


def test_every_method_has_every_budget_beside_full(result: tuple[Path, dict[str, Any]]) -> None:
    out, content = result
    expected = {("full", 1.0), ("longer", 1.5), *itertools.product(("short", "memory"), BUDGETS)}
    assert places(content) == dict.fromkeys(expected, 2)
    assert content == files.read_json(out / "saving.json")
    assert (content["margin"], content["test_samples"]) == (5.0, 50)
    for name in ("data", "model", "epochs", "saving", "cells", "full", "converged", "deviation"):
        assert content[name] is not None
    assert [set(line) >= {"method", "saved", "low", "high"} for line in content["saving"]] == [True, True]


def test_methods_take_equal_steps_at_a_budget(result: tuple[Path, dict[str, Any]]) -> None:
    steps: dict[float, set[int]] = {}
    for row in result[1]["runs"]:
        steps.setdefault(row["budget"], set()).add(row["steps"])
    # epochs of 25 whole batches of 16; at a budget of 0.4 one is full, and five keep 0.28
    assert steps == {1.0: {150}, 1.5: {225}, 0.4: {25 + 5 * 7}, 0.8: {25 + 5 * 19}}
    for cell in result[1]["cells"]:
        assert cell["flops"] == pytest.approx(cell["steps"] / 150)


def test_a_static_method_trains_on_the_budgets_share_and_pays_for_its_scores(tmp_path: Path) -> None:
    content = until_settled(saving(methods=("el2n",), longer=0, score_epochs=3), tmp_path, data=tiny.data())
    rows = [row for row in content["runs"] if row["method"] == "el2n" and row["budget"] == 0.4]
    assert [row["reached_keep"] for row in rows] == pytest.approx([0.4, 0.4])
    assert {row["scoring_samples"] for row in rows} == {3 * 400}
    (cell,) = [cell for cell in content["cells"] if cell["budget"] == 0.4]
    assert cell["flops"] == pytest.approx((6 * 160 + 3 * 400) / 2400)
    assert content["converged"] is None
    assert len(list(tmp_path.glob("runs/*/scores.*"))) == 2  # one scoring run of a seed serves all budgets
    assert len(list(tmp_path.glob("coresets/*"))) == 4  # of two budgets and two seeds


@pytest.mark.slow
def test_a_cheaper_model_that_scores_costs_less(tmp_path: Path) -> None:
    sweep = saving(methods=["el2n"], longer=0, score_epochs=3, score_model="mlp", settings={"model": "small_cnn"})
    content = until_settled(sweep, tmp_path, data=tiny.data())
    rows = [row for row in content["runs"] if row["method"] == "el2n" and row["budget"] == 0.4]
    (cheaper,) = {row["scoring_flops"] for row in rows}
    (cell,) = [cell for cell in content["cells"] if cell["budget"] == 0.4]
    assert cheaper < 0.5 and cell["flops"] == pytest.approx((6 * 160 + cheaper * 3 * 400) / 2400)


@pytest.mark.slow
def test_more_methods_budgets_and_seeds_go_on_in_the_folder(
    result: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    perform = engines.perform

    def counted(job: engines.Job, *arguments: Any, **more: Any) -> Any:
        if not (job.out / "metrics.json").exists():
            made.append((job.arm, job.seed))
        return perform(job, *arguments, **more)

    monkeypatch.setattr(engines, "perform", counted)
    until_settled(saving(), tmp_path / "out", data=tiny.data(), cache=result[0])
    assert made == []  # all of them are in the other folder
    content = until_settled(saving(methods=["rs2"], budgets=[0.8], longer=0), tmp_path / "out", data=tiny.data())
    assert made == [("full", 0), ("rs2 0.8", 0), ("full", 1), ("rs2 0.8", 1)]  # without that cache
    assert places(content)["rs2", 0.8] == 2 and places(content)["memory", 0.4] == 2
    assert [line["method"] for line in content["saving"]] == ["rs2", "short", "memory"]
    made.clear()
    content = until_settled(saving(seeds=3, most=3, budgets=[0.6]), tmp_path / "out", data=tiny.data(), cache=result[0])
    assert Counter(made) == {
        **{(f"{method} 0.6", seed): 1 for method in ("short", "memory") for seed in (0, 1, 2)},
        ("full", 2): 1,
        ("longer 1.5", 2): 1,
    }
    assert places(content)["memory", 0.6] == places(content)["full", 1.0] == 3


def test_another_margin_trains_nothing(result: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **more: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(training, "_Run", refused)
    content = until_settled(saving(margin=10.0), result[0], data=tiny.data())
    assert content["margin"] == 10.0 and content["runs"] == result[1]["runs"]
    until_settled(saving(), result[0], data=tiny.data())


def test_other_settings_need_another_folder(result: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match=r"holds another saving sweep \(lr was 0.05, now 0.1\)"):
        until_settled(saving(settings={"lr": 0.1}), result[0], data=tiny.data())


@pytest.mark.slow
def test_seeds_are_added_where_a_decision_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def open_(content: dict[str, Any]) -> list[tuple[str, float]]:
        calls.append(content)
        return [("memory", 0.8), ("other", 0.8)] if len(calls) < 9 else []

    monkeypatch.setattr(sweeps, "unsettled", open_)
    content = until_settled(saving(most=5), tmp_path, data=tiny.data())
    counts = places(content)
    assert counts.pop(("memory", 0.8)) == counts.pop(("full", 1.0)) == 5  # 2, 4, and no more than 5
    assert set(counts.values()) == {2} and len(calls) == 3
    (cell,) = [cell for cell in content["cells"] if (cell["method"], cell["budget"]) == ("memory", 0.8)]
    assert cell["seeds"] == 5 and content["full"]["seeds"] == 5


@pytest.mark.slow
def test_seeds_are_added_by_what_the_runs_say(tmp_path: Path) -> None:
    content = until_settled(saving(most=4), tmp_path, data=tiny.data())
    counts, open_ = places(content), statistics.unsettled(content)
    assert open_ and all(counts[place] == 4 for place in open_)
    assert counts["full", 1.0] == max(counts.values())
    again = until_settled(saving(most=4), tmp_path, data=tiny.data())
    assert again == content


@pytest.mark.slow
def test_a_folder_that_was_interrupted_has_whole_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perform, count = engines.perform, itertools.count()

    def interrupted(*arguments: Any, **more: Any) -> Any:
        if next(count) == 9:
            raise KeyboardInterrupt
        return perform(*arguments, **more)

    monkeypatch.setattr(engines, "perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        until_settled(saving(), tmp_path, data=tiny.data())
    begun = files.read_json(tmp_path / "saving.json")
    assert Counter(row["seed"] for row in begun["runs"]) == {0: 6, 1: 3}
    assert [line["saved"] for line in begun["saving"]] == [None, None]
    assert len(until_settled(saving(), tmp_path, data=tiny.data())["runs"]) == 12


def test_default_budgets_are_those_that_the_schedule_reaches() -> None:
    assert saving(budgets=None).grid(400) == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85]  # one of six epochs is full
    assert saving(budgets=None, settings={"warmup": 0}).grid(400) == list(sweeps.GRID)
    with pytest.raises(UsageError, match="fewer than one batch"):
        saving(budgets=None).grid(15)


def test_a_named_budget_that_the_schedule_cannot_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="budget"):
        until_settled(saving(budgets=[0.1, 0.5]), tmp_path, data=tiny.data())
    assert not (tmp_path / "runs").exists()


def test_a_budget_of_one_is_full_training(tmp_path: Path) -> None:
    content = until_settled(saving(budgets=[1.0], longer=0), tmp_path, data=tiny.data())
    assert [cell["flops"] for cell in content["cells"]] == [1.0, 1.0]


@pytest.mark.slow
def test_epochs_are_counted_for_the_progress_bar(tmp_path: Path) -> None:
    lines: list[tuple[str, int]] = []
    sweep = saving(methods=("short", "rs2", "el2n"), score_epochs=3)
    until_settled(sweep, tmp_path, data=tiny.data(), report=lambda arm, seed, line: lines.append((arm, seed)))
    assert sweep.epochs(400) == len(lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 0.0}, r"--margin is in points of accuracy, from 0.05 to 10, got 0$"),
        ({"margin": -0.3}, r"from 0.05 to 10, got -0.3$"),
        ({"margin": 0.003}, r"got 0.003: if a share of 1 was meant, give --margin 0.3"),
        ({"margin": 30.0}, r"from 0.05 to 10, got 30$"),
        ({"budgets": [0.0, 0.5]}, r"--budgets are shares of full's steps in \(0, 1\], got 0"),
        ({"budgets": [50.0]}, r"in \(0, 1\], got 50"),
        ({"budgets": [0.5, 0.3, 0.5]}, r"--budgets names 0.5 twice"),
        ({"budgets": []}, "no budget to try"),
        ({"methods": ["rs2", "memory", "rs2"]}, "method rs2 is named twice"),
        ({"methods": ["full"]}, "no method to compare with full"),
        ({"methods": ["memroy"]}, "memory"),
        ({"seeds": 1, "most": 1}, "one seed shows no variation, so nothing can be told: give --seeds 2 or more"),
        ({"seeds": 3, "most": 2}, "--max-seeds 2 are fewer than --seeds 3"),
        ({"longer": 0.5}, "--longer is a factor above 1, or 0"),
        ({"settings": {"keep": 0.3}}, "leave --keep and --budget out"),
        ({"methods": ["glister"]}, "glister needs a validation split"),
    ],
)
def test_what_makes_no_sense_is_refused_before_data_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        saving(**changes)


def test_full_may_be_named() -> None:
    assert saving(methods=["full", "memory"]).methods == ["memory"]
