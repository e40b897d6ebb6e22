"""What other tools read of a table of scores: against plain loops, and against those tools where they are installed."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dataprune import dynamics
from dataprune.dynamics import STATISTICS, Scores
from dataprune.errors import DataError
from dataprune.integrations import exports
from dataprune.lab.data.datasets import Images
from dataprune.lab.data.named import Data
from dataprune.lab.report import pack
from dataprune.lab.training import select
from dataprune.lab.training.settings import Settings
from dataprune.selection import Selection, fingerprint

TRUSTED = ("aum", "forgetting", "loss", "el2n", "grand", "difficulty")  # a wrong label raises these
LONGEST = float(np.nextafter(np.float32(math.sqrt(2)), np.float32(2)))  # what rounding makes of an error of length √2
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def quality(statistic: str, score: float) -> float:
    """The definition, one sample at a time."""
    if statistic in ("forgetting", "grand"):
        return 1 / (1 + score)
    if statistic == "loss":
        return math.exp(-score)
    if statistic == "el2n":
        return max(0.0, 1 - score / math.sqrt(2))
    if statistic == "difficulty":
        return max(0.0, 1 - score)
    mean_margin = -score
    return 0.5 + mean_margin / (2 * (1 + abs(mean_margin)))


@given(st.lists(st.floats(0, LONGEST, width=32), min_size=1), st.sampled_from(TRUSTED), st.sampled_from([1, -1]))
def test_label_quality_is_its_definition(values: list[float], statistic: str, sign: int) -> None:
    values = [sign * value for value in values] if statistic == "aum" else values
    qualities = exports.label_quality({statistic: torch.tensor(values)}, statistic)
    assert qualities.dtype == np.float64 and ((qualities >= 0) & (qualities <= 1)).all()
    np.testing.assert_allclose(qualities, [quality(statistic, value) for value in values], atol=1e-7)
    other = exports.label_quality({"mine": torch.tensor(values)}, "mine")  # no statistic of the library
    np.testing.assert_allclose(other, [quality("aum", value) for value in values], atol=1e-7)


@pytest.mark.parametrize("statistic", TRUSTED)
def test_quality_falls_in_the_score_and_keeps_gaps(statistic: str) -> None:
    highest = {"el2n": LONGEST, "difficulty": 1.0}.get(statistic, math.inf)
    middle = min(1.2, 0.9 * highest)
    qualities = exports.label_quality({statistic: torch.tensor([0.0, 0.5, middle, math.nan, highest])}, statistic)
    assert math.isnan(qualities[3]) and (np.diff(qualities[[0, 1, 2, 4]]) < 0).all() and qualities[4] == 0


def test_issues_come_worst_first_and_equal_scores_in_random_order() -> None:
    counts = torch.tensor([0.0, 2, 1, math.nan, 2, 5, 2, math.inf])
    orders = {tuple(exports.label_issues({"forgetting": counts}, "forgetting", seed=seed)) for seed in range(40)}
    assert {order[:2] for order in orders} == {(7, 5)} and {order[5:] for order in orders} == {(2, 0)}
    assert len({order[2:5] for order in orders}) == 6  # every order of the three that score 2
    table = {"forgetting": counts}
    np.testing.assert_array_equal(exports.label_issues(table, "forgetting", count=2), [7, 5])
    assert exports.label_issues(table, "forgetting", count=0).shape == (0,)
    for count in (-1, 8):
        with pytest.raises(ValueError, match="7 samples have a score of forgetting, count must be from 0 to that"):
            exports.label_issues(table, "forgetting", count=count)
    with pytest.raises(TypeError, match=r"count is a number of samples, got 0\.1"):
        exports.label_issues(table, "forgetting", count=0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got a str: dynamics.load_scores\(path\) reads a file"):
        exports.label_issues("scores.parquet", "aum")  # type: ignore[arg-type]


def test_a_statistic_that_says_nothing_of_labels_is_refused() -> None:
    for statistic in set(STATISTICS) - set(TRUSTED):
        with pytest.raises(ValueError, match=f"a high {statistic} does not mean that the label is wrong.*take aum"):
            exports.label_quality({statistic: torch.zeros(2)}, statistic)
    with pytest.raises(ValueError, match=r"did you mean.*loss"):
        exports.label_issues({"loss": torch.zeros(2)}, "los")
    with pytest.raises(ValueError, match=r"loss is never negative, the lowest here is -1\.0"):
        exports.label_quality({"loss": torch.tensor([math.nan, -1.0, 2.0])}, "loss")


def test_the_loss_reads_as_cleanlabs_self_confidence() -> None:
    rank = pytest.importorskip("cleanlab.rank", reason="cleanlab is not installed", exc_type=ImportError)
    outputs, labels = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * 3, torch.arange(200) % 7
    recorder = dynamics.Recorder(200, {"loss": dynamics.loss()})
    recorder.update(torch.arange(200), outputs, labels)
    recorder.end_epoch()
    ours = exports.label_quality(recorder.scores(), "loss")
    probabilities = outputs.double().softmax(1).numpy()
    expected = rank.get_label_quality_scores(labels.numpy(), probabilities, method="self_confidence")
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    worst = rank.find_top_issues(expected, top=20)
    np.testing.assert_array_equal(exports.label_issues(recorder.scores(), "loss", count=20), worst)


def table() -> Scores:
    return Scores(
        {"aum": torch.tensor([math.nan, -1.5, math.inf]), "loss": torch.tensor([0.5, 0.25, 4.0])},
        torch.tensor([2, 0, 1]),
        {},
    )


def test_fiftyones_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exports.fiftyone(
        "look/here", table(), ["a.png", Path("b.png"), tmp_path / "c é.png"], classes=["cat", "dog", "öre"]
    )
    folder = tmp_path / "look" / "here"
    assert {path.name for path in folder.iterdir()} == {"metadata.json", "samples.json"}
    metadata = json.loads((folder / "metadata.json").read_text())
    assert "version" not in metadata  # or it would be read as the other format
    assert metadata["media_type"] == "image" and list(metadata["sample_fields"].items()) == [
        ("filepath", "fiftyone.core.fields.StringField"),
        ("tags", "fiftyone.core.fields.ListField(fiftyone.core.fields.StringField)"),
        ("ground_truth", "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.Classification)"),
        ("aum", "fiftyone.core.fields.FloatField"),
        ("loss", "fiftyone.core.fields.FloatField"),
    ]
    expected = []
    for name, label, aum, loss in (
        ("a.png", "öre", None, 0.5),
        ("b.png", "cat", -1.5, 0.25),
        ("c é.png", "dog", None, 4),
    ):
        truth = {"_cls": "Classification", "label": label}
        expected.append({"filepath": str(tmp_path / name), "tags": [], "ground_truth": truth, "aum": aum, "loss": loss})
    assert json.loads((folder / "samples.json").read_text()) == {"samples": expected}


@pytest.mark.parametrize("labels", [torch.tensor([1, 0]), np.array([1, 0]), ["1", "0"], [1, 0]])
def test_labels_of_any_form(tmp_path: Path, labels: Any) -> None:
    exports.fiftyone(tmp_path, {"loss": torch.zeros(2)}, ["a", "b"], labels=labels)
    samples = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert [sample["ground_truth"]["label"] for sample in samples] == ["1", "0"]
    exports.fiftyone(tmp_path, {"loss": torch.zeros(2)}, ["a", "b"])  # over it, and without labels
    assert "ground_truth" not in (tmp_path / "samples.json").read_text() + (tmp_path / "metadata.json").read_text()


def test_what_fiftyone_could_not_show_is_refused(tmp_path: Path) -> None:
    def write(scores: dict[str, Tensor], paths: list[str], **options: Any) -> None:
        exports.fiftyone(tmp_path / "no", scores, paths, **options)

    two_samples = {"loss": torch.zeros(2)}
    for paths, labels in ((["a"], None), (["a", "b"], []), (["a", "b"], ["x"])):
        with pytest.raises(ValueError, match="must be as many as the samples, got lengths"):
            write(two_samples, paths, labels=labels)
    for name in ("tags", "_score", "el2n (mean)", "a.b", "media_reference"):
        with pytest.raises(ValueError, match="cannot be a field of FiftyOne"):
            write({name: torch.zeros(1)}, ["a"])
    for labels in (torch.tensor([0, 2]), torch.tensor([-1, 0]), ["cat", "dog"]):
        with pytest.raises(ValueError, match="classes names 2 classes, and"):
            write(two_samples, ["a", "b"], labels=labels, classes=["cat", "dog"])
    assert not (tmp_path / "no").exists()


@pytest.mark.filterwarnings("ignore")  # of its own imports
def test_fiftyone_reads_the_folder(tmp_path: Path) -> None:
    """By its own reader, which needs no database; what it puts into one is not looked at."""
    importers = pytest.importorskip("fiftyone.utils.data.importers", reason="fiftyone is not installed")
    labels = importlib.import_module("fiftyone.core.labels")
    exports.fiftyone(tmp_path, table(), ["a.png", "b.png", "c.png"], classes=["cat", "dog", "cow"])
    reader = importers._handle_legacy_formats(importers.FiftyOneDatasetImporter(str(tmp_path)))
    with reader:
        samples, fields = list(reader), reader.get_sample_field_schema()
    assert isinstance(reader, importers.LegacyFiftyOneDatasetImporter) and reader.has_sample_field_schema
    assert [sample.filepath for sample in samples] == [
        str(Path(name).absolute()) for name in ("a.png", "b.png", "c.png")
    ]
    assert [sample.ground_truth.label for sample in samples] == ["cow", "cat", "dog"]
    assert all(type(sample.ground_truth) is labels.Classification for sample in samples)
    assert [(sample["aum"], sample["loss"]) for sample in samples] == [(None, 0.5), (-1.5, 0.25), (None, 4.0)]
    for spelled in fields.values():  # FiftyOne evaluates these names
        for name in spelled.replace("(", " ").replace(")", " ").split():
            module, kind = name.rsplit(".", 1)
            assert isinstance(getattr(importlib.import_module(module), kind), type)


def texts() -> Any:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    return datasets.Dataset.from_dict({"text": list("abcdef"), "label": [0, 1, 0, 1, 0, 1]})


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # how datasets sorts
def test_scores_become_columns() -> None:
    dataset, scores = texts(), {"loss": torch.tensor([3.0, 1, 2, math.nan, 0, 5]), "rank": torch.arange(6)}
    extended = exports.with_scores(dataset, scores)
    assert extended.column_names == ["text", "label", "loss", "rank"] and dataset.column_names == ["text", "label"]
    assert [extended.features[name].dtype for name in ("loss", "rank")] == ["float32", "int64"]
    np.testing.assert_array_equal(extended["loss"][:], scores["loss"].numpy())
    assert extended.sort("rank", reverse=True)["text"][:] == list("fedcba")
    assert extended.filter(lambda row: row["loss"] > 1.5)["text"][:] == ["a", "c", "f"]

    mixed = dataset.select([5, 3, 1, 0, 2, 4])  # positions are those of the dataset at hand, not of its first form
    again = exports.with_scores(mixed, Scores({"rank": torch.arange(6)}, None, {}))
    assert dict(zip(again["text"][:], again["rank"][:])) == dict(f=0, d=1, b=2, a=3, c=4, e=5)


def test_a_dataset_that_does_not_fit_is_refused() -> None:
    dataset, scores = texts(), {"loss": torch.zeros(6)}
    datasets = importlib.import_module("datasets")
    for other in (datasets.DatasetDict({"train": dataset}), dataset.to_iterable_dataset(), [1, 2]):
        with pytest.raises(TypeError, match=f"got a {type(other).__name__}: of a DatasetDict give the split"):
            exports.with_scores(other, scores)
    with pytest.raises(ValueError, match="there are 6 scores of loss, but 5 samples in the dataset"):
        exports.with_scores(dataset.select(range(5)), scores)
    with pytest.raises(ValueError, match=r"already has label: dataset.remove_columns\(\['label'\]\)"):
        exports.with_scores(dataset, {"label": torch.zeros(6)})


def test_from_a_table_of_scores_to_a_part_of_the_dataset(tmp_path: Path) -> None:
    dataset, path = texts(), tmp_path / "scores.parquet"
    scores, notes = {"loss": torch.tensor([0.5, 3, 1, 2, 0, 4])}, {"fingerprint": fingerprint(dataset)}
    dynamics.save_scores(path, scores, labels=torch.tensor(dataset["label"][:]), notes=notes)
    select.write(tmp_path / "half", *select.select("top", path, keep=0.5, options={"statistic": "loss"}))
    part = dataset.select(Selection.load(tmp_path / "half", dataset).index)
    assert sorted(part["text"][:]) == ["b", "d", "f"]
    with pytest.raises(DataError, match="made for another dataset"):
        Selection.load(tmp_path / "half", dataset.select(range(5, -1, -1)))


@pytest.fixture(scope="module")
def experiment() -> Iterator[ModuleType]:
    """The experiment as a module; torch's number of threads is afterwards what it was."""
    for package in ("matplotlib", "scipy", "sklearn"):
        pytest.importorskip(package)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("label_errors")
        patch.delitem(sys.modules, "label_errors", raising=False)
    torch.set_num_threads(threads)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12))
