"""The papers' tables and figures: every file means something at every scale, and runs at the smallest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("yaml", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("matplotlib", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("sklearn", reason="the extra cli is not installed: pip install -c constraints.txt -e '.[cli]'")

import yaml

from dataprune import files
from dataprune.cli import app
from dataprune.coresets import top
from dataprune.dynamics import load_scores
from dataprune.errors import UsageError
from dataprune.lab.report import reproductions
from dataprune.lab.sweeps import papers
from dataprune.lab.sweeps.papers import experiment, run
from dataprune.lab.sweeps.sweep import carry_out
from dataprune.lab.training import tasks
from dataprune.lab.training.build import build_pruner, load_data
from dataprune.lab.training.run import run as train
from dataprune.selection import Selection

EVERY = papers.available()
GRIDS = [name for name in EVERY if experiment.content(name)[1].get("kind", "grid") == "grid"]
NEEDED = {  # what the papers have, beside what this library asks of itself
    *(f"emp_table{number}" for number in range(1, 6)),
    *(f"emp_figure{number}" for number in (1, *range(3, 12))),
    "emp_figure8_contrastive",
    "emp_reverse",
    *(f"tdds_table{number}" for number in range(1, 6)),
    *(f"tdds_figure{number}" for number in (1, 4, 5, 6)),
    "tdds_cross_architecture",
    "drop_table1",
    "drop_figure1",
    "drop_figure2",
    "drop_cifar10_resnet18",
    "drop_cifar10_resnet50",
    "drop_mnist_lenet",
    "drop_mnist_mlp",
}
SETTINGS = {"train-size": 96, "test-size": 64, "model": "mlp", "epochs": 4, "batch-size": 16, "device": "cpu"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:1 of . epochs train all samples before anything is pruned"),
    pytest.mark.filterwarnings("ignore:one sample weighs"),  # of TDDS, on so few
]


def of(**changes: Any) -> experiment.Experiment:
    shared = {"source": "", "claim": "", "panels": {"digits": {"data": "digits"}}, "keep": [0.5], "arms": ["rs2"]}
    return experiment.of("own", {**shared, "settings": SETTINGS, "scales": {"smoke": {}}, **changes}, "smoke")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_all_tables_and_figures_are_there() -> None:
    assert EVERY.keys() >= NEEDED


@pytest.mark.parametrize("name", EVERY)
def test_headers_say_what_is_claimed(name: str) -> None:
    text = EVERY[name].read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert "Claim" in header or "claim" in header
    assert experiment.content(name)[1]["source"] and experiment.content(name)[1]["claim"]


@pytest.mark.parametrize("name", GRIDS)
def test_every_scale_can_be_read(name: str) -> None:
    scales = experiment.content(name)[1]["scales"]
    assert "smoke" in scales and "paper" in scales and set(scales) <= set(experiment.SCALES)
    for scale in scales:
        experiment.read(name, scale)
    assert experiment.read(name, "paper").published == experiment.content(name)[1].get("published", {})


@pytest.mark.parametrize(
    ("name", "arm", "keep", "full", "epochs", "steps"),
    [
        # annealing for the last eighth, which the paper has and the recipes do not
        ("emp_table1", "emp", 0.7, 26, 200, 57642),
        ("emp_figure8", "infobatch", 0.7, 26, 200, 57642),
        ("emp_figure8", "infobatch, not annealed", 0.7, 1, 200, 54717),
        ("emp_figure8", "emp, not annealed", 0.7, 1, 200, 54717),
    ],
)
def test_the_papers_schedules(name: str, arm: str, keep: float, full: int, epochs: int, steps: int) -> None:
    """Full epochs and steps on 50,000 samples, as planned before annealing stopped to be a recipe's default."""
    planned = experiment.read(name, "paper")
    cell = next(c for c in planned.cells("CIFAR-10") if (c.key.arm, c.key.keep) == (arm, keep))
    plan = cell.comparison.plan(50_000)
    assert (sum(plan.full), len(plan.full), plan.steps) == (full, epochs, steps)
    counts = build_pruner(cell.comparison.run_settings(cell.method, 0, 50_000), 50_000).counts
    assert [count == 50_000 for count in counts] == plan.full


