"""One pass of a trained model over parquet files: the scores of a whole evaluation, a few images at a time."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("PIL", reason="images need Pillow: pip install -c constraints.txt -e '.[cli]'")

import pyarrow as arrow
import pyarrow.parquet as parquet
from PIL import Image
from typer.testing import CliRunner

import dataprune
from dataprune import Selection
from dataprune.cli import app
from dataprune.dynamics import load_scores
from dataprune.errors import CheckpointError, DataError, UsageError
from dataprune.lab.data.named import load
from dataprune.lab.models import build
from dataprune.lab.training import run as training
from dataprune.lab.training import score_pass
from dataprune.lab.training.build import load_data
from dataprune.lab.training.score_pass import score
from dataprune.lab.training.settings import Settings
from dataprune.selection import fingerprint

ROOT = Path(dataprune.__file__).parents[1]
SIZES = (70, 50, 33)  # rows of the files; row groups of 24
NAMES = "el2n,entropy,least_confidence,margin,loss,grand"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def write(path: Path, size: int, generator: np.random.Generator, **options: Any) -> None:
    labels = generator.integers(0, 3, size)
    images = [
        png((generator.integers(0, 120, (10, 10, 3)) + 60 * (np.arange(3) == label)).astype(np.uint8))
        for label in labels
    ]
    table = arrow.table({"image": [{"bytes": data, "path": None} for data in images], "label": labels})
    parquet.write_table(table, path, **({"row_group_size": 24} | options))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        write(folder / f"train-{number:05}-of-00003.parquet", size, generator)
    write(folder / "test-00000-of-00001.parquet", 40, generator)
    return folder


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on half of the samples; its data has another mean than the whole."""
    run = tmp_path_factory.mktemp("run") / "run"
    settings = Settings(
        data=str(shards),
        train_size=64,
        method="full",
        epochs=3,
        batch_size=16,
        lr=0.02,
        model="small_cnn",
        device="cpu",
    )
    training.run(settings, run)
    return run


def reference(shards: Path, run: Path) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """All images in memory, in float64, by formula."""
    whole, half = load(str(shards)), load(str(shards), train_size=64)
    model = build.build("small_cnn", whole.shape, 3, 0).double().eval()
    model.load_state_dict(load_file(run / "model.safetensors"))
    features: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    pixels = whole.train.images.double() / 255  # type: ignore[union-attr]
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (half.mean, half.std))
    with torch.no_grad():
        p = model((pixels - mean) / std).softmax(1).numpy()
    labels = whole.train.labels.numpy()
    rows = {name: np.zeros(len(p)) for name in NAMES.split(",")}
    for i, y in enumerate(labels):
        error = p[i] - np.eye(3)[y]
        second, first = np.sort(p[i])[-2:]
        rows["el2n"][i] = np.sqrt((error**2).sum())
        rows["entropy"][i] = -(p[i] * np.log(p[i])).sum()
        rows["least_confidence"][i] = 1 - first
        rows["margin"][i] = second - first
        rows["loss"][i] = -np.log(p[i][y])
        rows["grand"][i] = rows["el2n"][i] * np.sqrt(1 + (features[0][i].numpy() ** 2).sum())
    return rows, whole.train.labels


def check(path: Path, shards: Path, run: Path) -> None:
    table = load_scores(path)
    rows, labels = reference(shards, run)
    assert list(table.scores) == NAMES.split(",") and table.labels is not None and torch.equal(table.labels, labels)
    for name, column in table.scores.items():
        np.testing.assert_allclose(column.numpy(), rows[name], rtol=2e-4, atol=2e-5, err_msg=name)


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_scores_equal_a_whole_evaluation_in_dataset_order(
    shards: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_pass, "_BATCH", 10)  # row groups come in several batches
    record = score(str(shards), NAMES.split(","), trained, tmp_path / "out", device="cpu")
    assert record["samples"] == sum(SIZES) and record["statistics"] == NAMES.split(",")
    check(Path(record["scores"]), shards, trained)