def test_auroc_and_precision_are_those_of_plain_loops(experiment: ModuleType, samples: list[tuple[int, bool]]) -> None:
    samples = [*samples, (2, True), (3, False)]  # both kinds
    score, wrong = (
        np.array([value for value, _ in samples], dtype=float),
        np.array([is_wrong for _, is_wrong in samples]),
    )
    pairs = [(a > b) + (a == b) / 2 for a in score[wrong] for b in score[~wrong]]
    assert experiment.auroc(score, wrong) == pytest.approx(np.mean(pairs))
    random, count, hits = np.random.default_rng(0), int(wrong.sum()), []
    for _ in range(300):  # equal scores in random order
        order = random.permutation(len(score))
        hits.append(wrong[order[np.argsort(-score[order], kind="stable")][:count]].mean())
    assert experiment.precision(score, wrong) == pytest.approx(np.mean(hits), abs=0.15)


def test_precision_at_a_border_of_equals(experiment: ModuleType) -> None:
    score, wrong = np.array([9.0, 5, 5, 5, 1]), np.array([True, True, False, False, True])
    assert experiment.precision(score, wrong) == pytest.approx(
        (1 + 2 / 3) / 3
    )  # 9, and two of three, one of them wrong


def test_planted_errors_are_the_labels_that_changed(experiment: ModuleType) -> None:
    settings = Settings(method="full", data="digits", label_noise=0.2, seed=1, model="mlp")
    data, wrong = experiment.plant(settings)
    clean, none = experiment.plant(Settings(method="full", data="digits", seed=1, model="mlp"))
    assert not none.any() and torch.equal(data.train.images, clean.train.images)
    np.testing.assert_array_equal(wrong, (data.train.labels != clean.train.labels).numpy())
    assert 0.15 < wrong.mean() < 0.21