def test_small_batches_are_for_small_coresets_alone() -> None:
    planned = of(arms=["full", "aum"], keep=[0.3, 0.2, 0.1], small_batches=True)
    cells = [planned.comparison("digits", keep, arm, 0) for arm in planned.arms for keep in planned.keep]
    assert [cell.settings.batch_size for cell in cells] == [16, 16, 16, 16, 8, 4]
    assert [cell.scoring(0).batch_size for cell in cells] == [16] * 6
    assert cells[3].scoring(0) == cells[5].scoring(0)  # one run serves all


def test_published_numbers_stand_beside_their_share() -> None:
    content = {
        "keep": [0.7, 0.5, 0.3], "arms": ["full", "rs2", "emp"], "panels": {"digits": {"data": "digits"}},
        "published": {"digits": {"full": [1, 2, 3], "emp": [4, None, 6]}, "CIFAR-10": {"emp": [7, 8, 9]}},
        "settings": SETTINGS,
    }  # fmt: skip

    def published(**own: Any) -> Any:
        return experiment.of("own", {**content, "scales": {"cpu": own}}, "cpu").published

    assert experiment.read("emp_table1", "cpu").published["CIFAR-100"]["emp"] == [78.63]
    assert published() == {"digits": content["published"]["digits"]}
    assert published(keep=[0.3, 0.9, 0.7]) == {"digits": {"full": [3, None, 1], "emp": [6, None, 4]}}
    assert published(keep=[0.5], arms=["rs2", "emp"]) == {}
    assert published(published={}) == {}
    assert published(keep=[0.2], published={"digits": {"emp": [5]}}) == {"digits": {"emp": [5]}}
    with pytest.raises(UsageError, match="published, digits, emp: 1 numbers for the 3 of keep"):
        published(published={"digits": {"emp": [5]}})
    with pytest.raises(UsageError, match="published, digits, full: 3 numbers for the 0 of keep"):
        experiment.of(
            "own", {**{k: v for k, v in content.items() if k != "keep"}, "scales": {"cpu": {"keep": [0.5]}}}, "cpu"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_smoke(name: str, cache: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = None
    if name in ("emp_table3", "which_budgets_language"):
        request.getfixturevalue("data_folder")
        model = request.getfixturevalue("encoder")
    for module in ("transformers",) if name == "tdds_table4" else ():
        pytest.importorskip(module)
    files = papers.reproduce(name, "smoke", tmp_path, cache, model=model, jobs=1)
    result = json.loads((tmp_path / "result.json").read_text())
    planned = experiment.read(name, "smoke")
    assert len(result["rows"]) == sum(len(planned.cells(panel)) for panel in planned.panels)
    assert {line["arm"] for line in result["summary"]} == set(planned.arms)
    assert all(file.stat().st_size > 0 for file in files) and len(files) == 4
    assert all(f"| {arm} |" in (tmp_path / "table.md").read_text() for arm in planned.arms)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EVERY if name.startswith("drop_")])
def test_smoke_of_joint_pruning(name: str, tmp_path: Path) -> None:
    files = papers.reproduce(name, "smoke", tmp_path, tmp_path)
    result = json.loads((tmp_path / "joint.json").read_text())
    assert len(result["cells"]) == 2 + 3 * 2 and all(file.exists() for file in files)


def test_runs_are_made_once(tmp_path: Path) -> None:
    planned = of(keep=[0.75, 0.5], arms=["full", "rs2", "el2n"], settings={**SETTINGS, "option": {"el2n.epochs": 2}})
    lines: list[Any] = []
    first = run.reproduce(planned, tmp_path / "a", tmp_path / "cache", report=lambda *line: lines.append(line))
    # full once, its line at both; a scoring run that is shared; two of rs2 and of el2n
    assert len(list((tmp_path / "cache" / "runs").iterdir())) == 1 + 1 + 2 + 2
    full = [row for row in first["rows"] if row["arm"] == "full"]
    assert [row["keep"] for row in full] == [0.75, 0.5] and len({row["accuracy"] for row in full}) == 1
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("metrics.json")}
    other = of(keep=[0.5], arms={"ELFL": {"method": "rs2"}})
    second = run.reproduce(other, tmp_path / "b", tmp_path / "cache")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("metrics.json")} == times
    wanted = next(row for row in first["rows"] if (row["arm"], row["keep"]) == ("rs2", 0.5))
    assert second["rows"] == [{**wanted, "arm": "ELFL"}]


