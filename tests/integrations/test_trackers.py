"""Trackers, each for real where its package is there, and runs of the command line that log every epoch once."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import dataprune
from dataprune.errors import UsageError
from dataprune.integrations import trackers
from dataprune.lab.training.epoch_history import EpochRecord
from dataprune.lab.training.run import run


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads: (step, value) by name."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for name in events.Tags()["scalars"]:
            values.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    return values


# -- trackers ----------------------------------------------------------------------------------------------------------


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    with trackers.tensorboard(tmp_path) as tracker:
        tracker.log({"loss": 0.5, "kept": 1}, 3)
        tracker.log({"loss": 0.25, "kept": None}, 7)
    assert scalars(tmp_path) == {"loss": [(3, 0.5), (7, 0.25)], "kept": [(3, 1.0)]}


def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    code = (
        "from dataprune.integrations import trackers\n"
        "with trackers.wandb('mine', mode='offline', config={'keep': 0.3}) as tracker:\n"
        "    tracker.log({'loss': 0.5}, 3)\n"
    )
    done = subprocess.run(  # its service writes while the process ends
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env=os.environ | {"WANDB_SILENT": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (stored,) = tmp_path.rglob("*.wandb")
    assert b"loss" in stored.read_bytes()


def test_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed: pip install trackio")
    code = (
        "from dataprune.integrations import trackers\n"
        "with trackers.trackio('mine', name='one', auto_log_cpu=False, auto_log_gpu=False) as tracker:\n"
        "    tracker.log({'loss': 0.5}, 3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "mine.db")) as stored:
        ((step, metrics),) = stored.execute("select step, metrics from metrics")
    assert step == 3 and json.loads(metrics) == {"loss": 0.5}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own
def test_mlflow_continues_a_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow is not installed whole: pip install mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for step in (3, 7):
        with trackers.mlflow("mine", uri=uri, name="one", config={"keep": 0.3}) as tracker:
            tracker.log({"loss": 1 / step}, step)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [3, 7]
    assert run.data.params == {"keep": "0.3"}


def test_a_broken_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text("import something_that_is_nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ImportError, match=r"wandb is installed but cannot be imported .*something_that_is_nowhere"):
        trackers.wandb("mine")


@pytest.mark.parametrize("name", trackers.NAMES)
def test_a_missing_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"pip install {name}"):
        getattr(trackers, name)(str(tmp_path / "x"))
    with pytest.raises(UsageError, match=f"pip install {name}"), trackers.following(name, tmp_path):
        pass


def test_closing_twice_and_after_an_error() -> None:
    closed: list[int] = []
    tracker = trackers.Tracker(lambda values, step: None, lambda: closed.append(1))
    with pytest.raises(RuntimeError, match="stop"), tracker:
        raise RuntimeError("stop")
    tracker.close()
    assert closed == [1]


def test_values() -> None:
    pruner = dataprune.rs2(100, keep=0.3, epochs=4)
    assert trackers.values(pruner) == {"never_seen": 100.0}
    for epoch in range(2):
        for index in pruner.batches(epoch, 10):
            pruner.update(index, torch.rand(len(index)))
    values = trackers.values(pruner, samples=60, loss=0.5, nothing=None)
    stats = pruner.stats()
    assert values == {
        "kept": 0.3,
        "overlap": stats["overlap"],
        "never_seen": float(stats["never_seen"]),
        "samples_trained": 60.0,
        "samples_saved": pytest.approx(1 - 60 / 200),
        "loss": 0.5,
    }


# -- the command line --------------------------------------------------------------------------------------------------


class Noting:
    """Trackers that are lists, in place of TensorBoard's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.logged: list[int] = []
        monkeypatch.setattr(trackers, "_package", lambda name: None)
        monkeypatch.setattr(trackers, "_of_run", self.make)

    def make(self, name: str, out: Path, config: dict[str, Any]) -> trackers.Tracker:
        return trackers.Tracker(lambda values, step: self.logged.append(int(values["epoch"])))


class Stop(Exception):
    """What interrupts a run."""


def follow(out: Path, names: str = "tensorboard", *, stop: int | None = None, **changes: Any) -> None:
    with trackers.following(names, out) as catch_up:

        def on_epoch(model: Any, line: EpochRecord) -> None:
            catch_up()
            if line.epoch == stop:
                raise Stop

        run(tiny.settings(epochs=6, **changes), out, data=tiny.data(), on_epoch=on_epoch)
        catch_up()


@pytest.mark.parametrize("every", [0, 4])  # no checkpoint before the interruption, or one in an epoch before it
@pytest.mark.parametrize("stop", [0, 2, 5])
def test_an_interrupted_run_logs_every_epoch_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, stop: int
) -> None:
    noting = Noting(monkeypatch)
    with pytest.raises(Stop):
        follow(tmp_path / "run", stop=stop, checkpoint_every=every)
    assert noting.logged == list(range(stop + 1))
    follow(tmp_path / "run", checkpoint_every=every)
    assert noting.logged == list(range(6))
    follow(tmp_path / "run")  # finished
    assert noting.logged == list(range(6))


def test_a_tracker_that_comes_later_gets_all_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noting = Noting(monkeypatch)
    with pytest.raises(Stop):
        follow(tmp_path / "run", "", stop=3, checkpoint_every=1)
    assert noting.logged == []
    follow(tmp_path / "run", "tensorboard")
    assert noting.logged == list(range(6))
    follow(tmp_path / "run", "tensorboard, mlflow")
    assert noting.logged == [*range(6), *range(6)]
    assert json.loads((tmp_path / "run" / "tracked.json").read_text()) == {"tensorboard": 6, "mlflow": 6}


def test_tracking_does_not_change_what_a_run_is(tmp_path: Path) -> None:
    assert tiny.settings(track="tensorboard").key() == tiny.settings().key()


def test_an_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tensorboard'"), trackers.following("tensorbord", tmp_path):
        pass


@pytest.mark.slow
def test_train_with_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    pytest.importorskip("sklearn")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    call = ["--epochs", "4", "--model", "mlp", "--train-size", "320", "--keep", "0.3", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "dataprune", "train", *call, "--track", "tensorboard", "--out", "run", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    curves = scalars(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in curves["loss"]] == [line["steps"] for line in history] and len(history) == 4
    assert curves["reached_keep"] == [(line["steps"], pytest.approx(line["reached_keep"])) for line in history]
    assert json.loads(done.stdout)["samples"] == sum(line["samples"] for line in history)
