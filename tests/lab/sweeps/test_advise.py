"""Advice: the rule against a slow form of it, pilots that never see the test set, and going on where they stopped."""

from __future__ import annotations

import importlib
import json
import math
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataprune import files
from dataprune.errors import DataError, UsageError
from dataprune.lab.data.named import Data
from dataprune.lab.sweeps import advice_rule, advice_saving
from dataprune.lab.sweeps import advise as advice
from dataprune.lab.sweeps.advise import Pilot, advise
from dataprune.lab.training.build import build_pruner
from dataprune.lab.training.settings import Settings

SEEDS = (0, 1, 2)


def pilot(**changes: Any) -> Pilot:
    own = {name: changes.pop(name) for name in list(changes) if name not in Pilot.__dataclass_fields__}
    settings = tiny.settings(**{"model": "mlp", "epochs": 5, "method": "", "keep": None, "budget": 0.4, **own})
    made: dict[str, Any] = {"candidates": ("loss", "memory"), "seeds": (0, 1), "size": 200}
    return Pilot(settings, **(made | changes))


def accuracies(**differences: tuple[float, ...]) -> dict[str, dict[int, float]]:
    """Of `short` 0.8, 0.81 and 0.82, of `rs2` about the same, and of methods so many points above `short`."""
    short = {seed: 0.8 + 0.01 * seed for seed in SEEDS}
    points = {"rs2": (0.1, -0.2, 0.1), **differences}
    return {
        "short": short,
        **{name: {seed: short[seed] + values[seed] / 100 for seed in SEEDS} for name, values in points.items()},
    }