def test_an_arm_says_what_is_its_own() -> None:
    planned = of(
        keep=[0.75, 0.5],
        settings={**SETTINGS, "option": {"tdds.window": 3}},
        arms={"mine": {"method": "tdds", "lr": 0.5, "anneal": 0.25, "at": {0.5: {"option": {"until": 4}}}}},
    )
    at = {cell.key.keep: cell.comparison for cell in planned.cells("digits")}
    assert at[0.75].settings.option == ("tdds.window=3",)
    assert at[0.5].settings.option == ("tdds.window=3", "tdds.until=4")
    assert at[0.5].settings.lr == 0.5 and at[0.5].settings.anneal == 0.25 and at[0.5].methods == ["tdds"]


def test_a_share_has_settings_in_any_part() -> None:
    planned = of(
        keep=[0.75, 0.5],
        arms={"tdds": {}, "ccs": {}, "outer": {"method": "tdds", "at": {0.5: {"option": {"window": 4}}}}},
        settings={
            **SETTINGS,
            "at": {0.5: {"lr": 0.5, "option": {"tdds.window": 3}}, 0.75: {"option": {"tdds.until": 4}}},
        },
        panels={"digits": {"data": "digits", "at": {0.75: {"option": {"ccs.cutoff": 0.1, "tdds.window": 3}}}}},
    )
    at = {(cell.key.arm, cell.key.keep): cell.comparison.settings for cell in planned.cells("digits")}
    assert {place: settings.option for place, settings in at.items()} == {
        ("tdds", 0.75): ("tdds.until=4", "tdds.window=3"),
        ("tdds", 0.5): ("tdds.window=3",),
        ("ccs", 0.75): ("ccs.cutoff=0.1",),
        ("ccs", 0.5): (),
        ("outer", 0.75): ("tdds.until=4", "tdds.window=3"),
        ("outer", 0.5): ("tdds.window=3", "tdds.window=4"),
    }
    assert {keep: at["tdds", keep].lr for keep in (0.75, 0.5)} == {0.75: 0.1, 0.5: 0.5}
    assert at["outer", 0.5].options()["tdds"] == {"window": 4}  # the arm has the last word


def test_a_coreset_by_the_scores_of_several_models(tmp_path: Path) -> None:
    arms = {"one": {"method": "el2n"}, "three": {"method": "el2n", "score-runs": 3}}
    planned = of(arms=arms, warmup=0)
    result = run.reproduce(planned, tmp_path / "a", tmp_path / "cache")
    one, three = result["rows"]
    assert three["scoring_samples"] == 3 * one["scoring_samples"]
    tables = [load_scores(path).scores["el2n"] for path in (tmp_path / "cache" / "runs").glob("*/scores.*")]
    assert len(tables) == 3
    mean = top(torch.stack(tables).double().mean(0), keep=0.5, seed=0).index
    chosen = [Selection.load(path).index for path in (tmp_path / "cache" / "coresets").iterdir()]
    assert any(torch.equal(index, mean) for index in chosen) and not torch.equal(*chosen)
    with pytest.raises(UsageError, match="score-runs is for methods that read scores, not herding"):
        of(arms={"herding": {"score-runs": 2}})
    with pytest.raises(UsageError, match="score-runs must be at least 1, got 0"):
        of(arms={"el2n": {"score-runs": 0}})


def test_glister_may_validate_on_the_training_set() -> None:
    with pytest.raises(UsageError, match=r"add --val-fraction 0.1, or --option glister.validation=train"):
        of(arms=["glister"])
    of(arms={"glister": {"option": {"validation": "train"}}})


