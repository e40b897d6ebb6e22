"""Contrastive pre-training through `run` and `compare`, and going on from its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import dataprune
from dataprune import files
from dataprune.contrastive import SimCLR, Views, nt_xent
from dataprune.errors import DataError, UsageError
from dataprune.lab.models import build
from dataprune.lab.sweeps import engines
from dataprune.lab.sweeps.compare import Comparison
from dataprune.lab.sweeps.sweep import carry_out
from dataprune.lab.training import build as building
from dataprune.lab.training import run as training
from dataprune.lab.training import tasks
from dataprune.lab.training.build import build_rate
from dataprune.lab.training.settings import Settings
from dataprune.lab.training.tasks.images import headless

NONE = {"shift": 0, "flip": False}


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {"task": "contrastive", "method": "emp_contrastive", "epochs": 4, "optimizer": "adam"}
    return tiny.settings(**(given | {"lr": 1e-3, "dim": 8} | NONE | changes))


def test_a_run_is_the_plain_loop(tmp_path: Path) -> None:
    trained, data = settings(), tiny.data()
    metrics = training.run(trained, tmp_path, data=data)
    model = tasks.of(trained, data).model()
    assert isinstance(model, SimCLR) and model.features == 64 and not any("fc" in name for name in model.state_dict())
    pruner = dataprune.emp_contrastive(400, keep=0.3, epochs=4)
    views = Views(mean=data.mean, std=data.std)
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=5e-4)
    rate, step, steps = build_rate(trained), 0, pruner.planned_steps(16, drop_last=True)
    images = data.train.images  # type: ignore[union-attr]
    for epoch in range(4):
        for index in pruner.batches(epoch, 16):
            features, (z_i, z_j) = model(*views(images[index], index, seed=0, epoch=epoch))
            loss = pruner.loss(index, nt_xent(z_i, z_j, reduction="none"), features)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * rate((step + 0.5) / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    saved = load_file(tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert metrics.steps == step == steps
    assert 0.25 < metrics.accuracy <= 1 and 0.25 < metrics.metrics["knn_accuracy"] <= 1
    assert all(line["train_accuracy"] is None for line in tiny.history(tmp_path))


def test_the_history_has_the_neighbours_accuracy(tmp_path: Path) -> None:
    metrics = training.run(settings(), tmp_path, data=tiny.data(val=80))
    values = [line["val_accuracy"] for line in tiny.history(tmp_path)]
    assert all(0 <= value <= 1 for value in values) and metrics.val_accuracy == values[-1]


@pytest.mark.parametrize(
    "method", ["full", "random", "rs2", "loss", "epsilon_greedy", "ucb", "infobatch", "static_random"]
)
def test_other_methods(method: str, tmp_path: Path) -> None:
    metrics = training.run(settings(method=method, keep=None if method == "full" else 0.5), tmp_path, data=tiny.data())
    assert metrics.reached_keep == 1 if method == "full" else metrics.reached_keep >= 0.5


def test_the_projection_is_linear_where_asked_for(tmp_path: Path) -> None:
    training.run(settings(projection="linear"), tmp_path, data=tiny.data())
    heads = {name: value.shape for name, value in load_file(tmp_path / "model.safetensors").items() if "proj" in name}
    assert heads == {"projection.0.weight": (8, 64), "projection.0.bias": (8,)}


def test_what_is_scored_changes_what_is_kept(tmp_path: Path) -> None:
    for on in ("features", "projections"):
        training.run(settings(score_on=on), tmp_path / on, data=tiny.data())
    first, second = (load_file(tmp_path / on / "selection_counts.safetensors") for on in ("features", "projections"))
    assert not torch.equal(first["selected"], second["selected"])


@pytest.mark.parametrize("changes", [{}, {"workers": 2}, {"bf16": True}])
def test_an_interrupted_run_resumes(changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, data = settings(checkpoint_every=3, epochs=5, **changes), tiny.data(val=40)
    tiny.check_resume(changed, data, tmp_path, 35, monkeypatch)


def ranked(rank: int, world_size: int, out: str, changes: dict[str, Any]) -> dict[str, Any]:
    return training.run(settings(**changes), Path(out), data=tiny.data())


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks(pool: Any, tmp_path: Path) -> None:
    for gather in (False, True):
        out = tmp_path / str(gather)
        records = pool.run(ranked, str(out), {"batch_size": 8, "gather": gather}, world_size=2)
        assert records[0] == records[1] and records[0].world_size == 2
    loss = {gather: tiny.history(tmp_path / str(gather))[0]["loss"] for gather in (False, True)}
    assert loss[True] > loss[False] + 0.3  # twice as many negatives: log 2 more, at first


def test_training_starts_from_the_encoder(tmp_path: Path) -> None:
    data = tiny.data()
    training.run(settings(), tmp_path / "pre", data=data)
    encoder = load_file(tmp_path / "pre" / "model.safetensors")
    for path in (tmp_path / "pre", tmp_path / "pre" / "model.safetensors"):
        model = tasks.of(tiny.settings(init=str(path)), data).model()
        fresh = build.build("small_cnn", data.shape, 4, 0).state_dict()
        for name, value in model.state_dict().items():
            expected = fresh[name] if name.startswith("fc.") else encoder["encoder." + name]
            assert torch.equal(value, expected), name
    record = training.run(tiny.settings(init=str(tmp_path / "pre")), tmp_path / "tuned", data=data)
    again = tasks.of(tiny.settings(init=str(tmp_path / "tuned")), data).model()  # of a classifier too
    tuned = load_file(tmp_path / "tuned" / "model.safetensors")
    assert torch.equal(again.state_dict()["conv1.0.weight"], tuned["conv1.0.weight"]) and record.accuracy > 0.25


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    data = tiny.data()
    with pytest.raises(UsageError, match="there is no"):
        tasks.of(tiny.settings(init=str(tmp_path)), data).model()
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be read"):
        tasks.of(tiny.settings(init=str(tmp_path)), data).model()
    save_file({"conv.weight": torch.ones(2)}, file)
    with pytest.raises(DataError, match="another model's weights"):
        tasks.of(tiny.settings(init=str(tmp_path)), data).model()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "emp"}, "emp is not for the task contrastive"),
        ({"task": "classification"}, "emp_contrastive is not for the task classification"),
        ({"label_noise": 0.1}, "--label-noise is not for contrastive"),
        ({"flip": True}, "--flip is not for contrastive"),
        ({"init": "x"}, "--init is not for contrastive"),
        ({"task": "contrastiv"}, "did you mean 'contrastive'"),
        ({"views": "simcrl"}, "did you mean 'simclr'"),
        ({"score_on": "logits"}, "unknown score on"),
        ({"temperature": 0.0}, "--temperature must be positive"),
        ({"dim": 0}, "--dim must be at least 1"),
        ({"batch_size": 1}, "batch"),
    ],
)
def test_invalid_settings_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, ValueError), match=message):
        training.run(settings(**changes), tmp_path, data=tiny.data())


def test_bfloat16_does_not_spoil_the_linear_classifier(tmp_path: Path) -> None:
    levels = [training.run(settings(bf16=on), tmp_path / str(on), data=tiny.data()).accuracy for on in (False, True)]
    assert levels[0] > 0.5 and abs(levels[0] - levels[1]) < 0.15  # of chance 0.25


def test_colours_need_kornia_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = building.find_spec
    monkeypatch.setattr(building, "find_spec", lambda name, *rest: None if name == "kornia" else find(name, *rest))
    with pytest.raises(UsageError, match=r"pip install -c constraints.txt -e '\.\[contrastive\]'"):
        training.run(settings(views="simclr"), tmp_path / "out", data=tiny.data())
    assert not (tmp_path / "out").exists()


def test_a_model_without_features() -> None:
    class Flat(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.flatten(1))

    with pytest.raises(UsageError, match="no linear layer that makes"):
        headless(Flat(64, 4), tiny.data())


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    comparison = Comparison(settings(), methods=("full", "short", "rs2", "emp_contrastive"), seeds=(0,))
    result = carry_out(comparison, tmp_path, data=tiny.data())
    assert result["task"] == "contrastive"
    steps = {row["method"]: row["steps"] for row in result["runs"]}
    assert steps.pop("full") == 100 and set(steps.values()) == {25 + 3 * 7}
    assert all(0 <= row["knn_accuracy"] <= 1 for row in result["runs"])
    assert "knn_accuracy_mean" in result["summary"][0]
    with pytest.raises(UsageError, match="el2n is a static method"):
        replace(comparison, methods=("el2n",))
    with pytest.raises(UsageError, match="memory is not for the task"):
        replace(comparison, methods=("rs2", "memory"))


def test_compare_evaluates_untrained_features(tmp_path: Path) -> None:
    comparison = Comparison(settings(), methods=("short", "rs2"), seeds=(0,))
    result = carry_out(comparison, tmp_path, data=tiny.data())
    wanted = []
    for seed in (0, 1):
        task = tasks.of(settings(seed=seed), tiny.data())
        wanted.append({"seed": seed, **task.test(task.model(), torch.device("cpu"))})
    assert result["untrained"] == wanted[:1]
    more = carry_out(replace(comparison, seeds=(0, 1)), tmp_path, data=tiny.data())
    assert more["untrained"] == wanted == files.read_json(tmp_path / "compare.json")["untrained"]


def test_compare_fine_tunes_every_encoder_by_one_recipe(tmp_path: Path) -> None:
    comparison = Comparison(settings(), methods=("short", "rs2"), seeds=(0,), finetune_epochs=2)
    result = carry_out(comparison, tmp_path / "one", data=tiny.data())
    training.run(settings(method="rs2", steps=46, warmup=1), tmp_path / "pre", data=tiny.data())
    recipe = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-6, "batch_size": 32, "epochs": 2}
    whole = tiny.settings(**NONE, **recipe, method="full", schedule="cosine", lr_warmup=0.05)
    wanted = {
        "rs2": training.run(replace(whole, init=str(tmp_path / "pre")), tmp_path / "tuned", data=tiny.data()).accuracy,
        "untrained": training.run(whole, tmp_path / "scratch", data=tiny.data()).accuracy,
    }
    rows = {row["method"]: row for row in result["runs"]} | {"untrained": result["untrained"][0]}
    assert {name: rows[name]["finetuned_accuracy"] for name in wanted} == wanted
    assert result["summary"][0]["finetuned_accuracy_mean"] == rows["short"]["finetuned_accuracy"]
    assert not list(tmp_path.glob("one/**/model.safetensors"))  # not a model for each run of a sweep
    assert carry_out(comparison, tmp_path / "one", data=tiny.data())["runs"] == result["runs"]


def test_interrupted_fine_tuning_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = Comparison(settings(), methods=("rs2",), seeds=(0,), finetune_epochs=2)
    whole = carry_out(comparison, tmp_path / "whole", data=tiny.data())

    perform = engines.perform

    def killed(job: engines.Job, *rest: Any) -> Any:
        if job.weights is not None:
            raise KeyboardInterrupt
        return perform(job, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engines, "perform", killed)
        carry_out(comparison, tmp_path / "cut", data=tiny.data())
    assert (
        carry_out(comparison, tmp_path / "cut", data=tiny.data())["summary"][0].items()
        >= {name: whole["summary"][0][name] for name in ("accuracy_mean", "finetuned_accuracy_mean")}.items()
    )


def test_invalid_fine_tuning_is_refused(tmp_path: Path) -> None:
    comparison = Comparison(settings(), methods=("rs2",), seeds=(0,))
    with pytest.raises(UsageError, match="must not be negative"):
        replace(comparison, finetune_epochs=-1)
    with pytest.raises(UsageError, match="is for --task contrastive"):
        replace(comparison, settings=tiny.settings(), finetune_epochs=1)
    carry_out(comparison, tmp_path, data=tiny.data())
    with pytest.raises(UsageError, match="holds another comparison"):
        carry_out(replace(comparison, finetune_epochs=1), tmp_path, data=tiny.data())
    for name in ("compare.json", "sweep.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UsageError, match="did not save its weights"):
        carry_out(replace(comparison, finetune_epochs=1), tmp_path, data=tiny.data())