def test_every_prediction_is_of_a_run_that_has_not_seen_the_sample(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(method="full", data="digits", model="mlp", epochs=1, batch_size=10, device="cpu", threads=1)
    images = torch.arange(53, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    seen: dict[int, set[int]] = {}
    models: list[Any] = []

    def run(settings: Settings, out: Path, *, data: Data, model: Any, **_: Any) -> None:
        assert isinstance(data.train, Images)
        seen[id(model)] = {int(image[0, 0, 0]) for image in data.train.images}

    def logits(model: Any, images: Tensor, task: Any) -> Tensor:
        left_out = {int(image[0, 0, 0]) for image in images}
        assert left_out.isdisjoint(seen[id(model)]) and len(left_out | seen[id(model)]) == 53
        models.append(model)  # kept, so that no two models share an id
        return images[:, 0, 0, :3].float() * torch.tensor([0.0, 0.01, 0.02])

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(experiment, "logits", logits)
    digits = experiment.plant(settings).data
    data = digits._replace(train=Images(images, torch.zeros(53, dtype=torch.int64)), classes=["a", "b", "c"])
    probabilities = experiment.predicted(settings, data, tmp_path)
    expected = [[math.exp(0.01 * place * step) for step in range(3)] for place in range(53)]
    np.testing.assert_allclose(probabilities, [np.array(row) / sum(row) for row in expected], rtol=1e-5)
    assert len(seen) == 5


@pytest.mark.slow
def test_the_experiment_at_a_scale_of_seconds(experiment: ModuleType, tmp_path: Path) -> None:
    summary = experiment.main("smoke", tmp_path)
    record = json.loads((tmp_path / "label_errors.json").read_text())
    assert record["summary"] == summary and list(summary) == ["digits, 5 epochs", "digits, 8 epochs"]
    assert len(record["points"]) == 4 and all(line["samples"] == 200 for line in record["points"])
    for data, table in summary.items():
        points = [line for line in record["points"] if line["data"] == data]
        assert set(table) >= {*experiment.STATISTICS, "held-out loss"}
        for name, numbers in table.items():
            for key in ("auroc", "precision"):
                values = [line[key][name] for line in points]
                deviation = abs(values[0] - values[1]) / math.sqrt(2)
                assert numbers[key] == pytest.approx([sum(values) / 2, deviation], abs=1e-4)
        assert table["aum"]["auroc"][0] > 0.9
    assert all((tmp_path / f"label_errors.{form}").stat().st_size > 10_000 for form in ("svg", "png"))


def test_the_committed_figure_is_of_the_committed_numbers(experiment: ModuleType) -> None:
    record = pack.read(EXPERIMENTS / "results/label_errors.json")[0].result
    assert record is not None
    assert experiment.summary(record["points"]) == record["summary"]
    assert record["recipes"] == experiment.SCALES["cpu"] and record["label_noise"] == experiment.NOISE
    assert len(record["points"]) == experiment.SEEDS["cpu"] * len(record["recipes"])
