"""A packed file gives the records that its folder gives, and the tables beside it their figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dataprune import files
from dataprune.errors import CheckpointError, UsageError
from dataprune.lab.report import formatting, pack, records, reproductions
from dataprune.lab.sweeps import papers
from dataprune.lab.sweeps.advise import Pilot, advise
from dataprune.lab.sweeps.compare import Comparison
from dataprune.lab.sweeps.joint.grid import Grid
from dataprune.lab.sweeps.sweep import carry_out
from dataprune.lab.training import run_folder
from dataprune.lab.training.run import run as train
from dataprune.lab.training.settings import Settings

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {"train_size": 96, "test_size": 64, "model": "mlp", "epochs": 4, "batch_size": 16}


def rounded(value: Any) -> Any:
    """Values as a packed file has them: six significant digits, no process id."""
    if isinstance(value, dict):
        return {name: rounded(nested) for name, nested in value.items() if name != "process"}
    if isinstance(value, list | tuple):
        return [rounded(nested) for nested in value]
    return pytest.approx(value, rel=1e-5, nan_ok=True) if isinstance(value, float) else value


def assert_same_groups(packed: list[records.Group], groups: list[records.Group]) -> None:
    assert [formatting.setting(group.result) for group in packed] == [
        formatting.setting(group.result) for group in groups
    ]
    for again, group in zip(packed, groups, strict=True):
        assert again.result == rounded(dict(group.result)) and again.compared == group.compared
        assert len(again.runs) == len(group.runs) > 0
        for run, original in zip(again.runs, group.runs, strict=True):
            assert (run.method, run.seed) == (original.method, original.seed)
            assert original.settings and run.settings == pack.with_schedule(dict(original.settings))
            assert run.metrics == rounded(original.metrics) and run.history == rounded(original.history)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of dynamic and static methods."""
    folder = tmp_path_factory.mktemp("results") / "digits_keep30"
    carry_out(Comparison(Settings(**SMALL, keep=0.3), ["full", "short", "emp", "el2n"], [0, 1]), folder)
    return folder


def test_a_comparison_is_read_back(compared: Path, tmp_path: Path) -> None:
    files = pack.pack([compared], tmp_path / "digits.json")
    assert files == [tmp_path / "digits.json", tmp_path / "digits.md"]
    assert_same_groups(records.read([files[0]]), records.read([compared]))
    (entry,) = pack.read(files[0])
    (collected,) = pack.collect(compared)
    assert entry.name == "digits_keep30" and entry.command == "compare"
    assert [run.path for run in entry.runs] == [run.path for run in collected.runs]  # scoring runs too
    for run, original in zip(entry.runs, collected.runs, strict=True):
        assert run.settings == original.settings
        assert run.metrics == rounded(original.metrics) and run.history == rounded(original.history)
        assert run.selected == original.selected and (sum(run.selected) == 96 or run.path.startswith("scoring"))


def test_what_runs_share_is_stored_once_and_a_run_is_a_line(compared: Path, tmp_path: Path) -> None:
    (file, _) = pack.pack([compared], tmp_path / "digits.json")
    lines = file.read_text().splitlines()
    assert sum('"path"' in line for line in lines) == len(pack.read(file)[0].runs)
    assert file.read_text().count('"weight_decay"') == file.read_text().count('"torch"') == 1
    sizes = sum(path.stat().st_size for name in ("*.json", "*.jsonl") for path in compared.rglob(name))
    assert file.stat().st_size < sizes / 2