def test_select_and_train_take_its_table(shards: Path, trained: Path, tmp_path: Path) -> None:
    given = ["score", "--init", trained, "--data", shards, "--device", "cpu", "--out", tmp_path / "out"]
    done = call(*given)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("153 samples in ") and "(el2n,entropy,least_confidence,margin,loss)" in done.stdout
    result = call(
        "select",
        "--scores",
        tmp_path / "out/scores.parquet",
        "--method",
        "el2n",
        "--keep",
        0.4,
        "--out",
        tmp_path / "c.safetensors",
    )
    assert result.exit_code == 0, result.stderr
    # its fingerprint is that of the data as training loads it
    selection = Selection.load(tmp_path / "c.safetensors", load_data(Settings(data=str(shards))).train)
    assert len(selection.index) == 61
    scores = load_scores(tmp_path / "out/scores.parquet").scores["el2n"]
    assert set(selection.index.tolist()) == set(scores.topk(61).indices.tolist())


def relabelled(shards: Path, out: Path, ids: list[int], names: list[str] | None) -> Path:
    """The same images, their class i called ids[i], or by names in the order of the new ids."""
    out.mkdir()
    for path in sorted(shards.glob("*.parquet")):
        table = parquet.read_table(path)
        labels = arrow.array(np.array(ids)[table["label"].to_numpy()])
        table = table.set_column(table.column_names.index("label"), "label", labels)
        if names is not None:
            features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
            about = json.dumps({"info": {"features": features}}).encode()
            table = table.replace_schema_metadata({b"huggingface": about})
        parquet.write_table(table, out / path.name, row_group_size=24)
    return out


NAMED = (["cat", "dog", "T-shirt/top"], [0, 1, 2])
SPARSE = (None, [200, 5000, 70_000])