class Unread:
    """A test set that may not be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the test set's {name} was read")

    def __len__(self) -> int:
        raise AssertionError("the test set was counted")


def without_test(data: Data) -> Data:
    return data._replace(test=Unread())  # type: ignore[arg-type]


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    result = json.loads(json.dumps(result))
    del result["cost"]["seconds"]
    return result


# -- the rule ---------------------------------------------------------------------------------------------------------


def student(t: float, freedom: int) -> float:
    """P(T < t), by summing the density."""
    at = np.linspace(-200, max(t, -199), 20_001)
    density = (1 + at**2 / freedom) ** (-(freedom + 1) / 2)
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    return (
        float(np.trapezoid(density, at) * scale) if hasattr(np, "trapezoid") else float(np.trapz(density, at) * scale)
    )


@given(
    st.lists(st.lists(st.integers(300, 700), min_size=3, max_size=3), min_size=3, max_size=5),
    st.integers(100, 5000),
)
def test_the_rule_is_its_slow_form(counted: list[list[int]], held: int) -> None:
    names = ["short", "rs2", "loss", "emp", "memory"][: len(counted)]
    given_ = {name: dict(zip(SEEDS, (count / 1000 for count in row))) for name, row in zip(names, counted)}
    table = np.array(counted) / 1000
    variances = [np.var(row - table[0], ddof=1) for row in table[1:]]
    middle = np.median(variances) / (1 - 2 / (9 * 2)) ** 3
    common = max(middle, table[0].mean() * (1 - table[0].mean()) / held)
    verdicts = advice_rule.judge(given_, held)
    means = {}
    for verdict, row in zip(verdicts, table[1:], strict=True):
        probabilities = []
        for reference, comparison, other in (("short", verdict.short, table[0]), ("rs2", verdict.rs2, table[1])):
            if reference == verdict.method:
                assert comparison is None
                continue
            assert comparison is not None
            difference = row - other
            error = math.sqrt((4 * common + 2 * np.var(difference, ddof=1)) / 6 / 3)
            expected = student(difference.mean() / error, 6)
            assert comparison.mean == pytest.approx(difference.mean(), abs=1e-12)
            assert comparison.error == pytest.approx(error)
            assert comparison.probability == pytest.approx(expected, abs=1e-5)
            probabilities.append(comparison.probability)
        assert verdict.sure == all(probability >= 0.95 for probability in probabilities)
        means[verdict.method] = (row - table[0]).mean()
    advised, best = advice_rule.advised(verdicts), max(means.values())
    assert abs(best) < 1e-9 or (advised == "short" if best < 0 else means[advised] == pytest.approx(best))


@pytest.mark.parametrize(
    ("differences", "best", "sure"),
    [
        ({"emp": (2.0, 1.6, 1.9), "memory": (1.5, 1.2, 1.4)}, "emp", True),
        ({"emp": (0.1, -0.2, 0.0), "memory": (0.1, 0.3, -0.3)}, "memory", False),
        ({"rs2": (0.0, -0.1, 0.0), "emp": (-2.0, -2.1, -2.2), "memory": (-3.0, -3.1, -3.3)}, "short", False),
        ({"emp": (3.0, -1.0, 2.0), "memory": (-1.0, 4.0, 1.0)}, "emp", False),  # as much on average as the other
        # one that falls apart under label noise must not hide another
        ({"loss": (-25.0, -31.0, -20.0), "emp": (-3.0, -6.0, -1.0), "memory": (2.5, 2.2, 2.6)}, "memory", True),
        ({"rs2": (2.1, 2.2, 2.1), "emp": (2.3, 1.9, 2.1)}, "rs2", True),  # scores add nothing to chance
        ({"rs2": (0.9, -0.9, 0.0), "emp": (-2.0, -2.1, -2.2)}, "short", False),  # a tie but for rounding
        ({"rs2": (0.8, 0.4, 0.3), "emp": (1.0, 0.9, 0.8)}, "emp", False),  # above `short`, not surely above `rs2`
    ],
)
def test_advice_on_hand_made_records(differences: dict[str, tuple[float, ...]], best: str, sure: bool) -> None:
    verdicts = advice_rule.judge(accuracies(**differences), 5000)
    assert advice_rule.advised(verdicts) == best
    assert any(verdict.sure for verdict in verdicts if verdict.method == best) == sure
    sentence = advice._sentence(best, 0.0, verdicts, 3, 100, 4.0)
    assert sentence.endswith("The pilots trained 4.0 times the samples of the planned run.")
    assert (f"Prune with {best}" in sentence) == (best != "short")
    assert ("may be as good" in sentence) == (best != "short" and not sure)
    assert ("these pilots are sure from" in sentence) == (not sure)


def test_seeds_that_agree_by_chance_do_not_make_it_sure() -> None:
    same = accuracies(rs2=(0.0, 0.0, 0.0), emp=(0.3, 0.3, 0.3))
    (_, verdict) = advice_rule.judge(same, 500)
    assert verdict.short.error > 0.005 and verdict.short.probability < 0.9
    (_, verdict) = advice_rule.judge(same, 1_000_000)
    assert verdict.short.probability > 0.99


def test_nothing_to_tell_apart_is_even_odds() -> None:
    equal = {name: {0: 1.0, 1: 1.0} for name in ("short", "rs2", "emp")}  # all samples right: no spread of any kind
    assert [verdict.short.probability for verdict in advice_rule.judge(equal, 100)] == [0.5, 0.5]


def test_enough_pilots_are_those_until_the_verdict_is_sure() -> None:
    verdicts = advice_rule.judge(accuracies(emp=(0.4, 0.1, 0.3)), 2000)
    least = advice_rule.resolution(verdicts, 3)
    middle = np.median([verdict.short.error for verdict in verdicts])
    assert student(least / middle, 6) == pytest.approx(0.95, abs=1e-4)


def test_differences_need_the_same_seeds() -> None:
    with pytest.raises(ValueError, match="same seeds, at least two"):
        advice_rule.paired_differences({"a": {0: 1.0, 1: 1.0}, "b": {0: 1.0}}, "a", "b")


# -- pilots -----------------------------------------------------------------------------------------------------------


def test_the_test_set_is_never_read(tmp_path: Path) -> None:
    data = without_test(tiny.data())
    lines = []
    result = advise(pilot(), tmp_path, data=data, report=lambda *line: lines.append(line))
    assert result == files.read_json(tmp_path / "advice.json")
    assert list(result) == ["plan", "pilot", "lines", "annealed", "advice", "cost"]
    assert [line["method"] for line in result["lines"]] == ["rs2", "loss", "memory"]
    record = files.read_json(tmp_path / "pilot-seed1/runs/loss-seed1/metrics.json")
    assert record["train_samples"] == 200 and record["test_samples"] == 200 and "not read" in record["note"]
    trained = [files.read_json(path)["samples"] for path in tmp_path.glob("pilot-*/runs/*/metrics.json")]
    assert result["cost"]["samples"] == sum(trained) and result["cost"]["planned_samples"] == 0.4 * 5 * 400
    assert result["cost"]["full_samples"] == 2000 and result["cost"]["relative"] == sum(trained) / 800
    assert {seed for _, seed, _ in lines} == {0, 1}
    steps = {files.read_json(path)["steps"] for path in tmp_path.glob("pilot-*/runs/*/metrics.json")}
    assert len(steps) == 1


def test_the_lines_are_those_of_the_runs(tmp_path: Path) -> None:
    planned = pilot(seeds=(0, 1, 2))
    result = advise(planned, tmp_path, data=tiny.data())
    rows = {
        method: {
            seed: files.read_json(tmp_path / f"pilot-seed{seed}/runs/{method}-seed{seed}/metrics.json")["accuracy"]
            for seed in SEEDS
        }
        for method in result["pilot"]["methods"]
    }
    verdicts = advice_rule.judge(rows, 200)
    assert result["lines"] == [asdict(verdict) for verdict in verdicts]
    assert result["advice"]["method"] == advice_rule.advised(verdicts)


def test_each_seed_trains_and_is_judged_by_samples_of_its_own() -> None:
    data = tiny.data()
    numbered = torch.arange(400)
    data.train.labels = numbered  # so that a sample is known by its label
    parts = [pilot().data(data, seed) for seed in (0, 1)]
    for part in parts:
        train, held = set(part.train.labels.tolist()), set(part.test.labels.tolist())
        assert len(train) == len(held) == 200 and not train & held and part.val is None
        for split in (part.train, part.test):
            assert torch.equal(split.images, data.train.images[split.labels])
    assert set(parts[0].train.labels.tolist()) != set(parts[1].train.labels.tolist())
    again = pilot().data(data, 0)
    assert torch.equal(again.train.labels, parts[0].train.labels)


@pytest.mark.parametrize(
    ("total", "expected"), [(60_000, (4000, 5000)), (8000, (4000, 4000)), (4000, (3200, 800)), (500, (400, 100))]
)
def test_sizes(total: int, expected: tuple[int, int]) -> None:
    assert pilot(size=4000).sizes(total) == expected


def test_epochs_leave_half_the_budget_to_pruning() -> None:
    assert [pilot(epochs=None, budget=share).pilot_epochs() for share in (0.4, 0.05)] == [5, 5]
    planned = replace(pilot().settings, epochs=200)
    epochs = [Pilot(replace(planned, budget=share)).pilot_epochs() for share in (0.4, 0.1, 0.05, 0.02)]
    assert epochs == [20, 20, 40, 100]


def test_pilots_of_as_many_steps_as_planned(tmp_path: Path) -> None:
    plan = pilot(budget=0.5)
    planned = plan.planned("rs2", 400).steps
    assert planned is not None
    assert plan.describe(400)["batch_size"] == 8  # half the samples: half the batch
    assert abs(plan.describe(400)["steps"] - planned) <= 5  # whole batches
    assert pilot(same_steps=False, budget=0.5).describe(400)["steps"] < 0.6 * planned
    assert pilot(size=80).describe(400)["batch_size"] == advice.SMALLEST
    assert pilot(epochs=50).describe(400)["batch_size"] == 16  # never larger
    result = advise(plan, tmp_path, data=tiny.data())
    assert {files.read_json(path)["steps"] for path in tmp_path.glob("pilot-*/runs/*/metrics.json")} == {
        result["pilot"]["steps"]
    }


def test_infobatch_is_tried_where_it_can_reach_the_budget() -> None:
    every = ("infobatch", "loss")
    assert pilot(candidates=every).methods(400) == ["short", "rs2", "loss"]
    assert pilot(candidates=every, budget=0.7).methods(400) == ["short", "rs2", *every]
    with pytest.raises(UsageError, match="infobatch cannot reach this budget"):
        pilot(candidates=("infobatch",)).methods(400)


def test_full_epochs_at_the_end_are_tried_for_what_is_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice_rule, "advised", lambda verdicts: "loss")
    plan = pilot(budget=0.5)
    plan = replace(plan, settings=replace(plan.settings, epochs=8))
    result = advise(plan, tmp_path, data=without_test(tiny.data()))
    assert set(result["annealed"]) == {"mean", "error", "probability"}
    line = tiny.history(tmp_path / "pilot-seed0-anneal0.125/runs/loss-seed0")[-1]
    assert line["selected"] == 200
    assert result["advice"]["method"] == "loss" and "Prune with loss" in result["advice"]["sentence"]
    assert result["advice"]["anneal"] in (0.0, 0.125)
    assert ("--anneal 0.125" in result["advice"]["command"]) == (result["advice"]["anneal"] > 0)


def test_full_epochs_that_do_not_fit_are_not_tried() -> None:
    assert not pilot().can_anneal(400)  # five epochs have no eighth
    settings = replace(pilot().settings, epochs=8, budget=0.25)  # two epochs' worth, both full
    assert not replace(pilot(), settings=settings).can_anneal(400)
    assert replace(pilot(), settings=replace(settings, budget=0.5)).can_anneal(400)


@pytest.mark.slow
def test_larger_budgets_and_full_are_tried_where_they_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    monkeypatch.setattr(advice_saving, "seeds_needed", lambda deviation, margin: 2)
    monkeypatch.setattr(advice_rule, "advised", lambda verdicts: "loss")
    plan = pilot(budget=0.6, margin=10.0)
    result = advise(plan, tmp_path, data=without_test(tiny.data()))
    saving = result["advice"]["saving"]
    assert plan.budgets() == [0.6, 0.7, 0.85] and {"margin", "deviation", "full", "saving", "cells"} < saving.keys()
    assert [line["method"] for line in saving["saving"]] == ["loss", "short"]
    runs = {path: files.read_json(path) for path in tmp_path.glob("pilot-*/runs/*/metrics.json")}
    assert result["cost"]["samples"] == sum(run["samples"] for run in runs.values())
    place = "pilot-seed{}{}/runs/{}-seed{}/metrics.json"
    full = [runs[tmp_path / place.format(seed, "-budget1", "full", seed)] for seed in (0, 1)]
    assert [run["epochs"] for run in full] == [5, 5]
    tried = {(cell["method"], cell["budget"]): cell for cell in saving["cells"]}
    assert {("loss", 0.85), ("short", 0.85)} <= tried.keys()
    for (method, budget), cell in tried.items():
        where = "" if budget == 0.6 else f"-budget{budget:g}"
        own = [runs[tmp_path / place.format(seed, where, method, seed)] for seed in (0, 1)]
        assert cell["difference"] == pytest.approx(
            np.mean([run["accuracy"] - other["accuracy"] for run, other in zip(own, full)])
        )
        assert cell["flops"] == pytest.approx(own[0]["samples"] / full[0]["samples"])
    again = advise(plan, tmp_path, data=tiny.data(), report=lambda *line: pytest.fail("trained again"))
    assert timeless(again) == timeless(result)


# -- going on ---------------------------------------------------------------------------------------------------------


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = advise(pilot(), tmp_path / "whole", data=tiny.data())

    class Stop(Exception):
        pass

    def stop(method: str, seed: int, line: dict[str, Any]) -> None:
        if (method, seed, line["epoch"]) == ("loss", 1, 2):
            raise Stop

    with pytest.raises(Stop):
        advise(pilot(), tmp_path / "stopped", data=tiny.data(), report=stop)
    assert not (tmp_path / "stopped/advice.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("pilot-*/runs/*/metrics.json")}
    assert len(done) == 6
    assert timeless(advise(pilot(), tmp_path / "stopped", data=tiny.data())) == timeless(whole)
    assert {path: path.stat().st_mtime_ns for path in done} == done


def test_a_folder_is_of_one_plan(tmp_path: Path) -> None:
    advise(pilot(), tmp_path, data=tiny.data())
    for other in (
        pilot(lr=0.01),
        pilot(size=190),
        pilot(candidates=("emp",)),
        pilot(epochs=4),
        pilot(same_steps=False),
    ):
        with pytest.raises(UsageError, match="holds another plan"):
            advise(other, tmp_path, data=tiny.data())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        advise(pilot(), tmp_path / "file", data=tiny.data())


def test_more_seeds_go_on_in_the_same_folder(tmp_path: Path) -> None:
    advise(pilot(candidates=("memory",)), tmp_path, data=tiny.data())
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.json")}
    result = advise(pilot(candidates=("memory",), seeds=(0, 1, 2)), tmp_path, data=tiny.data())
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert result["pilot"]["seeds"] == [0, 1, 2] and (tmp_path / "pilot-seed2" / "compare.json").exists()


# -- what cannot be meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 1.2}, r"--budget is a fraction in \(0, 1\]"),
        ({"budget": 0.0}, r"--budget is a fraction in \(0, 1\]"),
        ({"budget": 1.0}, "prunes nothing"),
        ({"budget": None}, "give --budget"),
        ({"task": "contrastive", "shift": 0, "flip": False}, "not for contrastive"),
        ({"val_fraction": 0.1}, "leave these options out"),
        ({"seeds": (0,)}, "one seed shows no variation"),
        ({"size": 0}, "at least 1"),
        ({"margin": 0.003}, "--margin is in points of accuracy, .* give --margin 0.3"),
        ({"candidates": ()}, "name one with --candidates"),
        ({"candidates": ("rs2",)}, "rs2 is always compared"),
        ({"candidates": ("memry",)}, "did you mean 'memory'"),
        ({"candidates": ("el2n",)}, "el2n is static: use compare"),
    ],
)
def test_wrong_calls(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        advise(pilot(**changes), tmp_path, data=tiny.data())
    assert list(tmp_path.iterdir()) == []


def test_too_little_data_or_budget(tmp_path: Path) -> None:
    few = tiny.data()
    few = few._replace(train=few.train.subset(torch.arange(300)))
    with pytest.raises(DataError, match="300 training samples are too few"):
        advise(pilot(size=4000), tmp_path, data=few)
    with pytest.raises(UsageError, match="budget"):  # the first epoch, which is full, is a fifth
        advise(pilot(budget=0.2), tmp_path, data=tiny.data())
    with pytest.raises(UsageError, match="fewer than one batch"):
        advise(pilot(budget=0.22, size=100), tmp_path, data=tiny.data())
    assert list(tmp_path.iterdir()) == []


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_command_is_the_planned_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from dataprune.cli import app, train

    trained: list[Settings] = []
    monkeypatch.setattr(train, "train_run", lambda settings, *rest: trained.append(settings))
    plan = pilot(nesterov=False, option=("memory.balance=true",), lr=0.02)
    for method in ("short", "rs2", "memory"):
        planned = plan.planned(method, 400)
        words = shlex.split(planned.train_command())
        assert words[:2] == ["dataprune", "train"]
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
        assert trained.pop() == replace(planned, arm="")
        labels = torch.zeros(400, dtype=torch.int64)
        steps = build_pruner(planned, 400, labels).planned_steps(16, drop_last=True)
        assert planned.steps is not None and planned.steps <= steps


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer")
    pytest.importorskip("sklearn")
    from typer.testing import CliRunner

    from dataprune.cli import app

    monkeypatch.chdir(tmp_path)

    def call(*more: str) -> Any:
        given_ = ["advise", "--model", "mlp", "--epochs", "4", "--train-size", "600", "--pilot-size", "200"]
        return CliRunner().invoke(app, [*given_, "--budget", "0.5", "--seeds", "2", "--device", "cpu", *more])

    shown = call("--candidates", "memory")
    assert shown.exit_code == 0, shown.output
    (folder,) = (tmp_path / "runs").iterdir()
    stored = files.read_json(folder / "advice.json")
    short = [line["accuracy"] - line["short"]["mean"] for line in stored["lines"]]
    assert short[0] == pytest.approx(short[1]) and f"{100 * short[0]:.2f}" in shown.stdout
    assert "± " in shown.stdout and "times those of the planned run" in shown.stdout and "held out" in shown.stdout
    saving = stored["advice"]["saving"]
    assert saving["sentence"] in shown.stdout and "is not told: on 400 held-out samples" in saving["sentence"]
    assert [line["saved"] for line in saving["saving"]] == [None] * len(saving["saving"]) and saving["margin"] == 0.3
    assert stored["advice"]["sentence"] in shown.stdout and stored["advice"]["command"] in shown.stdout
    printed = call("--candidates", "memory", "--json")
    assert timeless(json.loads(printed.stdout)) == timeless(stored)
    without = call("--candidates", "memory", "--margin", "0", "--json")
    assert "saving" not in json.loads(without.stdout)["advice"]
    for more, message in (
        (["--budget", "1.5"], "--budget is a fraction in (0, 1], got 1.5"),
        (["--task", "contrastive"], "advise works for image classification, not for contrastive"),
        (["--train-size", "300", "--pilot-size", "4000"], "training samples are too few"),
        (["--seeds", "1"], "--seeds 2"),
    ):
        wrong = call(*more)
        lines = wrong.stderr.splitlines()
        assert wrong.exit_code in (1, 2) and wrong.stdout == "" and len(lines) == 1 and message in lines[0], lines


# -- the experiment ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_experiment_at_a_scale_of_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "experiments")
    points = importlib.import_module("advise").main("smoke", tmp_path / "out", tmp_path / "work")
    for point in points:
        mean = {name: np.mean(values) for name, values in point["accuracy"].items()}
        assert point["regret"]["advise"] == pytest.approx(max(mean.values()) - mean[point["chosen"]])
        assert point["regret"]["memory"] == pytest.approx(max(mean.values()) - mean["memory"])
        assert min(point["regret"].values()) >= 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "advise.json",
        "table.md",
        "advise.svg",
        "advise.png",
    }
