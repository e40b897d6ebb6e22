"""The report: its numbers against slow references, its page as text, and what it says of what is missing."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from dataprune import files
from dataprune.errors import CheckpointError, UsageError
from dataprune.lab.data.datasets import Images
from dataprune.lab.data.named import Data
from dataprune.lab.report import differences, integrity, page, plots, records, sections, selections
from dataprune.lab.report.document import Table
from dataprune.lab.sweeps.compare import Comparison
from dataprune.lab.sweeps.sweep import carry_out
from dataprune.lab.training.run import run as train

METHODS = ("full", "short", "rs2", "emp")
SECTIONS = (
    "accuracy-and-differences", "saved-against-full", "samples-and-learning-rate-per-epoch",
    "how-often-samples-were-selected", "scores-and-losses-over-epochs", "retention-by-class", "samples-kept-and-pruned",
    "configuration-and-checks",
)  # fmt: skip
HOSTILE = ["<script>alert(1)</script>", 'b" onload="alert(2)', "c & $d$", "`|_"]
ROOT = Path(__file__).parents[3]


def data() -> Data:
    return tiny.data()._replace(classes=HOSTILE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, in a folder with a name that a page must escape."""
    out = tmp_path_factory.mktemp("made") / "<img src=x onerror=alert(3)>"
    carry_out(Comparison(tiny.settings(method=""), METHODS, seeds=(0, 1, 2)), out, data=data())
    page.write([out], out, data=data())
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, whose drawing takes most of the time, for tests of their words."""
    monkeypatch.setattr(plots, "svg", lambda *arguments: "<svg></svg>")
    monkeypatch.setattr(plots, "png", lambda figure: b"")


class Page(HTMLParser):
    """The elements of a page in order, and the text of its headings."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def text_of(folder: Path) -> str:
    return (folder / "report.html").read_text()


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_differences_are_those_of_a_loop(made: Path) -> None:
    result = json.loads((made / "compare.json").read_text())
    at = {(row["method"], row["seed"]): row for row in result["runs"]}
    for method in METHODS:
        assert differences.difference(result, method, method) is None
        for reference in set(METHODS) - {method}:
            difference = differences.difference(result, method, reference)
            values = [at[method, seed]["accuracy"] - at[reference, seed]["accuracy"] for seed in range(3)]
            assert (
                difference is not None and difference.mean == pytest.approx(sum(values) / 3) and difference.seeds == 3
            )
            assert difference.std == pytest.approx(
                math.sqrt(sum((value - sum(values) / 3) ** 2 for value in values) / 2)
            )
            assert difference.equal_steps == ("full" not in (method, reference))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.1, 0.11, 0.12), "higher"),
        ((-0.1, -0.11, -0.12), "lower"),
        ((0.1, -0.11, 0.12), "no difference detected"),
        ((0.01, 0.02, 0.03), "no difference detected"),  # p = 0.07
        ((0.125, 0.125, 0.125), "higher"),  # the same in every seed,
        ((0.0, 0.0, 0.0), "no difference detected"),
        ((0.1, 0.1), "too few seeds"),
        ((0.1,), "one seed"),
    ],
)
def test_a_difference_has_a_verdict(values: tuple[float, ...], verdict: str) -> None:
    rows = [{"method": "a", "seed": seed, "accuracy": 0.5 + value, "steps": 1} for seed, value in enumerate(values)]
    rows += [{"method": "b", "seed": seed, "accuracy": 0.5, "steps": 1} for seed in (0, 1, 2)]
    difference = differences.difference({"runs": rows}, "a", "b")
    assert difference is not None and difference.verdict == verdict
    stats = pytest.importorskip("scipy.stats")
    if len(set(values)) > 1:
        assert difference.p == pytest.approx(stats.ttest_rel([0.5 + value for value in values], [0.5] * 3).pvalue)


def test_savings_count_scoring_and_energy_follows_the_watts() -> None:
    lines = [
        {"method": "full", "samples": 1000, "seconds": 100.0},
        {"method": "emp", "samples": 300, "seconds": 40.0},
        {"method": "el2n", "samples": 300, "seconds": 20.0, "scoring_samples": 900, "scoring_seconds": 95.0},
    ]
    group = records.Group(Path("x"), {"summary": lines, "runs": []}, [], True)
    emp, el2n = differences.saving(group, "emp", 360.0), differences.saving(group, "el2n", 360.0)
    assert emp is not None and el2n is not None and differences.saving(group, "full") is None
    assert (emp.samples, emp.time, emp.seconds, emp.scored) == (pytest.approx(0.7), pytest.approx(0.6), 60.0, False)
    assert emp.watt_hours == pytest.approx(60.0 * 360 / 3600)
    assert (el2n.samples, el2n.seconds, el2n.scored) == (pytest.approx(-0.2), pytest.approx(-15.0), True)
    assert differences.power(group) == (65.0, "65 W (an assumption about a CPU)")
    assert differences.power(group, 5)[1] == "5 W (given with --watts)"