@pytest.fixture(scope="module", params=[NAMED, SPARSE], ids=["names", "ids"])
def known(request: Any, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Data whose classes have names, or ids larger than the data, and a run on it."""
    folder, (names, ids) = tmp_path_factory.mktemp("known"), request.param
    data = relabelled(shards, folder / "data", ids, names)
    settings = Settings(
        data=str(data), method="full", epochs=3, batch_size=16, lr=0.02, model="small_cnn", device="cpu"
    )
    training.run(settings, folder / "run")
    return names, data, folder / "run"


def scored(data: Path, run: Path, out: Path) -> Any:
    return load_scores(score(str(data), NAMES.split(","), run, out, device="cpu")["scores"])


def test_scores_belong_to_the_classes_that_the_model_knows(known: Any, shards: Path, tmp_path: Path) -> None:
    """By name in another order, or among more; by id where there are no names."""
    names, data, run = known
    first = scored(data, run, tmp_path / "first")
    dataset = load_data(Settings(data=str(data))).train
    assert first.notes["fingerprint"] == fingerprint(dataset)
    assert first.labels is not None and torch.equal(first.labels, dataset.labels)
    others = [relabelled(shards, tmp_path / "more", [1, 3, 0], ["t-Shirt / top", "cat", "bird", "dog"])]
    if names is None:
        others = [relabelled(shards, tmp_path / "same", SPARSE[1], None)]
    for other in others:
        again = scored(other, run, tmp_path / f"by-{other.name}")
        for name in NAMES.split(","):
            np.testing.assert_allclose(again.scores[name].numpy(), first.scores[name].numpy(), rtol=1e-5, atol=1e-6)


def test_a_class_that_the_model_does_not_know_is_named(known: Any, shards: Path, tmp_path: Path) -> None:
    names, _, run = known
    if names is None:
        other, message = (
            relabelled(shards, tmp_path / "other", [200, 5000, 60_000], None),
            "'60000', .* 200, 5000, 70000",
        )
    else:
        other = relabelled(shards, tmp_path / "other", [0, 1, 2], ["cat", "dog", "Pullover"])
        message = "has the class 'Pullover', and the model knows cat, dog, T-shirt/top"
    with pytest.raises(DataError, match=message):
        scored(other, run, tmp_path / "out")


def test_runs_without_names_are_read_by_id(known: Any, shards: Path, tmp_path: Path) -> None:
    """As they were written before; so are data without names."""
    names, data, run = known
    plain = relabelled(shards, tmp_path / "plain", [0, 1, 2], None)
    if names is None:
        with pytest.raises(DataError, match="has the class '0'"):
            scored(plain, run, tmp_path / "out")
        return
    first = scored(data, run, tmp_path / "first")
    old = tmp_path / "old"
    shutil.copytree(run, old)
    record = json.loads((old / "metrics.json").read_text())
    del record["input"]["names"]
    (old / "metrics.json").write_text(json.dumps(record))
    for folder, model in ((plain, run), (data, old), (plain, old)):
        again = scored(folder, model, tmp_path / f"by-{folder.name}-{model.name}")
        assert torch.equal(again.scores["el2n"], first.scores["el2n"])


@pytest.mark.slow
@pytest.mark.ddp
def test_ray_gives_the_same(shards: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    given = ["score", "--init", trained, "--data", shards, "--statistics", NAMES, "--device", "cpu", "--json"]

    def run(*more: Any) -> tuple[int, str, list[str]]:
        done = subprocess.run(
            [sys.executable, "-m", "dataprune", *map(str, (*given, "--engine", "ray", "--jobs", 2, *more))],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        # Ray's core reports as an error, from C++, how Ray Data builds its actor pools
        return done.returncode, done.stdout, [line for line in done.stderr.splitlines() if "core_worker.cc" not in line]

    code, out, lines = run("--out", "out")
    assert code == 0 and not lines, lines
    record = json.loads(out)
    assert record["samples"] == sum(SIZES) and record["workers"] in (1, 2)  # one may be done before the other starts
    check(tmp_path / "out/scores.parquet", shards, trained)
    local = call(*given, "--out", tmp_path / "local")
    assert local.exit_code == 0, local.stderr
    first, second = (load_scores(tmp_path / name / "scores.parquet") for name in ("out", "local"))
    assert first.notes == second.notes
    for name in NAMES.split(","):
        np.testing.assert_allclose(first.scores[name].numpy(), second.scores[name].numpy(), rtol=1e-4, atol=1e-6)
    broken = tmp_path / "broken"
    broken.mkdir()
    table = arrow.table({"image": [b"no image"] * 4, "label": [0, 1, 2, 0]})
    parquet.write_table(table, broken / "train.parquet")
    given[4] = broken
    code, out, lines = run("--out", "out2")
    assert code == 1 and out == "" and len(lines) == 1, lines
    assert lines[0].startswith("error: ") and "it is no image" in lines[0] and "train.parquet" in lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--statistics", "forgetting"], "forgetting follows samples through training"),
        (["--statistics", "el2n,tdds"], "tdds follows samples"),
        (["--statistics", "el2m"], "did you mean 'el2n'"),
        (["--epochs", "3"], "--epochs is for training"),
        (["--train-size", "10"], "--train-size is for training"),
        (["--data", "digits"], "there are none in digits"),
    ],
)
def test_invalid_options_of_the_pass(
    options: list[str], message: str, shards: Path, trained: Path, tmp_path: Path
) -> None:
    result = call("score", "--init", trained, "--data", shards, "--device", "cpu", "--out", tmp_path, *options)
    assert result.exit_code == 2 and message in result.stderr


def test_broken_runs_and_files_are_named(shards: Path, trained: Path, tmp_path: Path) -> None:
    def attempt(run: Path, folder: Path = shards) -> None:
        score(str(folder), [], run, tmp_path / "out", device="cpu")

    with pytest.raises(UsageError, match="no run of `dataprune train`"):
        attempt(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "metrics.json"):
        (run / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(UsageError, match="no finished run"):
        attempt(run)
    (run / "model.safetensors").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="train again"):
        attempt(run)
    other = tmp_path / "other"
    other.mkdir()
    write(other / "train.parquet", 5, np.random.default_rng(0))
    table = parquet.read_table(other / "train.parquet")
    parquet.write_table(table.set_column(1, "label", arrow.array([0, 1, 2, 3, 0])), other / "train.parquet")
    with pytest.raises(DataError, match="labels from 0 to 3, but the model knows 3 classes"):
        attempt(trained, other)
    (other / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot read"):
        attempt(trained, other)
    assert not (tmp_path / "out").exists()


def test_options_of_the_pass_need_a_model(shards: Path, trained: Path) -> None:
    for given in (["--engine", "ray"], ["--address", "x:1"], ["--jobs", "2"]):
        done = call("score", *given)
        assert done.exit_code == 2 and "need --init RUN" in done.stderr
    done = call("score", "--init", trained, "--data", shards, "--jobs", 2)
    assert done.exit_code == 2 and "need --engine ray" in done.stderr
    done = call("score", "--init", trained, "--engine", "rey")
    assert done.exit_code == 2 and "did you mean 'ray'" in done.stderr
