"""Settings of a run: names, ranges, options, and the key of runs that compute the same."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from dataprune import Selection
from dataprune.errors import UsageError
from dataprune.lab.training import build, optimizers
from dataprune.lab.training.settings import OPTIMIZERS, SCHEDULES, Settings

RUNTIME = {
    "device": "cpu", "threads": 2, "workers": 2, "channels_last": True, "compile": True, "checkpoint_every": 5,
    "track": "wandb", "arm": "short",
}  # fmt: skip


def test_every_field_has_a_help_text_and_a_panel() -> None:
    for entry in fields(Settings):
        assert entry.metadata["help"].endswith("."), entry.name
        panels = (
            *[""] * (entry.name == "arm"),
            "Data",
            "Pruning",
            "Scores",
            "Training",
            "Contrastive",
            "Language",
            "Machine",
        )
        assert entry.metadata["panel"] in panels, entry.name


def test_the_key_ignores_how_a_run_is_carried_out_and_nothing_else() -> None:
    base = Settings()
    assert set(RUNTIME) == {entry.name for entry in fields(Settings)} - Settings().computed().keys() - {"selection"}
    assert replace(base, **RUNTIME).key() == base.key() == Settings().key()
    changed = {
        "data": "mnist", "data_folder": "x", "train_size": 9, "test_size": 9,
        "val_fraction": 0.1, "label_noise": 0.1, "image_size": 9,
        "shift": 1, "shift_mode": "reflect", "resized_crop": True, "flip": True,
            "method": "rs2", "keep": 0.4, "budget": 0.4,
        "option": ("beta=5",), "warmup": 2, "anneal": 0.1, "statistics": "aum", "max_length": 9,
        "model": "mlp", "epochs": 9, "steps": 9, "batch_size": 9, "optimizer": "adam", "lr": 0.2,
        "momentum": 0.1, "nesterov": False,
        "weight_decay": 0.1, "label_smoothing": 0.1, "schedule": "step", "lr_warmup": 0.1,
        "recalibrate_bn": 99, "seed": 1, "bf16": True, "task": "contrastive", "init": "x", "views": "simclr",
        "temperature": 0.1, "dim": 9, "projection": "linear", "score_on": "projections", "gather": True,
    }  # fmt: skip
    named = {*changed, *RUNTIME, "selection", "count_forwards"}
    assert named == {entry.name for entry in fields(Settings)}
    keys = {replace(base, **{name: value}).key() for name, value in changed.items()}
    keys |= {base.key(), replace(base, steps=9, count_forwards=True).key()}
    assert len(keys) == len(changed) + 2


def test_the_key_depends_on_the_content_of_a_coreset(tmp_path: Path) -> None:
    first, other, third = (tmp_path / f"{name}.safetensors" for name in "abc")
    for path, last, method in ((first, 2, "a"), (other, 2, "b"), (third, 3, "a")):
        Selection.of(torch.tensor([0, last])).save(path, {"method": method})
    keys = [Settings(selection=str(path)).key() for path in (first, other, third)]
    assert keys[0] == keys[1] != keys[2]
    Selection(torch.tensor([0, 2]), torch.ones(2), by_batch=True).save(third, {"method": "a"})
    assert Settings(selection=str(third)).key() != keys[0]
    stored = Settings(selection=str(first)).as_dict()
    assert Settings.of(stored) == Settings(selection=str(first)) and Settings(selection=str(first)).method == "fixed"
    assert Settings(selection=str(other)).differs(stored) == []
    assert Settings(selection=str(third)).differs(stored) == ["selection"]


def test_a_setting_missing_in_a_stored_run_has_its_default() -> None:
    stored = {name: value for name, value in Settings(lr=0.2).as_dict().items() if name != "test_size"}
    assert Settings(lr=0.2, threads=2).differs(stored) == []
    assert Settings(lr=0.1, test_size=9).differs(stored) == ["test_size", "lr"]


def test_the_lists_of_names_are_those_of_the_modules() -> None:
    assert all(optimizers.build(Settings(optimizer=name), [torch.ones(1)]) for name in OPTIMIZERS)
    assert all(build.build_rate(Settings(schedule=name))(0.5) > 0 for name in SCHEDULES)


@pytest.mark.parametrize("rise", [0.0, 0.05])
def test_the_rate_drops_at_thirds_of_the_run_whatever_the_rise(rise: float) -> None:
    """ImageNet's 90 epochs at a tenth every 30 (arXiv:2408.16031, appendix C.1), which have no rise."""
    rate = build.build_rate(Settings(schedule="step", lr_warmup=rise))
    for epoch in range(90):
        expected = 0.1 ** (epoch // 30) * (1.0 if rise == 0 else min(1.0, (epoch + 0.5) / 90 / rise))
        assert rate((epoch + 0.5) / 90) == pytest.approx(expected)
    plain = optimizers.build(Settings(nesterov=False), [torch.ones(1)])
    assert plain.defaults["nesterov"] is False and plain.defaults["momentum"] == 0.9


@pytest.mark.parametrize(
    ("option", "value"),
    [("train_size", 0), ("val_fraction", 1.0), ("label_noise", 1.1), ("label_noise", float("nan")), ("image_size", 0)],
)
def test_values_out_of_range(option: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} (must be|is a share)"):
        Settings(**{option: value})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keep": 0.0}, r"--keep is a fraction in \(0, 1\], got 0"),
        ({"keep": 1.5}, "--keep"),
        ({"keep": float("nan")}, "--keep"),
        ({"budget": -0.1}, "--budget"),
        ({"keep": 0.5, "budget": 0.5}, "not both"),
        ({"shift": 4, "resized_crop": True}, "two kinds of crop"),
        ({"val_fraction": 1.0}, "--val-fraction"),
        ({"label_noise": -0.1}, "--label-noise"),
        ({"lr_warmup": 1.0}, "--lr-warmup"),
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"steps": 0}, "--steps"),
        ({"seed": -1}, "--seed"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"optimizer": "adan"}, "did you mean 'adam'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"shift_mode": "reflct"}, "did you mean 'reflect'"),
        ({"option": ("beta",)}, "name=value"),
        ({"option": ("warmup=2",)}, "give --warmup"),
        ({"option": ("emp.anneal=0.1",)}, "give --anneal"),
        ({"warmup": -1}, "--warmup"),
        ({"anneal": 1.5}, "--anneal"),
        ({"selection": "coreset", "warmup": 2}, "leave --warmup and --anneal out"),
        ({"recalibrate_bn": 10, "batch_size": 32}, "--recalibrate-bn .* at least --batch-size"),
    ],
)
def test_invalid_values_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**wrong)