def test_counts_retention_and_kinds_are_those_of_a_loop(made: Path) -> None:
    (group,) = records.read([made])
    runs, labels = group.of("emp"), data().train.labels.numpy()
    counted = [load_file(run.folder / "selection_counts.safetensors")["selected"].tolist() for run in runs]
    wanted, share = [0.0] * 4, np.zeros(4)
    for times in counted:
        for position, count in enumerate(times):
            wanted[count - 1] += 1 / 3  # the first epoch was full
            share[labels[position]] += (count - 1) / 3 / 3
    histogram, most = selections.histogram(runs)
    assert most == 3 and histogram == pytest.approx(wanted) and histogram.sum() == pytest.approx(tiny.SIZE)
    assert selections.retention(runs, labels, 4) == pytest.approx(share / np.bincount(labels))
    assert np.isnan(selections.retention(runs, labels, 5)[4])  # a class without samples
    kinds = selections.kinds(runs[0], 1000)
    assert sorted(kinds["always kept"]) == [place for place, count in enumerate(counted[0]) if count == 4]
    assert sorted(kinds["always pruned"]) == [place for place, count in enumerate(counted[0]) if count == 1]
    switches = runs[0].counts["switches"]
    assert [switches[place] for place in kinds["most oscillating"]] == sorted(switches[switches > 0], reverse=True)
    assert selections.pruning(group) == ["rs2", "emp"]


def test_switches_and_quantiles_are_those_of_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataprune.lab.training import epoch_history

    seen: list[Any] = []
    close, note = epoch_history.Trajectories.close, epoch_history.Trajectories.note_scores

    def closing(self: Any, selected: torch.Tensor) -> None:
        seen.append((set(selected.tolist()), torch.cat(self._losses)))
        close(self, selected)

    scores: list[torch.Tensor] = []

    def noting(self: Any, score: torch.Tensor) -> None:
        if len(seen) > len(scores):
            scores.append(score.clone())
        note(self, score)

    monkeypatch.setattr(epoch_history.Trajectories, "close", closing)
    monkeypatch.setattr(epoch_history.Trajectories, "note_scores", noting)
    train(tiny.settings(epochs=5), tmp_path, data=tiny.data())
    counts, tables = (
        load_file(tmp_path / "selection_counts.safetensors"),
        load_file(tmp_path / "trajectories.safetensors"),
    )
    pruned = [selected for selected, _ in seen if len(selected) < tiny.SIZE]
    for place in range(tiny.SIZE):
        flips = sum((place in before) != (place in after) for before, after in itertools.pairwise(pruned))
        assert counts["switches"][place] == flips
    for name, values in (("losses", [losses for _, losses in seen]), ("scores", scores)):
        assert tables[name].shape == (5, 5)
        for row, measured in zip(tables[name], values, strict=True):
            wanted = np.quantile(measured.numpy().astype(np.float64), (0.05, 0.25, 0.5, 0.75, 0.95))
            np.testing.assert_allclose(row.numpy(), wanted, rtol=1e-6)
    followed = tables["followed"]
    assert torch.equal(tables["single"], torch.stack([score[followed] for score in scores]))


# -- the page as text -------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_is_well_formed(made: Path) -> None:
    text = text_of(made)
    assert len(text.encode()) < 3_000_000 and "http://" not in text and "https://" not in text
    parsed = Page(text)
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "xlink:href", "data", "action", "poster"):
                assert value.startswith(("#", "data:")), value
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text)) and "@import" not in text
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and set(SECTIONS) <= set(ids)
    targets = [
        attributes["href"][1:] for _, attributes in parsed.elements if attributes.get("href", "").startswith("#")
    ]
    targets += re.findall(r"url\(#([^)]*)\)", text)
    assert set(targets) <= set(ids)
    assert parsed.all("html")[0]["lang"] == "en" and "skip" in parsed.all("a")[0]["class"]


