"""Fine-tuning on GLUE through `run`, `compare` and the command line, with a tiny encoder of random weights."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

import pyarrow as pa
import pyarrow.parquet as pq
import tiny
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import dataprune
from dataprune import files
from dataprune.cli import app
from dataprune.errors import DataError, UsageError
from dataprune.lab.data import glue
from dataprune.lab.sweeps.compare import Comparison
from dataprune.lab.sweeps.sweep import carry_out
from dataprune.lab.training import run as training
from dataprune.lab.training import tasks
from dataprune.lab.training.build import check, load_data
from dataprune.lab.training.device import stream
from dataprune.lab.training.epoch_history import EpochRecord
from dataprune.lab.training.settings import GLUE, LANGUAGE, Settings


@pytest.fixture
def settings(encoder: str, data_folder: Path) -> Settings:
    recipe: dict[str, Any] = {**LANGUAGE, "epochs": 4, "batch_size": 8, "lr": 1e-3, "max_length": 24, "method": "emp"}
    return Settings(task="glue/rte", model=encoder, train_size=64, test_size=32, device="cpu", keep=0.5, **recipe)


def test_names() -> None:
    assert tuple(glue.GLUE) == GLUE


# -- data ------------------------------------------------------------------------------------------------------------


def test_every_text_is_tokenized_as_by_itself(settings: Settings) -> None:
    data = load_data(settings)
    table = pq.read_table(Path(os.environ["DATAPRUNE_DATA"]) / "glue/rte/validation-00000-of-00001.parquet")
    rows, make = table.to_pylist(), glue.tokenizer(settings.model)
    assert len(rows) == 277
    encoded = [make(row["sentence1"], row["sentence2"], truncation=True, max_length=24) for row in rows]
    assert len(data.test) == 32 and len(data.train) == 64 and data.classes == ["entailment", "not_entailment"]
    for position in range(len(data.test)):
        tokens, label = data.test.take(position)  # type: ignore[union-attr]
        length = int(tokens[1].sum())
        assert length <= 24 and tokens[:, length:].eq(0).all()
        alike = [n for n, row in enumerate(encoded) if row["input_ids"] == tokens[0, :length].tolist()]
        assert alike and int(label) in [rows[n]["label"] for n in alike]
        assert tokens[2, :length].tolist() == encoded[alike[0]]["token_type_ids"]


def test_batches_are_as_long_as_their_longest_text(settings: Settings) -> None:
    data = load_data(replace(settings, max_length=64))
    task = tasks.of(replace(settings, max_length=64), data)
    tokens = data.train.take(torch.arange(4))[0]  # type: ignore[union-attr]
    inputs = task.inputs(tokens, torch.arange(4), 0)
    assert isinstance(inputs, dict) and set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert inputs["input_ids"].shape == (4, int(tokens[:, 1].sum(1).max())) and tokens.shape[2] > 24


@pytest.mark.parametrize("name, columns", [("cola", 1), ("sst2", 1), ("mrpc", 2), ("stsb", 2), ("wnli", 2)])
def test_installed_tasks(name: str, columns: int, settings: Settings) -> None:
    data = load_data(replace(settings, task=f"glue/{name}", data=f"glue/{name}"))
    assert (data.train.labels.dtype == torch.float32) == (name == "stsb") == (data.classes == [])
    segments = int(data.train.take(slice(None))[0][:, 2].max())  # type: ignore[union-attr]
    assert segments == columns - 1


def test_label_noise_and_validation(settings: Settings) -> None:
    clean = load_data(replace(settings, val_fraction=0.25))
    noisy = load_data(replace(settings, val_fraction=0.25, label_noise=0.5))
    assert len(clean.train) == 48 and clean.val is not None and len(clean.val) == 16
    changed = int((clean.train.labels != noisy.train.labels).sum())
    assert 4 <= changed <= 24 and torch.equal(clean.val.labels, noisy.val.labels)  # type: ignore[union-attr]


def table(folder: Path, split: str, **columns: Any) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")


def test_a_folder_of_a_user(settings: Settings, tmp_path: Path) -> None:
    two = {"sentence1": ["the cat sat"] * 30, "sentence2": ["a dog ran"] * 30, "label": [0, 1, 1] * 10}
    for split in ("train", "validation"):
        table(tmp_path / "own", split, **two)
    own = replace(settings, data_folder=str(tmp_path / "own"), train_size=None, test_size=None)
    data = load_data(own)
    assert data.classes == ["0", "1"] and len(data.train) == 30
    with pytest.raises(DataError, match="no column question, only sentence1"):
        load_data(replace(own, task="glue/qnli", data="glue/qnli"))
    wrong = {
        "'yes' as label in row 0: it must be a number": {"label": ["yes", "no", "no"] * 10},
        "None as sentence2 in row 3: it must be text": {"sentence2": ["a dog"] * 3 + [None] + ["a dog"] * 26},
        "the split train has no labels": {"label": [-1] * 30},
    }
    for message, columns in wrong.items():
        table(tmp_path / "wrong", "train", **two | columns)
        table(tmp_path / "wrong", "validation", **two)
        with pytest.raises(DataError, match=message):
            load_data(replace(own, data_folder=str(tmp_path / "wrong")))
    with pytest.raises(DataError, match="no parquet files"):
        load_data(replace(own, data_folder=str(tmp_path)))
    (tmp_path / "own/validation-00000-of-00001.parquet").rename(tmp_path / "own/dev-00000-of-00001.parquet")
    with pytest.raises(DataError, match="no split validation, only dev, train"):
        load_data(own)
    (tmp_path / "own/train-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        load_data(own)


@pytest.mark.slow
def test_missing_data(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot fetch glue/qqp|no glue/qqp here"):
        load_data(replace(settings, task="glue/qqp", data="glue/qqp"))
    with pytest.raises(DataError, match="there are only 2490 training samples of glue/rte"):
        load_data(replace(settings, train_size=10_000))


# -- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 2, generator=generator), torch.randint(2, (200,), generator=generator)
    made = logits.argmax(1)
    tp, tn = int(((made == 1) & (labels == 1)).sum()), int(((made == 0) & (labels == 0)).sum())
    fp, fn = int(((made == 1) & (labels == 0)).sum()), int(((made == 0) & (labels == 1)).sum())
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert glue.metrics("cola", logits, labels)["matthews"] == pytest.approx(matthews)
    wanted = {"accuracy": (tp + tn) / 200, "f1": 2 * tp / (2 * tp + fp + fn)}
    assert glue.metrics("mrpc", logits, labels) == pytest.approx(wanted)
    values, scores = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    ranks = [numbers.argsort().argsort().double() for numbers in (values, scores)]
    wanted = {
        "pearson": float(torch.corrcoef(torch.stack([values, scores]).double())[0, 1]),
        "spearman": float(torch.corrcoef(torch.stack(ranks))[0, 1]),
    }
    assert glue.metrics("stsb", values, scores) == pytest.approx(wanted)
    assert glue.metrics("stsb", torch.ones(50), scores) == {"pearson": 0.0, "spearman": 0.0}


# -- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rte", "stsb"])
def test_a_run_is_the_plain_loop(name: str, settings: Settings, tmp_path: Path) -> None:
    changed = replace(settings, task=f"glue/{name}", data=f"glue/{name}", method="emp")
    record = training.run(changed, tmp_path)
    data, labels = load_data(changed), 1 if name == "stsb" else 2
    torch.manual_seed(changed.seed)
    model = AutoModelForSequenceClassification.from_pretrained(changed.model, num_labels=labels)
    model.train()
    pruner = dataprune.emp(64, keep=0.5, epochs=4)
    optimizer = torch.optim.Adam(model.parameters())
    step, steps = 0, pruner.planned_steps(8, drop_last=True)
    for epoch in range(4):
        for index in pruner.batches(epoch, 8):
            tokens, wanted = data.train.take(index)  # type: ignore[union-attr]
            ids, mask, kind = tokens[:, :, : int(tokens[:, 1].sum(1).max())].long().unbind(1)
            torch.manual_seed(stream(changed.seed, "model", step, 0))
            logits = model(input_ids=ids, attention_mask=mask, token_type_ids=kind).logits
            if name == "stsb":
                losses = (logits[:, 0] - wanted) ** 2
                loss = pruner.loss(index, losses, logits[:, 0], wanted)
            else:
                losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
                loss = pruner.loss(index, losses, logits, wanted)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 - (step + 0.5) / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    kept = load_file(tmp_path / "model/model.safetensors")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(kept[key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert record.steps == step == steps
    assert (
        record.metric == ("pearson" if name == "stsb" else "accuracy")
        and record.accuracy == record.as_dict()[record.metric]
    )
    assert (tiny.history(tmp_path)[0]["train_accuracy"] is None) == (name == "stsb")


def test_transformers_loads_what_a_run_leaves(settings: Settings, tmp_path: Path) -> None:
    changed = replace(settings, method="rs2")
    record = training.run(changed, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    data = load_data(replace(changed, model=str(tmp_path / "model")))
    assert tasks.of(changed, data).validate(model, data.test, torch.device("cpu")) == record.accuracy
    again = replace(changed, model=str(tmp_path / "model"), method="full", task="glue/stsb", data="glue/stsb")
    assert training.run(again, tmp_path / "more").steps == 32


def test_a_resumed_run_equals_an_uninterrupted_one(settings: Settings, tmp_path: Path) -> None:
    changed = replace(settings, method="emp", checkpoint_every=3, val_fraction=0.2)
    training.run(changed, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(model: Any, line: EpochRecord) -> None:
        if line.epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        training.run(changed, tmp_path / "cut", on_epoch=stop)
    training.run(changed, tmp_path / "cut")
    for name in ("model/model.safetensors", "selection_counts.safetensors"):
        weights, other = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert all(torch.equal(weights[key], other[key]) for key in weights)


def test_compare(settings: Settings, tmp_path: Path) -> None:
    comparison = Comparison(replace(settings, task="glue/stsb", data="glue/stsb"), ("full", "short", "emp"), seeds=(0,))
    result = carry_out(comparison, tmp_path)
    assert result["task"] == result["data"] == "glue/stsb" and result["metric"] == "pearson"
    steps = {row["method"]: row["steps"] for row in result["runs"]}
    assert steps["short"] == steps["emp"] < steps["full"]
    with pytest.raises(UsageError, match="forgetting is a static method"):
        replace(comparison, methods=("forgetting",))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "small_cnn"}, "needs a pretrained encoder: --model FOLDER"),
        ({"flip": True}, "--flip is not for glue/rte: leave it out"),
        ({"init": "x"}, "--init is not for glue/rte: give --model FOLDER"),
        (
            {"task": "glue/stsb", "data": "glue/stsb", "method": "memory"},
            "memory reads classes, and glue/stsb predicts",
        ),
        ({"task": "glue/stsb", "data": "glue/stsb", "method": "rcap"}, "rcap reads classes, and glue/stsb predicts"),
        ({"task": "glue/stsb", "data": "glue/stsb", "label_noise": 0.1}, "--label-noise is for classes"),
        ({"method": "emp_contrastive"}, "emp_contrastive is not for the task glue/rte"),
        ({"data": "mnist"}, "leave --data out"),
        ({"task": "glue/rtf", "data": "digits"}, "did you mean 'glue/rte'"),
        ({"max_length": 0}, "--max-length must be at least 1"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str, settings: Settings) -> None:
    with pytest.raises(UsageError) as caught:
        check(replace(settings, **changes))
    assert message in str(caught.value)


def test_attention_on_a_cpu_is_not_the_fused_one(settings: Settings) -> None:
    model: Any = tasks.of(settings, load_data(settings)).model()
    assert model.config._attn_implementation == "eager"


def test_an_unknown_model(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a model folder"):
        load_data(replace(settings, model=str(tmp_path)))


# -- command line ----------------------------------------------------------------------------------------------------


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_on_the_command_line(encoder: str, data_folder: Path, tmp_path: Path) -> None:
    small = ("--model", encoder, "--train-size", 160, "--test-size", 32, "--max-length", 16, "--keep", 0.5)
    result = call("train", "--task", "glue/cola", *small, "--epochs", 4, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["metric"] == "matthews"
    config = files.read_json(tmp_path / "run/config.json")
    recipe = {name: value for name, value in LANGUAGE.items() if name != "epochs"}
    assert {name: config[name] for name in recipe} == recipe and config["data"] == "glue/cola"
    assert "Writing" not in result.stderr  # bars of transformers'
    result = call("compare", "--task", "glue/stsb", *small, "--epochs", 4, "--seeds", 1, "--out", tmp_path / "all")
    assert result.exit_code == 0, result.stderr
    assert "pearson %" in result.stdout and "infobatch" in result.stdout and "memory" not in result.stdout


def test_contrastive_learning_has_a_command_of_its_own() -> None:
    result = call("train", "--task", "contrastive")
    assert result.exit_code == 2 and "dataprune pretrain" in result.stderr


@pytest.mark.slow
def test_the_report_shows_texts(settings: Settings, tmp_path: Path) -> None:
    from dataprune.lab.report import page

    comparison = Comparison(replace(settings, data="glue/rte"), ("full", "short", "emp"), seeds=(0,))
    carry_out(comparison, tmp_path)
    text = page.write([tmp_path], tmp_path)[0].read_text()
    assert "test accuracy, %" in text and '<th scope="col">text</th>' in text and "entailment" in text
    scores = tmp_path / "scores"
    carry_out(replace(comparison, settings=replace(settings, task="glue/stsb", data="glue/stsb")), scores)
    text = page.write([scores], scores)[0].read_text()
    assert "test pearson, %" in text and "The labels are scores, not classes." in text