def test_options_are_parsed_and_go_to_their_method() -> None:
    given = ("beta=2", "ucb.c=3", "emp.every-so=1e-3", "text=plain", "flag=true")
    schedule = {"warmup": 1, "anneal": 0.0}
    assert Settings(method="emp", keep=0.5, warmup=0, anneal=0.1, option=given).recipe_arguments() == {
        "keep": 0.5, "warmup": 0, "anneal": 0.1, "beta": 2, "every_so": 0.001, "text": "plain", "flag": True,
    }  # fmt: skip
    assert Settings(method="emp", budget=0.5).recipe_arguments() == {"budget": 0.5, **schedule}
    assert Settings(method="full").recipe_arguments() == schedule
    assert Settings(data="digits").recipe_arguments() == {"keep": 0.05, **schedule}
    assert Settings(data="mnist").recipe_arguments() == {"keep": 0.3, **schedule}
    assert Settings(method="infobatch", option=("prune_probability=0.5",)).recipe_arguments() == {
        "prune_probability": 0.5, **schedule,
    }  # fmt: skip


def test_the_default_method_follows_the_task() -> None:
    assert Settings().method == "learnability"
    assert Settings(task="glue/stsb").method == "loss" and Settings(task="glue/rte").method == "learnability"
    assert Settings(task="contrastive").method == "emp_contrastive"
    assert Settings(selection="coreset").method == "fixed"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "epm"}, "did you mean 'emp'"),
        ({"model": "small-cn"}, "did you mean 'small_cnn'"),
        ({"option": ("epm.beta=5",)}, "did you mean 'emp'"),
        ({"method": "emp", "option": ("betta=5",)}, "did you mean 'beta'"),
        ({"option": ("balance=5",)}, "balance is true or false"),
        ({"keep": 0.01}, "keeps 4 of 400 samples per rank, fewer than one batch of 32"),
    ],
)
def test_a_pruner_that_cannot_be_built(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings = Settings(**({"keep": 0.5} | wrong))
        build.check(settings)
        build.build_pruner(settings, 400)