def test_strategy_p_has_the_steps_of_full_training() -> None:
    planned = of(keep=[0.5, 0.25], arms=["full", "static_random"], warmup=0, strategy="P")
    cells = {(cell.key.arm, cell.key.keep): cell.comparison.settings for cell in planned.cells("digits")}
    assert {cells["full", keep].epochs for keep in (0.5, 0.25)} == {4}
    assert [cells["static_random", keep].epochs for keep in (0.5, 0.25)] == [8, 16]
    comparison = next(cell.comparison for cell in planned.cells("digits") if cell.key.arm == "static_random")
    assert comparison.plan(96).steps == 8 * (48 // 16)


def test_coresets_of_another_model(tmp_path: Path) -> None:
    planned = of(arms=["aum"], score_model="lenet")
    run.reproduce(planned, tmp_path / "a", tmp_path / "cache")
    stored = [files.read_json(file) for file in (tmp_path / "cache" / "runs").glob("*/config.json")]
    assert {(settings["method"], settings["model"]) for settings in stored} == {("full", "lenet"), ("fixed", "mlp")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"rs2": {"data": "mnist"}}}, "all arms of a panel share their data"),
        ({"arms": ["rs3"]}, "did you mean 'rs2'"),
        ({"arm": ["rs2"]}, "did you mean 'arms'"),
        ({"panels": {}}, "it has no panels"),
        ({"show": "acuracy"}, "did you mean 'accuracy'"),
        ({"settings": {**SETTINGS, "epoch": 3}}, "did you mean 'epochs'"),
        ({"scales": {"cpu": {}}}, "no scale 'smoke', it has cpu"),
        ({"keep": [2.0]}, "--keep is a fraction"),
        ({"keep": 0.5}, "keep must be a list, each a number, got 0.5"),
        ({"keep": ["a"]}, "keep must be a list"),
        ({"keep": [0.5, 0.5]}, "keep names a share twice"),
        ({"claim": None}, "claim must be text"),
        ({"arms": [1, True]}, "a name must be a list, each text"),
        ({"arms": "rs2"}, "arms must be lines of name: value"),
        ({"arms": {"rs2": 3}}, "arms must be lines of name: value, each lines of name: value, got"),
        ({"arms": {"emp": {"seed": 5}}}, "'emp' sets seed: all arms share it"),
        ({"arms": {"emp": {"keep": 0.1}}}, "'emp' sets keep: all arms share it"),
        ({"settings": {**SETTINGS, "seed": 5}}, "'settings' sets seed"),
        ({"settings": {**SETTINGS, "label-noise": "abc"}}, "label-noise must be a number, got 'abc'"),
        ({"settings": [1]}, "settings must be lines of name: value"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": "two"}, "seeds must be a whole number, got 'two'"),
        ({"published": {"digits": {"emp": {0.5: "hello"}}}}, "published must be lines of name: value, each lines"),
        ({"arms": ["full", "rs2"], "show": "difference"}, "the difference is to `short`"),
    ],
)
def test_invalid_files_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        of(**changes)


def test_numbers_that_yaml_takes_for_text() -> None:
    assert experiment.settings_of({"lr": "1e-4"}).lr == 1e-4