def test_the_table_has_the_comparison(compared: Path, tmp_path: Path) -> None:
    (_, table) = pack.pack([compared], tmp_path / "digits.json")
    result = files.read_json(compared / "compare.json")
    lines = [line for line in table.read_text().splitlines() if line.startswith("| `")]
    assert len(lines) == 4
    for line, summary in zip(lines, result["summary"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == f"`{summary['method']}`"
        assert cells[1] == f"{100 * summary['accuracy_mean']:.2f} ± {100 * summary['accuracy_std']:.2f}"
        assert cells[3:5] == [f"{summary['samples']:,}", f"{summary['steps']:,}"]


def test_several_folders_are_one_file(compared: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    train(Settings(**SMALL, method="rs2", keep=0.5), single)
    (file, table) = pack.pack([compared, single], tmp_path / "family.json")
    assert [entry.name for entry in pack.read(file)] == ["digits_keep30", "single"]
    assert_same_groups(records.read([file]), records.read([compared, single]))
    assert table.read_text().count("\n## ") == 2
    with pytest.raises(UsageError, match="two folders have the name single"):
        pack.pack([single, single], tmp_path / "family.json")


def test_a_tree_is_read_as_its_folders_are(compared: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    train(Settings(**SMALL, method="rs2", keep=0.5), runs / "a")
    train(Settings(**SMALL, method="rs2", keep=0.5, seed=1), runs / "b")
    assert records.read([runs]) == records.read([runs / "a", runs / "b"])
    assert [entry.name for entry in pack.collect(runs)] == ["runs"]
    assert records.read([compared.parent]) == records.read([compared])
    (file, _) = pack.pack([compared], tmp_path / "packed/results.json")
    assert_same_groups(records.read([file.parent]), records.read([compared]))


@pytest.mark.slow
def test_joint_and_advice_are_packed(tmp_path: Path) -> None:
    settings = Settings(**SMALL)
    carry_out(Grid(settings, seeds=[0, 1], ratios=[0.5], amounts=[0.5]), tmp_path / "joint")
    planned = replace(settings, train_size=300, budget=0.5)
    advise(Pilot(planned, ["emp"], [0, 1], size=48), tmp_path / "advice")
    (file, table) = pack.pack([tmp_path / "joint", tmp_path / "advice"], tmp_path / "both.json")
    entries = {entry.name: entry for entry in pack.read(file)}
    assert entries["joint"].result == rounded(files.read_json(tmp_path / "joint/joint.json"))
    assert entries["advice"].result == rounded(files.read_json(tmp_path / "advice/advice.json"))
    assert len(records.read([file])) == sum(entry.command == "compare" for entry in entries.values()) > 0
    assert files.read_json(tmp_path / "advice/advice.json")["advice"]["sentence"] in table.read_text()
    (only,) = pack.pack([tmp_path / "joint"], tmp_path / "joint.json")[:1]
    assert records.read([only]) == []  # the report draws grids from their own entries


@pytest.mark.slow
def test_runs_that_pretrain_and_score_are_packed(tmp_path: Path) -> None:
    contrastive = replace(Settings(**SMALL, keep=0.5), model="small_cnn", task="contrastive", method="emp_contrastive")
    train(contrastive, tmp_path / "pretrained")
    train(Settings(**SMALL, method="full", statistics="el2n"), tmp_path / "scored", test=False)
    folders = [tmp_path / "pretrained", tmp_path / "scored"]
    (file, table) = pack.pack(folders, tmp_path / "runs.json")
    for entry, folder in zip(pack.read(file), folders, strict=True):
        assert entry.runs[0].metrics == rounded(files.read_json(folder / "metrics.json"))
        assert len(entry.runs[0].history) == 4
    assert "| emp_contrastive | 0 |" in table.read_text() and "| full | 0 | – |" in table.read_text()


def test_results_of_a_paper_are_drawn_again(tmp_path: Path) -> None:
    committed = ROOT / "experiments/results/emp_figure11.json"
    files = papers.reproduce(str(committed), "cpu", tmp_path / "drawn", tmp_path / "cache")
    assert {file.name for file in files} == {"table.md", "figure.svg", "figure.png"}
    result = pack.read(committed)[0].result
    assert result is not None and files[0].read_text() == reproductions.table(result)
    with pytest.raises(UsageError, match=r"digits\.json holds 0 results of `dataprune reproduce`, not 1"):
        papers.reproduce(str(committed.with_name("digits.json")), "cpu", tmp_path, tmp_path / "cache")


def written(folder: Path, settings: dict[str, Any], **metrics: Any) -> Path:
    folder.mkdir(parents=True)
    files.write_json(folder / "config.json", settings)
    names = sorted(run_folder.RECORDED)
    files.write_json(folder / "metrics.json", {name: 0 for name in names} | {"method": "emp"} | metrics)
    return folder


def test_a_schedule_among_the_options_becomes_settings(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", {"method": "emp", "option": ["beta=2", "warmup=1", "anneal=0.125"]})
    (entry,) = pack.collect(folder)
    assert entry.runs[0].settings == {"method": "emp", "option": ["beta=2"], "warmup": 1, "anneal": 0.125}


def test_numbers_keep_six_digits_and_settings_all(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", {"lr": 0.123456789}, accuracy=0.123456789, seconds=123456789.5, samples=7)
    with (folder / "history.jsonl").open("w") as file:
        for epoch, loss in enumerate((1 / 3, math.nan, 2e-9 / 3)):
            file.write(json.dumps({"epoch": epoch, "loss": loss, "overlap": None}) + "\n")
    save_file({"selected": np.array([0, 2, 2, 3], np.int32)}, folder / "selection_counts.safetensors")
    (path, _) = pack.pack([folder], tmp_path / "run.json")
    (run,) = pack.read(path)[0].runs
    assert run.settings == {"lr": 0.123456789}
    assert run.metrics is not None
    assert [run.metrics[name] for name in ("accuracy", "seconds", "samples")] == [0.123457, 123457000.0, 7]
    assert [line["epoch"] for line in run.history] == [0, 1, 2] and run.history[0]["overlap"] is None
    assert [run.history[0]["loss"], run.history[2]["loss"]] == [0.333333, 6.66667e-10]
    assert math.isnan(run.history[1]["loss"]) and run.selected == [1, 0, 2, 1]


def test_a_script_s_values_are_packed_and_shown(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    content = {"machine": {"device": "cpu", "hardware": "x86"}, "result": {"a": {"p": 0.123456789}, "b": [1, 2]}}
    files.write_json(tmp_path / "study/figure.json", content)
    (file, table) = pack.pack([tmp_path / "study"], tmp_path / "study.json")
    assert pack.read(file)[0].result == rounded(content) and pack.read(file)[0].command == "script"
    assert "| result, a, p | 0.1235 |\n| result, b | 1, 2 |" in table.read_text()


def test_files_that_are_none(compared: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no results"):
        pack.pack([tmp_path / "empty"], tmp_path / "x.json")
    with pytest.raises(UsageError, match="--out is the name of a JSON file"):
        pack.pack([compared], tmp_path / "x")
    with pytest.raises(UsageError, match="was not written by `dataprune pack`"):
        records.read([compared / "compare.json"])
    with pytest.raises(UsageError, match="is no file"):
        records.read([tmp_path / "nowhere.json"])
    (file, _) = pack.pack([compared], tmp_path / "x.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this version reads format 1"):
        records.read([file])
    del content["experiments"]["digits_keep30"]["in_row"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is damaged"):
        records.read([file])
    file.write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        records.read([file])


def test_the_name_of_a_file(tmp_path: Path) -> None:
    assert pack.name_of([tmp_path / "glue_cola_keep30"]) == "glue_cola_keep30"
    assert pack.name_of([tmp_path / "glue_cola_keep30", tmp_path / "glue_cola_keep50"]) == "glue_cola_keep"
    assert pack.name_of([tmp_path / "a", tmp_path / "b"]) == "experiments"