def test_the_page_can_be_read_without_seeing_it(made: Path) -> None:
    parsed = Page(text_of(made))
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(parsed.all("table")) == len(parsed.all("caption")) >= 5
    assert parsed.all("th") and all(cell["scope"] in ("row", "col") for cell in parsed.all("th"))
    assert not parsed.all("img") and parsed.all("image")
    drawn = parsed.all("svg")
    assert len(drawn) >= 8 and all(figure["role"] == "img" and len(figure["aria-label"]) > 40 for figure in drawn)
    assert len(parsed.all("title")) == 1 + len(drawn)
    assert all(area["aria-label"] for area in parsed.all("div") if "tabindex" in area)


def test_names_are_escaped(made: Path) -> None:
    markdown = (made / "report.md").read_text()
    assert f"From `{made}`." in markdown  # within which nothing is an element
    for hostile in ("<script>", "<img src=x", 'b" onload="alert'):
        assert hostile not in text_of(made)
        assert "<" not in hostile or hostile not in markdown.replace(f"`{made}`", "")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text_of(made)


@pytest.mark.slow
def test_the_same_runs_give_the_same_files(made: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        page.write([made], tmp_path / name, data=data())
    for file in sorted((tmp_path / "a").rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes(), file


def test_markdown_shows_the_figures(made: Path) -> None:
    text = (made / "report.md").read_text()
    figures = re.findall(r"\]\((figures/[^)]*)\)", text)
    assert len(figures) == len(set(figures)) >= 8
    for figure in figures:
        assert (made / figure).read_bytes().startswith(b"\x89PNG")
    result = json.loads((made / "compare.json").read_text())
    for line in result["summary"]:
        assert f"| {line['method']} | {100 * line['accuracy_mean']:.2f} ± {100 * line['accuracy_std']:.2f} |" in text
    rows = [row["accuracy"] for row in result["runs"] if row["method"] == "emp"]
    assert statistics.stdev(rows) == pytest.approx(result["summary"][3]["accuracy_std"])


def test_a_page_of_many_methods_stays_small(made: Path) -> None:
    (group,) = records.read([made])
    noise = torch.randint(0, 256, (400, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = data()._replace(train=Images(noise, data().train.labels))
    charts = [chart for block in selections.gallery(group, images) if isinstance(block, list) for chart in block]
    assert sum(len(plots.svg(chart.figure, chart.name, "x")) for chart in charts) < 2_000_000


def test_single_runs_of_a_comparison_are_named_as_in_it(made: Path) -> None:
    (whole,), (group,) = records.read([made]), records.read(sorted((made / "runs").iterdir()))
    assert {line["method"] for line in group.result["summary"]} == set(METHODS)
    assert group.folder == made / "runs" and group.of("short")[0].metrics
    single, compared = (differences.difference(part.result, "emp", "short") for part in (group, whole))
    assert single == compared and single is not None and single.equal_steps


def test_settings_that_runs_share_are_listed(made: Path) -> None:
    (group,) = records.read([made])
    tables = [block for block in sections.configuration(group) if isinstance(block, Table)]
    table = next(table for table in tables if table.folded)
    shown = {row["setting"] for row in table.rows}
    assert {"lr", "epochs", "batch-size"} <= shown
    assert not shown & {"method", "seed", "steps", "views", "temperature", "max-length"}


@pytest.mark.usefixtures("undrawn")
def test_single_runs_are_compared(made: Path, tmp_path: Path) -> None:
    folders = [made / "runs" / f"{method}-seed{seed}" for method in ("full", "emp") for seed in (0, 1)]
    (group,) = records.read(folders)
    assert not group.compared and [line["method"] for line in group.result["summary"]] == ["full", "emp"]
    train(tiny.settings(keep=0.5), tmp_path / "other", data=tiny.data())
    (group,) = records.read([*folders, tmp_path / "other"])
    full, *emp = (line["method"] for line in group.result["summary"])
    assert full == "full" and len(emp) == 2 and ["keep 0.3" in emp[0], "keep 0.5" in emp[1]] == [True, True]
    page.write([made, tmp_path / "other"], tmp_path / "out", data=data())
    ids = {attributes["id"] for _, attributes in Page(text_of(tmp_path / "out")).elements if "id" in attributes}
    assert {f"{name}{part}" for name in SECTIONS for part in ("", "-2")} <= ids


# -- what is missing or broken ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_missing_records_are_named(copied: Path) -> None:
    for file in copied.glob("runs/*/trajectories.safetensors"):
        file.unlink()
    for file in copied.glob("runs/*/selection_counts.safetensors"):  # of a version before the switches
        save_file({name: tensor for name, tensor in load_file(file).items() if name != "switches"}, file)
    page.write([copied], copied, data=data())
    text = text_of(copied)
    assert "(no trajectories.safetensors)" in text and "Which samples oscillated was not recorded: rs2 and emp." in text
    shutil.rmtree(copied / "runs")
    page.write([copied], copied, data=data())
    text = text_of(copied)
    assert "(no selection_counts.safetensors)" in text and "history was not recorded" in text and "not checked" in text


@pytest.mark.usefixtures("undrawn")
def test_data_that_is_not_there_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in copied.glob("runs/*/config.json"):
        files.write_json(file, files.read_json(file) | {"data": str(copied / "nowhere")})
    page.write([copied], copied)
    assert "The data could not be loaded again: " in text_of(copied)
    fewer = data()._replace(train=data().train.subset(torch.arange(300)))
    page.write([copied], copied, data=fewer)
    assert "it has 300 training samples now, and the runs had 400" in text_of(copied)


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("digits", ""),
        pytest.param("contrastive_fashion", "-8", marks=pytest.mark.slow),
        pytest.param("static_mnist", "-4", marks=pytest.mark.slow),
    ],
)
def test_committed_results(name: str, mark: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    page.write([ROOT / "experiments/results" / f"{name}.json"], tmp_path)
    ids = {attributes["id"] for _, attributes in Page(text_of(tmp_path)).elements if "id" in attributes}
    assert {section + mark for section in SECTIONS} <= ids
    assert ("test linear probe" in text_of(tmp_path)) == name.startswith("contrastive")


def test_folders_that_are_none(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere is no folder: give folders of `dataprune compare`"):
        page.write([tmp_path / "nowhere"], tmp_path)
    with pytest.raises(UsageError, match="holds no results"):
        page.write([tmp_path], tmp_path)
    unfinished = Path(shutil.copytree(made / "runs/emp-seed0", tmp_path / "run"))
    (unfinished / "metrics.json").unlink()
    with pytest.raises(UsageError, match=r"run is not finished: repeat the command that began it"):
        page.write([unfinished], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file: choose a folder with --out"):
        page.write([made], tmp_path / "file")
    with pytest.raises(UsageError, match="--watts must be a positive number"):
        page.write([made], tmp_path, watts=0)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("compare.json", '{"runs": [{}], "summary": []}'),
        ("compare.json", "[]"),
        ("compare.json", "{"),
        ("compare.json", '{"runs": 1, "summary": []}'),
        ("runs/emp-seed0/history.jsonl", '{"epoch": 0}\n'),
        ("runs/emp-seed0/metrics.json", "{}"),
        ("runs/emp-seed0/selection_counts.safetensors", "x"),
        ("runs/emp-seed0/trajectories.safetensors", "x"),
    ],
)
def test_damaged_records(file: str, content: str, copied: Path) -> None:
    (copied / file).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{copied / file} is damaged")):
        page.write([copied], copied, data=data())


def test_an_accuracy_that_is_no_number(copied: Path) -> None:
    result = files.read_json(copied / "compare.json")
    result["runs"][0]["accuracy"] = float("nan")
    files.write_json(copied / "compare.json", result)
    with pytest.raises(CheckpointError, match="no number"):
        page.write([copied], copied, data=data())


@pytest.mark.usefixtures("undrawn")
def test_checks_find_what_is_wrong(made: Path, copied: Path) -> None:
    def states(folder: Path) -> dict[str, str]:
        (group,) = records.read([folder])
        return {check.what: check.state for check in integrity.checks(group)}

    assert set(states(made).values()) == {"passed"}
    result = files.read_json(copied / "compare.json")
    result["runs"][-1]["steps"] += 1
    del result["runs"][1]
    files.write_json(copied / "compare.json", result)
    config = files.read_json(copied / "runs/emp-seed1/config.json")
    files.write_json(copied / "runs/emp-seed1/config.json", config | {"lr": 9.0, "momentum": 0.5})
    lines = files.read_json_lines(copied / "runs/rs2-seed0/history.jsonl")
    lines[1]["selected"] += 1
    (copied / "runs/rs2-seed0/history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (copied / "runs/full-seed2/metrics.json").unlink()
    state_of = states(copied)
    wrong = (
        "Equal steps, all but full",
        "Seeds complete",
        "Budgets reached",
        "Same data and settings",
        "Records agree",
    )
    assert [state_of[name] for name in (*wrong, "Runs finished")] == ["failed"] * 6
    page.write([copied], copied, data=data())
    assert 'class="bad">failed<' in text_of(copied)