def test_a_folder_is_of_one_experiment(tmp_path: Path) -> None:
    planned = of(arms=["rs2"])
    first = run.reproduce(planned, tmp_path / "a", tmp_path / "cache")
    assert first["plan"]["settings"] == SETTINGS and first["version"]
    grown = run.reproduce(of(arms=["rs2", "full"], keep=[0.5, 0.25], seeds=2), tmp_path / "a", tmp_path / "cache")
    assert len(grown["rows"]) == 2 * 2 * 2
    for name, other in [
        ("scale", replace(planned, scale="cpu")),
        ("name", replace(planned, name="another")),
        ("settings.lr was null, now 0.5", of(settings={**SETTINGS, "lr": 0.5})),
        ("arm rs2.lr was null, now 0.5", of(arms={"rs2": {"lr": 0.5}})),
    ]:
        with pytest.raises(UsageError, match=rf"holds another experiment \({name}.*choose another --out"):
            run.reproduce(other, tmp_path / "a", tmp_path / "cache")
    cell = planned.cells("digits")[0]
    carry_out(cell.comparison, tmp_path)
    with pytest.raises(UsageError, match='kind was "comparison", now "experiment"'):
        run.reproduce(planned, tmp_path, tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        run.reproduce(planned, tmp_path / "file", tmp_path / "cache")
    with pytest.raises(OSError, match=r"cannot make the folder .*choose another --out"):
        run.reproduce(planned, tmp_path / "file" / "below", tmp_path / "cache")


@pytest.mark.parametrize("name", ["emp_figure9", "drop_figure1"])
def test_a_model_is_for_language(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--model is for language tasks"):
        papers.reproduce(name, "smoke", tmp_path, tmp_path, model="resnet18")


def test_the_table_tells_of_unequal_steps(tmp_path: Path) -> None:
    planned = of(arms={"short": {}, "full": {}, "loss": {"epochs": 6}})
    text = reproductions.table(run.reproduce(planned, tmp_path / "a", tmp_path / "cache"))
    assert "Not all arms but `full` take as many steps" in text and "scale smoke, 1 seed, mlp." in text
    even = reproductions.table(run.reproduce(of(arms=["short", "full", "loss"]), tmp_path / "b", tmp_path / "cache"))
    assert "Not all arms" not in even


@pytest.mark.slow
def test_the_table_says_what_is_not_the_papers(tmp_path: Path) -> None:
    differs = {"crop": "there is none"}
    result = run.reproduce(of(differs=differs), tmp_path / "a", tmp_path / "cache")
    assert reproductions.table(result).endswith("\n\nNot as in the paper:\n\n- crop: there is none\n")
    content = experiment.content("drop_table1")[1]
    content["scales"]["smoke"] |= {"differs": differs, "published": {"low": {0.5: {0.5: -1.25, 0.9: 3}}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    papers.reproduce(str(tmp_path / "own.yaml"), "smoke", tmp_path / "joint", tmp_path)
    text = (tmp_path / "joint" / "table.md").read_text()
    assert "| low | 0.5 | 0.5 | " in text and text.count(" | −1.25 |") == 1 and "+3.00" not in text
    assert text.endswith("\n\nNot as in the paper:\n\n- crop: there is none\n")


def test_the_table_says_what_is_kept_beyond_the_share(tmp_path: Path) -> None:
    planned = of(arms=["full", "short", "rs2", "infobatch", "aum"], keep=[0.25], warmup=1)
    result = run.reproduce(planned, tmp_path / "a", tmp_path / "cache")
    (kept,) = [row["reached_keep"] for row in result["rows"] if row["arm"] == "infobatch"]
    lines = reproductions.table(result).splitlines()
    assert [line.split(" |")[0] for line in lines if ", kept " in line] == ["| infobatch"]
    assert kept > 0.3 and any(f", kept {kept:.2f} |" in line for line in lines)


def test_names_are_text_in_table_and_figure(tmp_path: Path) -> None:
    planned = of(arms={"π|é $a": {"method": "rs2"}}, panels={"$x^2": {"data": "digits"}})
    result = run.reproduce(planned, tmp_path / "a", tmp_path / "cache")
    assert "| π\\|é $a | " in reproductions.table(result)
    reproductions.figure(result, tmp_path / "figure")
    assert "$x^2" in (tmp_path / "figure.svg").read_text()


def test_selections_count_all_samples(tmp_path: Path) -> None:
    planned = of(arms=["rs2", "emp"], show="selections", seeds=2)
    result = run.reproduce(planned, tmp_path / "a", tmp_path / "cache")
    for line in result["kept"]["digits"]:
        counts = np.array(line["samples"])
        assert len(counts) == 5 and counts.sum() == 96
        assert (counts * np.arange(5)).sum() == 96 + 3 * 48  # the first epoch full


def test_the_line_begins_untrained_and_ends_trained(tmp_path: Path) -> None:
    planned = of(arms=["emp"], show="interpolation")
    result = run.reproduce(planned, tmp_path / "a", tmp_path / "cache")
    (line,) = result["kept"]["digits"]
    at = dict(zip(line["epsilon"], line["accuracy"]))
    cell = planned.cells("digits")[0]
    data = load_data(cell.comparison.settings)
    task = tasks.of(cell.comparison.settings, data)
    untrained = task.test(task.model(), torch.device("cpu"))["accuracy"]
    assert at[0.0] == pytest.approx(untrained, abs=1e-5)
    assert at[1.0] == pytest.approx(result["rows"][0]["accuracy"], abs=1e-5)
    assert len(line["loss"]) == len(line["epsilon"]) == 25 and line["loss"][20] < line["loss"][0]


def test_weights_are_there_although_a_run_without_them_was_made(tmp_path: Path) -> None:
    plain = run.reproduce(of(arms=["emp"]), tmp_path / "a", tmp_path / "cache")
    line = run.reproduce(of(arms=["emp"], show="interpolation"), tmp_path / "b", tmp_path / "cache")
    assert plain["rows"][0]["accuracy"] == line["rows"][0]["accuracy"] and line["kept"]["digits"]


def test_losses_are_those_of_the_history(tmp_path: Path) -> None:
    planned = of(arms=["loss"], show="loss", seeds=2)
    result = run.reproduce(planned, tmp_path / "a", tmp_path / "cache")
    histories = [files.read_json_lines(file) for file in (tmp_path / "cache" / "runs").glob("*/history.jsonl")]
    wanted = np.mean([[line["loss"] for line in history] for history in histories], axis=0)
    assert result["kept"]["digits"][0]["loss"] == pytest.approx(wanted, abs=1e-5)
    wanted = np.mean([[line["train_accuracy"] for line in history] for history in histories], axis=0)
    assert result["kept"]["digits"][0]["accuracy"] == pytest.approx(wanted, abs=1e-5)
    assert "training accuracy, %" in drawn(result, tmp_path)
    del result["kept"]["digits"][0]["accuracy"]  # older results have none
    assert "training accuracy, %" not in drawn(result, tmp_path) and "training loss" in drawn(result, tmp_path)


def drawn(result: Any, tmp_path: Path) -> str:
    """Text of a result's figure."""
    reproductions.figure(result, tmp_path / "figure")
    return (tmp_path / "figure.svg").read_text()


def test_published_numbers_stand_below_the_fine_tuned_ones(tmp_path: Path) -> None:
    line = {"panel": "digits", "keep": 0.5, "arm": "emp", "seeds": 1, "steps": 12.0}
    line |= {"accuracy_mean": 0.5, "accuracy_std": 0.0, "finetuned_accuracy_mean": 0.75, "finetuned_accuracy_std": 0.0}
    result = {
        "name": "own", "source": "s", "claim": "c.", "scale": "cpu", "seeds": 1, "note": "", "panels": ["digits"],
        "keep": [0.5], "arms": ["emp"], "published": {"digits": {"emp": [76.5]}}, "summary": [line], "rows": [],
        "show": "accuracy",
    }  # fmt: skip
    assert "| emp | 50.00; fine-tuned 75.00 (76.5) | 12 |" in reproductions.table(result)
    text = drawn(result, tmp_path)
    assert all(f"digits: {row}" in text for row in ("linear probe", "fine-tuned", "published, fine-tuned"))


def test_a_missing_run_is_a_gap_in_the_table() -> None:
    published = {"digits": {"emp": [1.5, None]}}
    line = {"panel": "digits", "keep": 0.5, "arm": "rs2", "seeds": 2, "steps": 1200.0}
    line |= {"accuracy_mean": 0.5, "accuracy_std": 0.01}
    result = {
        "name": "own", "source": "s", "claim": "c.", "scale": "cpu", "seeds": 2, "note": "", "panels": ["digits"],
        "keep": [0.5, 0.3], "arms": ["rs2", "emp"], "published": published, "summary": [line],
    }  # fmt: skip
    text = reproductions.table(result)
    assert "| rs2 | 50.00 ± 1.00 | – | 1,200 |" in text and "| emp | – (1.5) | – |  |" in text


def test_the_command(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    settings = json.dumps(SETTINGS)
    own.write_text(
        f"source: mine\nclaim: none.\npanels: {{digits: {{data: digits}}}}\nkeep: [0.5]\narms: [full, rs2]\n"
        f"scales: {{smoke: {{settings: {settings}}}}}\n"
    )
    command = ["reproduce", str(own), "--scale", "smoke", "--jobs", "1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--cache", str(tmp_path / "cache")])
    assert done.exit_code == 0 and "| rs2 |" in done.stdout
    listed = CliRunner().invoke(app, ["reproduce"])
    assert listed.exit_code == 0 and "emp_table1" in listed.stdout and "2408.16031" in listed.stdout
    wrong = CliRunner().invoke(app, ["reproduce", "emp_tabel1"])
    assert wrong.exit_code == 2 and "did you mean 'emp_table1'" in wrong.stderr


def test_full_is_the_same_run_at_every_keep(tmp_path: Path) -> None:
    settings = experiment.settings_of({**SETTINGS, "data": "digits", "method": "full", "keep": 0.5})
    other = experiment.settings_of({**SETTINGS, "data": "digits", "method": "full", "keep": 0.3})
    assert settings.key() == other.key() and train(settings, tmp_path).steps == train(other, tmp_path).steps
