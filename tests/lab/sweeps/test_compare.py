"""Methods side by side: equal steps, one schedule, one look at the test set, and going on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import dataprune
from dataprune import Selection, coresets, files
from dataprune.errors import CheckpointError, UsageError
from dataprune.lab.report import compute, integrity, records
from dataprune.lab.sweeps.compare import SHORT, Comparison
from dataprune.lab.sweeps.sweep import Places, carry_out
from dataprune.lab.training import evaluate, select
from dataprune.lab.training import run as training
from dataprune.lab.training.build import load_data
from dataprune.lab.training.settings import Settings
from dataprune.lab.training.tasks import images

METHODS = ("full", "short", "rs2", "random", "loss", "infobatch", "emp", "memory")


def comparison(**changes: Any) -> Comparison:
    given: dict[str, Any] = {"methods": METHODS, "seeds": (0,), "settings": tiny.settings(model="mlp", epochs=6)}
    return Comparison(**(given | changes))


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """Without what no two calls share."""
    result = json.loads(json.dumps(result))
    for line in (*result["runs"], *result["summary"]):
        for name in ("seconds", "select_seconds", "speedup"):
            line.pop(name, None)
    return result


@pytest.mark.parametrize("anneal", [0.0, 0.2])
def test_every_run_but_full_takes_equally_many_steps(anneal: float, tmp_path: Path) -> None:
    settings = tiny.settings(model="mlp", epochs=6, anneal=anneal)
    result = carry_out(comparison(settings=settings), tmp_path, data=tiny.data())
    planned = 25 + 7 * (5 if not anneal else 4) + (25 if anneal else 0)
    steps = {row["method"]: row["steps"] for row in result["runs"]}
    assert steps.pop("full") == 6 * 25 and set(steps.values()) == {planned}
    rows = {row["method"]: row for row in result["runs"]}
    assert rows["infobatch"]["reached_keep"] >= rows["emp"]["reached_keep"] == pytest.approx(0.3)
    for method in METHODS:  # each plans its learning rate over its own steps
        line = tiny.history(tmp_path / "runs" / f"{method}-seed0")[-1]
        assert line["lr"] < 0.05 * 0.01, method


def test_a_method_trains_the_same_samples_alone_and_in_a_comparison(tmp_path: Path) -> None:
    """One schedule: `train` and `compare` with the same settings differ in nothing but the folder."""
    schedules = [
        (("rs2", "random", "loss", "emp", "memory"), {}),
        (("rs2", "emp"), {"warmup": 2, "anneal": 0.2}),
    ]
    for methods, schedule in schedules:
        settings = tiny.settings(model="mlp", epochs=6, **schedule)
        place = tmp_path / f"{len(schedule)}"
        sweep = comparison(methods=methods, settings=settings)
        rows = {row["method"]: row for row in carry_out(sweep, place, data=tiny.data())["runs"]}
        for method in methods:
            alone = training.run(replace(settings, method=method), place / method, data=tiny.data())
            for name in ("samples", "steps", "accuracy"):
                assert getattr(alone, name) == rows[method][name], (method, name)
            config = files.read_json(place / "runs" / f"{method}-seed0" / "config.json")
            assert (config["arm"], config["warmup"], config["anneal"]) == (method, settings.warmup, settings.anneal)
    assert "6 epochs: 2 full at the start (--warmup), 3 with 0.3 of the data" in sweep.schedule(400)
    assert "1 full at the end (--anneal)" in sweep.schedule(400)


def test_the_documented_form(tmp_path: Path) -> None:
    result = carry_out(comparison(methods=("full", "emp"), seeds=(3, 4)), tmp_path, data=tiny.data())
    assert result == files.read_json(tmp_path / "compare.json")
    assert list(result) == ["data", "model", "keep", "epochs", "runs", "summary"]
    assert (result["data"], result["model"], result["keep"], result["epochs"]) == ("digits", "mlp", 0.3, 6)
    for row in result["runs"]:
        assert list(row) == [
            "method", "seed", "accuracy", "samples", "steps", "seconds", "select_seconds", "reached_keep", "flops",
        ]  # fmt: skip
        assert 0 <= row["accuracy"] <= 1 and row["samples"] == 16 * row["steps"]
    for line in result["summary"]:
        assert list(line) == [
            "method", "seeds", "accuracy_mean", "accuracy_std", "samples", "steps", "seconds", "speedup", "flops",
        ]  # fmt: skip
    assert [(row["method"], row["seed"]) for row in result["runs"]] == [
        ("full", 3),
        ("emp", 3),
        ("full", 4),
        ("emp", 4),
    ]
    assert result["summary"][0]["speedup"] == 1.0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "full-seed3",
        "full-seed4",
        "emp-seed3",
        "emp-seed4",
    }


def test_an_interrupted_comparison_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = comparison(methods=("full", "infobatch", "emp"), seeds=(0, 1))
    whole = carry_out(sweep, tmp_path / "whole", data=tiny.data())
    out, step, taken = tmp_path / "parts", training._Run._train_step, [0]

    def failing(self: Any, *batch: torch.Tensor) -> None:
        taken[0] += 1
        if taken[0] == 300:  # in the second seed's first run
            raise KeyboardInterrupt
        step(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training._Run, "_train_step", failing)
        carry_out(sweep, out, data=tiny.data())
    finished = {path: path.read_bytes() for path in out.glob("runs/*/metrics.json")}
    times = {path: path.stat().st_mtime_ns for path in finished}
    assert len(finished) == 3 == len(files.read_json(out / "compare.json")["runs"])
    result = carry_out(sweep, out, data=tiny.data())
    assert timeless(result) == timeless(whole)
    for path, content in finished.items():
        assert path.read_bytes() == content and path.stat().st_mtime_ns == times[path]
    monkeypatch.setattr(training, "_Run", None)  # nothing is left to train
    assert carry_out(sweep, out, data=tiny.data()) == result


def test_the_test_set_is_read_once_per_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = tiny.data(val=80), []

    def watched(part: Any, *rest: Any, **more: Any) -> Any:
        read.append(part)
        return evaluate.batches(part, *rest, **more)

    monkeypatch.setattr(images, "batches", watched)
    carry_out(comparison(methods=("full", "rs2"), seeds=(0, 1)), tmp_path, data=data)
    assert sum(part is data.test for part in read) == 4
    assert all(part is data.test or part is data.val for part in read)


def test_learning_rates_are_chosen_without_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, stage = tiny.data(val=80), []

    def watched(part: Any, *rest: Any, **more: Any) -> Any:
        stage.append("test" if part is data.test else "val")
        return evaluate.batches(part, *rest, **more)

    monkeypatch.setattr(images, "batches", watched)
    settings = tiny.settings(model="mlp", val_fraction=0.2)
    sweep = comparison(settings=settings, methods=("short", "emp"), seeds=(0, 1), learning_rates=(1e-6, 0.05))
    result = carry_out(sweep, tmp_path, data=data)
    tuning = [path for path in (tmp_path / "tuning").iterdir()]
    assert {path.name for path in tuning} == {"short-lr1e-06", "short-lr0.05", "emp-lr1e-06", "emp-lr0.05"}
    assert all(files.read_json(path / "metrics.json")["accuracy"] is None for path in tuning)
    first = stage.index("test")
    evaluations = sum(len(tiny.history(path)) + 1 for path in tuning if path.name.startswith("short"))
    assert stage.count("test") == 4 and first >= evaluations  # not before the method's rate was chosen
    assert {row["lr"] for row in result["runs"]} == {0.05}
    assert all(0 <= row["val_accuracy"] <= 1 for row in result["runs"])
    with pytest.raises(UsageError, match="add --val-fraction"):
        comparison(learning_rates=(0.1,))


def test_label_noise_touches_training_labels_alone() -> None:
    pytest.importorskip("sklearn")
    plain = load_data(Settings(val_fraction=0.2))
    noisy = load_data(Settings(val_fraction=0.2, label_noise=0.5))
    assert plain.val is not None and noisy.val is not None
    assert torch.equal(plain.val.labels, noisy.val.labels) and torch.equal(plain.test.labels, noisy.test.labels)
    changed = float((plain.train.labels != noisy.train.labels).float().mean())
    assert 0.4 < changed < 0.5  # a tenth of the random labels are the true ones


def test_same_seeds_repeat_and_others_differ(tmp_path: Path) -> None:
    sweep = comparison(methods=("infobatch",), seeds=(0, 1))
    first, second = (carry_out(sweep, tmp_path / name, data=tiny.data()) for name in ("one", "other"))
    assert timeless(first) == timeless(second)
    lines = [(tmp_path / "one/runs" / f"infobatch-seed{seed}/history.jsonl").read_text() for seed in (0, 1)]
    assert lines[0] == (tmp_path / "other/runs/infobatch-seed0/history.jsonl").read_text() != lines[1]


def test_a_budget_is_solved_for_keep(tmp_path: Path) -> None:
    sweep = comparison(settings=replace(tiny.settings(model="mlp", epochs=6), keep=None, budget=0.5))
    assert sweep.plan(400).keep == pytest.approx(0.4)
    assert sweep.plan(400).steps == 25 + 5 * 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "at least one method"),
        ({"seeds": ()}, "one seed"),
        ({"methods": ("emp", "shrt")}, "did you mean 'short'"),
        ({"methods": ("emp", "emp")}, "named twice"),
        ({"anneal": 1.5}, "--anneal"),
        ({"option": ("emp.warmup=3",)}, "give --warmup"),
        ({"option": ("infobatch.prune-probability=0.5",)}, "have the same schedule"),
        ({"option": ("beta=3",)}, "METHOD.beta=3"),
        ({"learning_rates": (0.1, -1.0), "val_fraction": 0.1}, "positive learning rates"),
    ],
)
def test_invalid_or_contradictory_arguments(changes: dict, message: str) -> None:
    own = {name: changes.pop(name) for name in ("option", "val_fraction", "anneal") if name in changes}
    with pytest.raises(UsageError, match=message):
        comparison(**changes, settings=tiny.settings(**own))


def test_a_wrong_option_does_not_wait_for_its_turn(tmp_path: Path) -> None:
    sweep = comparison(settings=tiny.settings(option=("memory.betta=3",)))
    with pytest.raises(UsageError, match="unknown option of memory 'betta'"):
        carry_out(sweep, tmp_path / "run", data=tiny.data())
    with pytest.raises(UsageError, match="fewer than one batch"):
        carry_out(comparison(settings=tiny.settings(keep=0.01)), tmp_path / "run", data=tiny.data())
    assert not (tmp_path / "run").exists()


def ranked(rank: int, world_size: int, out: str) -> dict[str, Any]:
    settings = tiny.settings(model="mlp", batch_size=8)
    sweep = comparison(methods=("full", "short", "emp"), settings=settings)
    return carry_out(sweep, Path(out), data=tiny.data())


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_compare(pool: Any, tmp_path: Path) -> None:
    first, second = pool.run(ranked, str(tmp_path), world_size=2)
    assert first == second == files.read_json(tmp_path / "compare.json")
    assert [row["steps"] for row in first["runs"]] == [100, 25 + 3 * 7, 25 + 3 * 7]


def test_methods_can_be_added_to_a_folder(tmp_path: Path) -> None:
    """And nothing that is finished is lost, nor mixed with what was computed otherwise."""
    data = tiny.data()
    both = carry_out(Comparison(tiny.settings(), ["rs2", "short"], [0]), tmp_path, data=data)
    added = carry_out(Comparison(tiny.settings(), ["loss"], [0]), tmp_path, data=data)
    assert [row["method"] for row in added["runs"]] == ["rs2", "short", "loss"]
    assert added["runs"][:2] == both["runs"] and len(added["summary"]) == 3
    for other, message in (
        (Comparison(tiny.settings(lr=0.01), ["loss"], [1]), r"\(lr was 0.05, now 0.01\)"),
        (Comparison(tiny.settings(anneal=0.5), ["loss"], [1]), r"\(anneal was 0.0, now 0.5\)"),
        (Comparison(tiny.settings(option=("loss.balance=true",)), ["loss"], [1]), "options of loss.balance was null"),
    ):
        with pytest.raises(UsageError, match="holds another comparison .*" + message):
            carry_out(other, tmp_path, data=data)
    assert files.read_json(tmp_path / "compare.json") == added
    files.write_json(tmp_path / "compare.json", {"other": 1})
    with pytest.raises(CheckpointError, match="damaged"):
        carry_out(Comparison(tiny.settings(), ["loss"], [0]), tmp_path, data=data)
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(UsageError, match=r"has compare\.json but no sweep\.json"):
        carry_out(Comparison(tiny.settings(), ["loss"], [0]), tmp_path, data=data)


def test_calls_in_one_folder_keep_each_others_rows(tmp_path: Path) -> None:
    """Another call adds its rows while this one trains."""
    data, other = tiny.data(), Comparison(tiny.settings(), ["emp"], [0])

    def meanwhile(method: str, seed: int, line: dict[str, Any]) -> None:
        if (method, line["epoch"]) == ("loss", 1):
            carry_out(other, tmp_path, data=data)

    carry_out(Comparison(tiny.settings(), ["rs2", "loss"], [0]), tmp_path, data=data, report=meanwhile)
    content = files.read_json(tmp_path / "compare.json")
    assert sorted(row["method"] for row in content["runs"]) == ["emp", "loss", "rs2"] and len(content["summary"]) == 3
    claimed = files.read_json(tmp_path / "sweep.json")
    assert {f"options of {name}" for name in ("rs2", "loss", "emp")} <= claimed.keys()


def test_runs_and_comparisons_take_no_folder_of_each_other(tmp_path: Path) -> None:
    data, settings = tiny.data(), tiny.settings()
    carry_out(Comparison(settings, ["emp"], [0]), tmp_path / "compare", data=data)
    with pytest.raises(UsageError, match="compare holds a comparison: choose another --out"):
        training.run(settings, tmp_path / "compare", data=data)
    training.run(settings, tmp_path / "train", data=data)
    with pytest.raises(UsageError, match="train holds a single run: choose another --out"):
        carry_out(Comparison(settings, ["emp"], [0]), tmp_path / "train", data=data)
    assert not (tmp_path / "train" / "sweep.json").exists() and not (tmp_path / "compare" / "config.json").exists()


STATIC = ("full", "short", "rs2", "el2n", "ccs", "k_center", "tdds", "top", "dual_beta", "semdedup")
OPTIONS = ("ccs.cutoff=0.1", "tdds.window=3", "dual.window=2", "dyn_unc.window=2", "top.statistic=dual")


def static(**changes: Any) -> Comparison:
    methods = changes.get("methods", STATIC)
    own = tuple(text for text in OPTIONS if text.split(".")[0] in (*methods, "tdds", "dual", "dyn_unc"))
    settings = tiny.settings(model="mlp", epochs=6, option=own)
    return comparison(**({"methods": STATIC, "settings": settings, "score_epochs": 4} | changes))


@pytest.mark.slow
def test_static_methods_take_the_same_steps_and_say_what_scoring_costs(tmp_path: Path) -> None:
    result = carry_out(static(seeds=(0, 1)), tmp_path, data=tiny.data())
    rows = {row["method"]: row for row in result["runs"] if row["seed"] == 1}
    assert {row["steps"] for method, row in rows.items() if method != "full"} == {25 + 7 * 5}
    for method, row in rows.items():
        scored = method not in ("full", "short", "rs2")
        assert ("scoring_seconds" in row) == scored
        if scored:
            assert row["scoring_samples"] == 4 * 400 and row["scoring_seconds"] > 0
            assert row["samples"] == 16 * row["steps"] and row["reached_keep"] == pytest.approx(0.3)
            assert tiny.history(tmp_path / "runs" / f"{method}-seed1")[-1]["lr"] < 0.05 * 0.01
    summary = {line["method"]: line for line in result["summary"]}
    full = summary["full"]["seconds"]
    line = summary["ccs"]
    assert line["total_speedup"] == pytest.approx(full / (line["seconds"] + line["scoring_seconds"]))
    assert "total_speedup" not in summary["rs2"]
    metrics = files.read_json(tmp_path / "scoring" / "seed0" / "metrics.json")
    assert metrics["accuracy"] is None  # the test set is not looked at
    notes = Selection.metadata(tmp_path / "coresets" / "ccs-seed0.safetensors")
    assert notes["method"] == "ccs" and notes["options"] == {"cutoff": 0.1} and notes["keep"] == pytest.approx(0.3)
    drawn = {
        method: Selection.load(tmp_path / "coresets" / f"{method}-seed0.safetensors").index.tolist()
        for method in ("el2n", "ccs", "k_center", "tdds", "dual_beta", "semdedup")
    }
    assert len({tuple(sorted(index)) for index in drawn.values()}) == 6


def test_static_methods_are_found_again_and_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = carry_out(static(methods=("rs2", "el2n")), tmp_path, data=tiny.data())
    again = carry_out(static(methods=("k_center",)), tmp_path, data=tiny.data())
    assert [row["method"] for row in again["runs"]] == ["rs2", "el2n", "k_center"]
    assert again["runs"][:2] == first["runs"]
    monkeypatch.setattr(select, "select", lambda *_, **__: pytest.fail("selected again"))
    assert carry_out(static(methods=("rs2", "el2n", "k_center")), tmp_path, data=tiny.data()) == again
    with pytest.raises(UsageError, match=r"another comparison \(score_epochs was 4, now 5"):
        carry_out(static(methods=("el2n",), score_epochs=5), tmp_path, data=tiny.data())


def forwarding(monkeypatch: pytest.MonkeyPatch, method: str, samples: int) -> None:
    """Let a method forward so many samples at the end of every epoch, to score them."""
    close = training._Run._close

    def closing(self: Any, epoch: int, selection: Selection) -> None:
        close(self, epoch, selection)
        self.forwarded += samples * (self.method == method)

    monkeypatch.setattr(training._Run, "_close", closing)


def test_rows_have_their_share_of_the_compute_of_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forwarding(monkeypatch, "loss", 240)
    sweep = static(methods=("full", "rs2", "loss", "el2n", "k_center", "random_coreset"), score_epochs=2)
    result = carry_out(
        replace(sweep, settings=replace(sweep.settings, val_fraction=0.2)), tmp_path, data=tiny.data(val=80)
    )
    full, trained = 6 * 20 * 16, (20 + 5 * 6) * 16  # epochs of 20 steps, and of 6 where 0.3 of 320 samples are kept
    expected = {
        "full": full,
        "rs2": trained,
        "loss": trained + 6 * 240 / 3,
        "el2n": trained + 2 * 320,
        "k_center": trained + 2 * 320 + (320 + 80) / 3,  # features of the training set, and of the validation split
        "random_coreset": trained,
    }
    rows = {row["method"]: row for row in result["runs"]}
    assert {method: row["flops"] for method, row in rows.items()} == pytest.approx(
        {method: compute / full for method, compute in expected.items()}
    )
    assert rows["loss"]["forwarded_samples"] == 1440 and "forwarded_samples" not in rows["rs2"]
    assert rows["k_center"]["scoring_forwarded_samples"] == 400 and rows["el2n"]["scoring_forwarded_samples"] == 0
    assert not any(name.startswith("scoring") for name in rows["random_coreset"])
    assert {line["method"]: line["flops"] for line in result["summary"]} == {
        method: row["flops"] for method, row in rows.items()
    }
    assert {row["steps"] for method, row in rows.items() if method != "full"} == {50}


def test_deepfool_pays_for_every_pass(tmp_path: Path) -> None:
    sweep = static(methods=("deepfool",), score_epochs=1)
    (row,) = carry_out(sweep, tmp_path, data=tiny.data())["runs"]
    # at least a forward pass of every sample, and where it is classified three back to the input, for the other classes
    assert row["scoring_forwarded_samples"] >= 400 + 3 * 300
    assert row["flops"] == pytest.approx((60 * 16 + 400 + row["scoring_forwarded_samples"] / 3) / 2400)


def test_at_equal_flops_scoring_comes_out_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forwarding(monkeypatch, "loss", 240)
    methods = ("full", "short", "rs2", "loss", "el2n", "k_center", "random_coreset")
    sweep = static(methods=methods, score_epochs=1, equal="flops")
    result = carry_out(sweep, tmp_path, data=tiny.data())
    rows = {row["method"]: row for row in result["runs"]}
    plan = (25 + 5 * 7) * 16  # samples of the shared schedule
    assert {method: row["steps"] for method, row in rows.items()} == {
        "full": 150,
        "short": 60,
        "rs2": 60,
        "loss": 25 + 7 + 7 + 6,  # and after every epoch 240 / 3 samples' worth, which is 5 steps
        "el2n": (plan - 400) // 16,
        "k_center": int((plan - 400 - 400 / 3) / 16),
        "random_coreset": 60,
    }
    assert result["equal"] == "flops" and result["planned_flops"] == plan / 2400
    assert all(compute.reached(result, row) for row in result["runs"] if row["method"] not in ("full", "loss"))
    for method, row in rows.items():  # each plans its learning rate over its own steps
        last = tiny.history(tmp_path / "runs" / f"{method}-seed0")[-1]
        assert last["steps"] == row["steps"] and last["lr"] < 0.05 * 0.01, method
    config = files.read_json(tmp_path / "runs" / "loss-seed0" / "config.json")
    assert config["steps"] == 60 and config["count_forwards"]
    assert carry_out(sweep, tmp_path, data=tiny.data()) == result


def test_a_smaller_scoring_model_leaves_more_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = static(methods=("el2n",), score_epochs=1, score_model="lenet", equal="flops")
    monkeypatch.setattr(compute, "relative_flops", lambda *asked: {("lenet", "mlp", (1, 8, 8), 4): 0.25}[asked])
    (row,) = carry_out(sweep, tmp_path, data=tiny.data())["runs"]
    assert row["scoring_flops"] == 0.25 and row["steps"] == 60 - 7  # 100 samples' worth are 6.25 steps of 16
    assert row["flops"] == (53 * 16 + 100) / 2400


def test_scoring_that_leaves_nothing_is_refused_before_training(tmp_path: Path) -> None:
    costs = r"el2n: scoring costs as much as 1,600 trained samples, .* may cost 960 \(60 steps of 16\): "
    for changes, message in (
        (
            {"score_epochs": 4},
            costs + "give --score-epochs 2 or fewer, raise --keep or --budget, or take --equal steps",
        ),
        ({"score_epochs": 1, "score_runs": 3}, "even one epoch of scoring is too much: give a smaller --score-model"),
    ):
        with pytest.raises(UsageError, match=message):
            carry_out(static(methods=("rs2", "el2n"), equal="flops", **changes), tmp_path / "run", data=tiny.data())
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="did you mean 'flops'"):
        static(equal="flop")


def test_a_folder_begun_at_equal_steps_is_not_continued_at_equal_flops(tmp_path: Path) -> None:
    for equal, other in (("steps", "flops"), ("flops", "steps")):
        out = tmp_path / equal
        carry_out(comparison(methods=("rs2",), equal=equal), out, data=tiny.data())
        with pytest.raises(UsageError, match=f'holds another comparison .equal was "{equal}", now "{other}"'):
            carry_out(comparison(methods=("rs2",), equal=other), out, data=tiny.data())
    path = tmp_path / "steps" / "sweep.json"
    files.write_json(path, {name: value for name, value in files.read_json(path).items() if name != "equal"})
    with pytest.raises(UsageError, match='equal was "steps", now "flops"'):  # of an earlier version
        carry_out(comparison(methods=("rs2",), equal="flops"), tmp_path / "steps", data=tiny.data())


def test_all_arms_have_one_namespace() -> None:
    names = [*dataprune.METHODS, SHORT, *coresets.METHODS]
    assert len(set(names)) == len(names)
    free = [name for name, static in coresets.METHODS.items() if static.needs == "scores" and static.statistic is None]
    options = [f"{name}.statistic=el2n" for name in free]
    settings = tiny.settings(val_fraction=0.2, epochs=40, option=tuple(options))
    every = comparison(methods=[name for name in names if name != "emp_contrastive"], settings=settings)
    assert every.static == list(coresets.METHODS)


def test_options_are_those_of_their_own_method(tmp_path: Path) -> None:
    settings = tiny.settings(model="mlp", epochs=6, option=("emp.beta=1", "ccs.cutoff=0.1"))
    both = comparison(methods=("emp", "rs2", "ccs"), settings=settings)
    assert both.run_settings("emp", 0, 400).option == ("emp.beta=1",)
    assert both.run_settings("rs2", 0, 400).option == ()
    assert both.scoring(0).option == ()


@pytest.mark.parametrize(("equal", "warmup", "keep"), [("steps", 1, 0.3), ("flops", 0, 0.25), ("flops", 1, 0.3)])
def test_methods_that_choose_inside_the_batch(equal: str, warmup: int, keep: float, tmp_path: Path) -> None:
    """A super-batch is scored before each step: at equal FLOPs a third of its rows comes out of the steps."""
    settings = tiny.settings(
        model="mlp", epochs=6, warmup=warmup, keep=keep, option=("online:loss.sample=true", "emp.beta=2")
    )
    methods = ("short", "rs2", "online:uniform", "online:loss")
    sweep = comparison(settings=settings, methods=methods, equal=equal)
    result = carry_out(sweep, tmp_path, data=tiny.data())
    planned, read = sweep.plan(400).steps, round(16 / keep)
    steps = planned if equal == "steps" else int(planned / (1 + read / 48))
    runs = {row["method"]: row for row in result["runs"]}
    assert list(runs) == list(methods) and runs["short"]["steps"] == runs["rs2"]["steps"] == planned
    for method in methods[2:]:
        row = runs[method]
        assert (row["steps"], row["samples"], row["forwarded_samples"]) == (steps, 16 * steps, read * steps), method
        assert row["flops"] == pytest.approx((16 + read / 3) * steps / (6 * 25 * 16))
        config = files.read_json(tmp_path / f"runs/{method}-seed0/config.json")
        assert config["option"] == (["online:loss.sample=true"] if method == "online:loss" else [])
        assert tiny.history(tmp_path / f"runs/{method}-seed0")[-1]["lr"] < 0.05 * 0.05
    if equal == "flops":
        assert compute.short_of_plan(result) == []
    (group,) = records.read([tmp_path])
    assert {check.what for check in integrity.checks(group) if check.state == "failed"} == set()


def test_online_methods_are_checked_before_anything_is_trained() -> None:
    with pytest.raises(UsageError, match="unknown online recipe 'emp'"):
        comparison(methods=("online:emp",))
    with pytest.raises(UsageError, match="online:excess needs a reference model"):
        comparison(methods=("short", "online:excess"))
    sweep = comparison(methods=("online:loss",), settings=tiny.settings(option=("online:loss.beta=2",)))
    with pytest.raises(UsageError, match="unknown option of online:loss 'beta'"):
        sweep.steps(tiny.data(), Places(Path()))
