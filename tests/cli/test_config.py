"""Options from a YAML file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import QUICK, call, fails

from dataprune import files
from dataprune.cli import pretrain, train
from dataprune.lab.sweeps import sweep


def config(**values: Any) -> str:
    Path("config.yaml").write_text(yaml.safe_dump(values))
    return "config.yaml"


def test_a_file_holds_options_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    file = config(
        method="emp", model="mlp", epochs=4, train_size=320, keep=0.5, **{"weight-decay": 0.0}, flip=True,
        option=["beta=3"],
    )  # fmt: skip
    assert call("train", "--config", file, "--keep", "0.3", "--no-flip", "--out", tmp_path / "out").exit_code == 0
    stored = files.read_json(tmp_path / "out/config.json")
    kept = {name: stored[name] for name in ("model", "epochs", "train_size", "keep", "weight_decay", "flip", "option")}
    assert kept == {
        "model": "mlp", "epochs": 4, "train_size": 320, "keep": 0.3, "weight_decay": 0.0, "flip": False,
        "option": ["beta=3"],
    }  # fmt: skip


@pytest.mark.parametrize("option", ["emp.beta=3", ["emp.beta=3"], {"emp.beta": 3}])
def test_lists_in_a_file(option: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons: list[Any] = []

    def stop(comparison: Any, *arguments: Any, **more: Any) -> None:
        comparisons.append(comparison)
        raise ValueError("stopped")

    monkeypatch.setattr(sweep, "carry_out", stop)
    file = config(
        methods=["short", "emp"], seeds=1, option=option, model="mlp", epochs=4, train_size=320, keep=0.4,
        val_fraction=0.2, tune_lr=[0.01, 0.05],
    )  # fmt: skip
    fails(1, "stopped", "compare", "--config", file)
    (comparison,) = comparisons
    assert [*comparison.methods] == ["short", "emp"] and [*comparison.learning_rates] == [0.01, 0.05]
    assert [*comparison.settings.option] == ["emp.beta=3"]


def test_numbers_in_a_file_may_be_lists() -> None:
    same: dict[str, Any] = {"model": "mlp", "train_size": 320, "seeds": 1}
    lists = config(ratios=[0.5], amounts=[0, 0.5, 1.5], **same)
    fails(2, "--amounts are shares of the weights in [0, 1), got 1.5", "joint", "--config", lists)
    fails(2, "--ratios are fractions of the data in (0, 1), got 2", "joint", "--config", config(ratios=2, **same))


def test_trackers_in_a_file_may_be_a_list() -> None:
    fails(2, "unknown tracker 'board'", "train", "--config", config(track=["tensorboard", "board"], model="mlp"))


def test_a_file_with_unknown_options() -> None:
    fails(2, "unknown option 'modle'; did you mean 'model'?", "train", "--config", config(modle="mlp"))
    result = call("train", "--config", config(modle="mlp"))
    for internal in ("json", "debug", "config", "help", "_"):
        assert internal not in result.stderr.partition("(known:")[2].partition(")")[0]
    fails(2, "use the file with `dataprune compare`", "train", "--config", config(methods=["emp"]))
    fails(2, "use the file with `dataprune train`", "compare", "--config", config(method="emp"))
    fails(2, "unknown option 'json'", "train", "--config", config(json=True))
    fails(2, "lr takes a single value", "train", "--config", config(lr=[0.1, 0.2]))
    fails(2, "--epochs", "train", "--config", config(epochs="many"))


@pytest.mark.slow
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    fails(2, "No such file", "train", "--config", "none.yaml")
    Path("config.yaml").write_text("a: [1")
    fails(2, "cannot read config.yaml", "train", "--config", "config.yaml")
    Path("config.yaml").write_text("- a\n- b\n")
    fails(2, "option: value", "train", "--config", "config.yaml")
    Path("config.yaml").write_text("methods: " + "[" * 5000)
    fails(2, "cannot read config.yaml", "compare", "--config", "config.yaml")
    Path("config.yaml").write_bytes(b"\xff\xfe\x00")
    fails(2, "cannot read config.yaml", "train", "--config", "config.yaml")
    Path("config.yaml").write_text("")
    fails(2, "--keep is a fraction", "train", *QUICK, "--keep", 7, "--config", "config.yaml")  # read, and empty


@pytest.mark.parametrize("form", ["methods: [*{0}, *{0}, *{0}]", "option: {{a: [*{0}, *{0}]}}", "<<: [*{0}, *{0}]"])
@pytest.mark.parametrize("command", ["compare", "reproduce"])
def test_a_few_lines_that_stand_for_gigabytes(form: str, command: str) -> None:
    names = "abcdefghijklmnop"
    lines = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in itertools.pairwise(names)]
    Path("bomb.yaml").write_text("\n".join(["a: &a [x, y]", *lines, form.format("p")]))
    given = ("--config", "bomb.yaml") if command == "compare" else ("bomb.yaml", "--scale", "smoke")
    fails(2, "bomb.yaml has an alias (*name): write its value out", command, *given)


# Xiao et al., arXiv:2408.16031: Table B.5 and appendix C.2; Table B.4
SIMCLR = {"lr": 1e-3, "epochs": 100, "batch_size": 256, "optimizer": "adam", "weight_decay": 1e-6,
          "schedule": "exponential", "temperature": 0.5}  # fmt: skip
GLUE = {"lr": 2e-5, "epochs": 10, "batch_size": 32, "optimizer": "adam", "schedule": "linear"}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (SIMCLR, ["pretrain"]),
        (SIMCLR, ["compare", "--task", "contrastive"]),
        (GLUE, ["train", "--task", "glue/rte", "--model", "folder"]),
    ],
)
def test_a_task_has_its_papers_recipe(recipe: dict, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Any] = []

    def stop(settings: Any, *arguments: Any, **more: Any) -> None:
        planned.append(getattr(settings, "settings", settings))  # of a comparison, or a run's

    monkeypatch.setattr(sweep, "carry_out", stop)
    for command in (pretrain, train):
        monkeypatch.setattr(command, "train_run", stop)
    call(*words)
    assert {name: getattr(planned[0], name) for name in recipe} == recipe
