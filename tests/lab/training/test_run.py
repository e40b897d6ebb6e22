"""One run: what it trains, what it leaves, and that it resumes exactly where it was."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import random
import shutil
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from filelock import FileLock
from safetensors.torch import load_file

from dataprune import files, learning_rate
from dataprune.errors import CheckpointError, UsageError
from dataprune.lab.data.named import Data, Images
from dataprune.lab.models import build
from dataprune.lab.training import run as training
from dataprune.lab.training import run_folder, tasks
from dataprune.lab.training.epoch_history import EpochRecord
from dataprune.lab.training.run_folder import RunRecord
from dataprune.lab.training.settings import SCHEDULES, Settings
from dataprune.lab.training.tasks import images


class Stop(Exception):
    pass


class AsItems(torch.utils.data.Dataset):
    """The same images, but not held in memory as far as training knows."""

    def __init__(self, images: Images):
        self.images, self.labels = images, images.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return self.images[position]

    def subset(self, index: torch.Tensor) -> AsItems:
        return AsItems(self.images.subset(index))


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """module:function of a model with dropout."""
    (tmp_path / "own_model_of_a_test.py").write_text(
        "import math\nfrom torch import nn\n\n\ndef build(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 32), nn.BatchNorm1d(32), nn.ReLU(),\n"
        "                         nn.Dropout(0.5), nn.Linear(32, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "own_model_of_a_test:build"


def interrupted(settings: Settings, out: Path, data: Data, dice: random.Random, monkeypatch: pytest.MonkeyPatch) -> int:
    """Train to the end through exceptions inside random steps; how many there were."""
    step, stops = training._Run._train_step, 0
    while not (out / "metrics.json").exists():
        left = [dice.randint(1, 25)]

        def failing(self: Any, *batch: torch.Tensor, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Stop
            step(self, *batch)

        monkeypatch.setattr(training._Run, "_train_step", failing)
        try:
            training.run(settings, out, data=data)
        except Stop:
            stops += 1
    monkeypatch.setattr(training._Run, "_train_step", step)
    return stops


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "emp", "schedule": "one-cycle"},
        {"method": "infobatch", "optimizer": "adamw", "lr": 1e-3},
        {"method": "ucb", "optimizer": "lars", "option": ("every=2",), "recalibrate_bn": 64},
        {"method": "rs2", "steps": 30, "optimizer": "adam", "lr": 1e-3},
        {"method": "kakurenbo", "keep": 0.5, "steps": 40, "count_forwards": True},
        {"method": "repb", "keep": 0.6},
        {"method": "ies", "keep": 0.5, "epochs": 8},
    ],
)
def test_resumed_equals_uninterrupted(
    changes: dict, own_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(model=own_model, checkpoint_every=1, **changes)
    data = tiny.data(val=80)
    whole = training.run(settings, tmp_path / "whole", data=data)
    stops = interrupted(settings, tmp_path / "parts", data, random.Random(1), monkeypatch)
    assert stops >= 2
    tiny.same_end(tmp_path / "whole", tmp_path / "parts")
    parts = files.read_json(tmp_path / "parts" / "metrics.json")
    timed = {name for name in parts if "seconds" in name}
    expected = json.loads(json.dumps(whole.as_dict()))
    assert {n: v for n, v in parts.items() if n not in timed} == {n: v for n, v in expected.items() if n not in timed}


@pytest.mark.parametrize("changes", [{}, {"steps": 30}])
def test_a_stop_between_the_last_step_and_the_end_of_its_epoch(
    changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(checkpoint_every=1, **changes)
    whole = training.run(settings, tmp_path / "whole", data=tiny.data())
    close = training._Run._close
    with monkeypatch.context() as patch:

        def failing(self: Any, *epoch: Any) -> None:
            if self.step == whole.steps:
                raise Stop
            close(self, *epoch)

        patch.setattr(training._Run, "_close", failing)
        with pytest.raises(Stop):
            training.run(settings, tmp_path / "parts", data=tiny.data())
    assert training.run(settings, tmp_path / "parts", data=tiny.data()).samples == whole.samples
    tiny.same_end(tmp_path / "whole", tmp_path / "parts")


def test_files_of_a_finished_run(tmp_path: Path) -> None:
    settings, lines, models = tiny.settings(), [], set()

    def on_epoch(model: torch.nn.Module, line: EpochRecord) -> None:
        models.add(model)
        lines.append(line.as_dict())

    record = training.run(settings, tmp_path, data=tiny.data(val=80), on_epoch=on_epoch)
    assert len(models) == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "history.jsonl", "metrics.json", "model.safetensors", "selection_counts.safetensors",
        "trajectories.safetensors",
    }  # fmt: skip
    history = tiny.history(tmp_path)
    assert history == lines and [line["epoch"] for line in history] == [0, 1, 2, 3]
    assert [line["selected"] for line in history] == [320, 96, 96, 96]
    assert [line["samples"] for line in history] == [320, 96, 96, 96]
    assert [line["steps"] for line in history] == [20, 26, 32, 38]
    assert all(0 <= line["val_accuracy"] <= 1 for line in history)
    assert json.loads(json.dumps(record.as_dict())) == files.read_json(tmp_path / "metrics.json")
    assert record == RunRecord.of(record.as_dict())
    older = {name: value for name, value in record.as_dict().items() if name != "forwarded_samples"}
    assert RunRecord.of(older) == record  # a record from before forwarded samples were counted
    assert record.samples == 608 and record.steps == 38 and record.reached_keep == pytest.approx(0.3)
    assert record.seconds == record.train_seconds + record.select_seconds + record.recalibrate_seconds
    counts = load_file(tmp_path / "selection_counts.safetensors")
    assert counts["selected"].shape == (320,) and int(counts["selected"].long().sum()) == 608
    assert torch.equal(counts["selected"], counts["drawn"])  # `every` is 1: drawn anew in each epoch
    assert files.read_json(tmp_path / "config.json") == settings.as_dict()


def test_a_finished_run_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = training.run(tiny.settings(), tmp_path, data=tiny.data())
    monkeypatch.setattr(training, "_Run", None)
    assert training.run(tiny.settings(workers=2, checkpoint_every=3), tmp_path) == record


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    """Two would tear each other's files; the second finds the run finished."""
    settings, data, begun, go_on = tiny.settings(), tiny.data(), threading.Event(), threading.Event()

    def hold(model: torch.nn.Module, line: EpochRecord) -> None:
        begun.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor() as threads:
        first = threads.submit(training.run, settings, tmp_path, data=data, on_epoch=hold)
        assert begun.wait(60)
        threading.Timer(0.5, go_on.set).start()
        with pytest.warns(UserWarning, match="another process trains in .*: waiting"):
            second = training.run(settings, tmp_path, data=data)
    assert second == first.result()
    assert [line["epoch"] for line in tiny.history(tmp_path)] == list(range(settings.epochs))
    assert not (tmp_path / ".lock").exists()


def test_a_run_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*rest: Any, **more: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(run_folder.FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="without locks: nothing keeps a second process out"):
        assert training.run(tiny.settings(), tmp_path, data=tiny.data()).steps > 0


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_lock_without_flock_says_what_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*rest: Any) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    expected = r"without flock: the file \.lock is the lock.*delete it"
    with pytest.warns(UserWarning, match=expected), run_folder.claimed(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_the_learning_rate_follows_the_steps_really_taken(tmp_path: Path) -> None:
    settings = tiny.settings(method="rs2", epochs=8, lr=0.1, warmup=2)
    training.run(settings, tmp_path, data=tiny.data())
    history = tiny.history(tmp_path)
    steps = history[-1]["steps"]
    shape = learning_rate.warmed_up(learning_rate.cosine(), 0.05)
    for line in history:
        assert line["lr"] == pytest.approx(0.1 * shape((line["steps"] - 0.5) / steps), rel=1e-9)
    assert 0 < history[-1]["lr"] < 0.1 * 1e-3
    # over epochs it would have been at a tenth of its way after two of eight epochs, not at more than half
    assert history[1]["steps"] / steps > 0.5


def test_samples_only_forwarded_count_against_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = training._Run._close

    def forwarding(self: Any, epoch: int, selection: Any) -> None:
        close(self, epoch, selection)
        self.forwarded += 240 if epoch < 2 else 0

    monkeypatch.setattr(training._Run, "_close", forwarding)
    # epochs of 25, 7 and 7 steps of 16 samples; 240 forwarded samples cost as much as 80 trained ones, 5 steps
    settings = tiny.settings(epochs=5, steps=44, count_forwards=True, checkpoint_every=3)
    record = training.run(settings, tmp_path / "counted", data=tiny.data())
    assert record.forwarded_samples == 480 and record.steps == 34  # 25, 5, 7, 5 and 2
    shape = learning_rate.warmed_up(learning_rate.cosine(), 0.05)
    at = [24.5, 25 + 5 + 6.5, 25 + 5 + 7 + 5 + 1.5]  # the middle of each epoch's last step
    assert [line["lr"] for line in tiny.history(tmp_path / "counted")] == pytest.approx(
        [0.05 * shape(steps / 44) for steps in at]
    )
    tiny.check_resume(settings, tiny.data(), tmp_path, 31, monkeypatch)
    plain = training.run(replace(settings, count_forwards=False), tmp_path / "plain", data=tiny.data())
    assert plain.forwarded_samples == 480 and plain.steps == 44


def test_what_an_epoch_leaves_out_is_forwarded_and_counted(tmp_path: Path) -> None:
    settings = tiny.settings(method="ies", keep=0.5, epochs=4)
    record = training.run(settings, tmp_path / "all", data=tiny.data())
    assert record.forwarded_samples == 2 * 200  # of the second and third epoch: after the last nothing is selected
    assert record.samples == 400 + 3 * 192
    # 25 steps, 12 and 200 / 16 / 3; then one more, and none is left to forward for
    counted = replace(settings, steps=42, count_forwards=True)
    record = training.run(counted, tmp_path / "counted", data=tiny.data())
    assert record.forwarded_samples == 200 and record.steps == 37
    plain = training.run(replace(settings, steps=40), tmp_path / "plain", data=tiny.data())
    assert plain.forwarded_samples == 200 and plain.steps == 40
    training.run(tiny.settings(method="loss"), tmp_path / "loss", data=tiny.data())
    assert files.read_json(tmp_path / "loss" / "metrics.json")["forwarded_samples"] == 0


def test_forwarding_leaves_model_and_mode_alone(
    own_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = training._Run._forward_left_out
    seen = []

    def checked(self: Any, epoch: int) -> None:
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        forward(self, epoch)
        assert all(torch.equal(value, before[name]) for name, value in self.model.state_dict().items())
        seen.append(self.model.training)

    monkeypatch.setattr(training._Run, "_forward_left_out", checked)
    training.run(tiny.settings(model=own_model, method="ies", keep=0.5), tmp_path, data=tiny.data())
    assert seen == [True] * 4


def test_kakurenbo_raises_the_learning_rate_by_what_may_be_hidden(tmp_path: Path) -> None:
    for rate, factor in (("true", 2.0), ("false", 1.0)):
        changes = {"method": "kakurenbo", "keep": 0.5, "option": (f"rate={rate}",)}
        training.run(tiny.settings(schedule="constant", lr_warmup=0.0, **changes), tmp_path / rate, data=tiny.data())
        rates = [line["lr"] for line in tiny.history(tmp_path / rate)]
        assert rates == pytest.approx([0.05] + [0.05 * factor] * 3)


@pytest.mark.parametrize("method", ["infobatch", "emp"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_runs_its_course(method: str, schedule: str, tmp_path: Path) -> None:
    training.run(tiny.settings(method=method, schedule=schedule, model="mlp", epochs=6), tmp_path, data=tiny.data())
    rates = [line["lr"] / 0.05 for line in tiny.history(tmp_path)]
    last = {"cosine": 0, "one-cycle": 0, "step": 0.01, "linear": 0, "exponential": 0.01, "constant": 1}[schedule]
    assert rates[-1] == pytest.approx(last, abs=0.02)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adam", 1e-2), ("adamw", 1e-2), ("lars", 5.0)])
def test_every_optimizer_learns(optimizer: str, lr: float, tmp_path: Path) -> None:
    settings = tiny.settings(method="full", optimizer=optimizer, lr=lr, model="mlp", flip=False, shift=0)
    training.run(settings, tmp_path, data=tiny.data())
    losses = [line["loss"] for line in tiny.history(tmp_path)]
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize(("streamed", "workers"), [(False, 2), (True, 0), (True, 2)])
def test_streamed_data_trains_the_same(streamed: bool, workers: int, tmp_path: Path) -> None:
    data, settings = tiny.data(), tiny.settings(recalibrate_bn=64, method="ies")
    training.run(settings, tmp_path / "held", data=data)
    if streamed:
        data = data._replace(train=AsItems(data.train))  # type: ignore[arg-type]
    training.run(replace(settings, workers=workers), tmp_path / "streamed", data=data)
    tiny.same_end(tmp_path / "held", tmp_path / "streamed")


def test_label_smoothing_is_in_the_losses() -> None:
    logits, labels = torch.tensor([[2.0, 0.0, -1.0, 0.5], [0.0, 0.0, 3.0, 0.0]]), torch.tensor([0, 1])
    logs = logits.double().log_softmax(1).numpy()
    wanted = [-0.8 * row[label] - 0.2 * row.mean() for row, label in zip(logs, labels)]
    losses, _, right = tasks.of(tiny.settings(label_smoothing=0.2), tiny.data()).losses(logits, labels)
    assert losses.tolist() == pytest.approx(wanted) and right == 1


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        training.run(tiny.settings(seed=seed), tmp_path / name, data=tiny.data())
    tiny.same_end(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        tiny.same_end(tmp_path / "a", tmp_path / "c")


def test_methods_start_alike_and_see_the_same_first_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = training._Run._train_step, {}

    def watched(self: Any, index: torch.Tensor, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> None:
        if not self.history:
            first = [value.clone() for value in self.model.state_dict().values()] if not self.step else []
            seen.setdefault(self.settings.method, []).append((first, index.clone(), inputs[0].clone()))
        step(self, index, inputs, labels)

    monkeypatch.setattr(training._Run, "_train_step", watched)
    for method in ("full", "emp", "loss", "infobatch"):
        training.run(tiny.settings(method=method), tmp_path / method, data=tiny.data())
    full = seen.pop("full")
    for method, steps in seen.items():
        assert len(steps) == len(full) == 25, method
        for (first, index, inputs), (other, position, pixels) in zip(steps, full, strict=True):
            assert torch.equal(index, position) and torch.equal(inputs, pixels), method
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True)), method


def test_every_step_is_reported_and_the_loss_read_every_fifty(tmp_path: Path) -> None:
    calls: list[tuple[int, int, float | None]] = []
    settings = tiny.settings(batch_size=4)
    training.run(settings, tmp_path, data=tiny.data(), on_step=lambda *call: calls.append(call))
    assert [call[:2] for call in calls[:100]] == [(step, 100) for step in range(1, 101)]
    assert [call[:2] for call in calls[100:]] == 3 * [(step, 30) for step in range(1, 31)]
    losses, first = [call[2] for call in calls], tiny.history(tmp_path)[0]["loss"]
    assert losses[:49] == [None] * 49 and losses[49] is not None and set(losses[49:99]) == {losses[49]}
    assert losses[99] == pytest.approx(first) and set(losses[100:130]) == {first}


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    import numpy as np

    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    training.run(tiny.settings(workers=1), tmp_path, data=tiny.data(val=80))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


def test_recalibration_changes_running_statistics_alone(tmp_path: Path) -> None:
    data = tiny.data()
    plain = training.run(tiny.settings(), tmp_path / "plain", data=data)
    calibrated = training.run(tiny.settings(recalibrate_bn=128), tmp_path / "calibrated", data=data)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "calibrated"))
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert (tmp_path / "plain/history.jsonl").read_text() == (tmp_path / "calibrated/history.jsonl").read_text()
    assert plain.recalibrate_seconds == 0 < calibrated.recalibrate_seconds
    parts = ("train_seconds", "select_seconds", "recalibrate_seconds")
    assert calibrated.seconds == pytest.approx(sum(getattr(calibrated, part) for part in parts))


def test_writing_checkpoints_and_evaluating_are_not_on_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, write, evaluate = [0.0], run_folder.write_checkpoint, images.accuracy

    def slow(*arguments: Any) -> None:
        clock[0] += 1000
        write(*arguments)

    def slow_too(*arguments: Any, **more: Any) -> float:
        clock[0] += 100
        return evaluate(*arguments, **more)

    monkeypatch.setattr(run_folder, "write_checkpoint", slow)
    monkeypatch.setattr(images, "accuracy", slow_too)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    record = training.run(tiny.settings(checkpoint_every=10), tmp_path, data=tiny.data(val=80))
    assert record.seconds == 0 and record.evaluate_seconds == 600


@pytest.mark.parametrize("changes", [{"bf16": True}, {"channels_last": True}, {"bf16": True, "model": "resnet18"}])
def test_formats(changes: dict, tmp_path: Path) -> None:
    size = {"epochs": 1, "keep": 1.0} if "model" in changes else {}
    record = training.run(tiny.settings(**(changes | size)), tmp_path, data=tiny.data())
    assert math.isfinite(tiny.history(tmp_path)[-1]["loss"]) and 0 <= record.accuracy <= 1
    assert all(
        value.dtype in (torch.float32, torch.int64) for value in load_file(tmp_path / "model.safetensors").values()
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
def test_compiled_models_train_nearly_the_same(tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler here")
    for name, compile in (("plain", False), ("compiled", True)):
        training.run(tiny.settings(compile=compile, lr=0.01), tmp_path / name, data=tiny.data())
    plain, compiled = tiny.history(tmp_path / "plain"), tiny.history(tmp_path / "compiled")
    for line, other in zip(plain, compiled, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=0.02)
    assert (
        load_file(tmp_path / "plain/model.safetensors").keys()
        == load_file(tmp_path / "compiled/model.safetensors").keys()
    )


def test_a_balanced_option_balances(tmp_path: Path) -> None:
    data = tiny.data()
    settings = tiny.settings(method="loss", steps=26, option=("balance=true",), model="mlp")
    training.run(settings, tmp_path, data=data)
    selected = load_file(tmp_path / "selection_counts.safetensors")["selected"] > 1
    classes = torch.bincount(data.train.labels[selected], minlength=4)
    assert int(classes.sum()) == 120 and int(classes.max() - classes.min()) <= 1


def test_a_diverged_run_says_what_to_do(tmp_path: Path) -> None:
    for method in ("full", "rs2", "emp", "infobatch"):
        with pytest.raises(ValueError, match="lower the learning rate"):
            training.run(tiny.settings(method=method, lr=1e30, lr_warmup=0.0), tmp_path / method, data=tiny.data())
    with pytest.raises(ValueError, match="weights are NaN or infinite"):
        diverging = tiny.settings(lr=1e38, lr_warmup=0.0, steps=1, optimizer="sgd", weight_decay=100.0)
        training.run(diverging, tmp_path / "one", data=tiny.data())


def stopped(out: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Settings:
    """A run with a checkpoint, stopped in its second epoch."""
    settings = tiny.settings(checkpoint_every=5, **changes)
    step = training._Run._train_step

    def failing(self: Any, *batch: torch.Tensor) -> None:
        if self.step == 28:
            raise Stop
        step(self, *batch)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(training._Run, "_train_step", failing)
        training.run(settings, out, data=tiny.data())
    assert (out / "checkpoint.pt").exists()
    return settings


def test_a_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stopped(tmp_path, monkeypatch)
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    state = run_folder.read_checkpoint(path)
    dice = random.Random(0)
    flips = [(dice.randrange(len(content)), 1 << dice.randrange(8)) for _ in range(50)]
    flipped = [content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :] for at, bit in flips]
    for damaged in (content[: len(content) // 2], b"", content[:-100] + bytes(100), b"x" * 1000, *flipped):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"is damaged .*: delete it to start this run from its beginning"):
            training.run(settings, tmp_path, data=tiny.data())
    missing = {name: value for name, value in state.items() if name not in ("schema", "model")}
    wrong = {**state, "model": {**state["model"], "more": torch.zeros(1)}}
    for other in (missing, wrong):
        run_folder.write_checkpoint(path, other)
        with pytest.raises(CheckpointError, match="does not fit this run"):
            training.run(settings, tmp_path, data=tiny.data())
    torch.save({**state, "schema": 99}, path)
    with pytest.raises(CheckpointError, match="schema 99"):
        training.run(settings, tmp_path, data=tiny.data())
    path.write_bytes(content)
    assert training.run(settings, tmp_path, data=tiny.data()).epochs == 4


def test_a_damaged_record(tmp_path: Path) -> None:
    training.run(tiny.settings(), tmp_path, data=tiny.data())
    for name in ("metrics.json", "config.json"):
        whole = (tmp_path / name).read_text()
        for damaged in (whole[:40], "[]", *(["{}"] if name == "metrics.json" else [])):
            (tmp_path / name).write_text(damaged)
            with pytest.raises(CheckpointError, match=rf"{name} is damaged .*: delete it, and run again"):
                training.run(tiny.settings(), tmp_path, data=tiny.data())
        (tmp_path / name).write_text(whole)


def test_another_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stopped(tmp_path / "run", monkeypatch)
    with pytest.raises(UsageError, match=r"other settings \(lr, seed\): choose another --out"):
        training.run(replace(settings, lr=0.2, seed=1, workers=1), tmp_path / "run", data=tiny.data())
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        training.run(settings, tmp_path / "file", data=tiny.data())


def test_more_steps_than_the_epochs_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="raise --epochs"):
        training.run(tiny.settings(steps=10_000), tmp_path / "run", data=tiny.data())
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="counts against --steps"):
        tiny.settings(count_forwards=True)


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_full_disk_loses_nothing_that_was_written(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(checkpoint_every=15)
    training.run(settings, tmp_path / "whole", data=tiny.data())
    fsync, left = os.fsync, [after]

    def full(file: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write .*: No space left on device; what was written .* intact"):
            training.run(settings, out, data=tiny.data())
    assert not list(out.glob("*.part"))
    for path in out.glob("*.json"):
        json.loads(path.read_text())
    if after == 4:
        assert run_folder.read_checkpoint(out / "checkpoint.pt")["step"] == 15
    training.run(settings, out, data=tiny.data())
    tiny.same_end(tmp_path / "whole", out)


def test_the_model_of_a_user_is_built_with_shape_and_classes(own_model: str, tmp_path: Path) -> None:
    training.run(tiny.settings(model=own_model), tmp_path / "run", data=tiny.data())
    weights = load_file(tmp_path / "run/model.safetensors")
    assert weights["1.weight"].shape == (32, 64) and weights["5.weight"].shape == (4, 32)
    with pytest.raises(UsageError, match="did you mean 'small_cnn'"):
        training.run(tiny.settings(model="smal_cnn"), tmp_path / "none", data=tiny.data())
    assert set(build.MODELS) >= {"lenet", "mlp", "small_cnn", "resnet18", "resnet34", "resnet50"}


def ranked(rank: int, world_size: int, out: str, changes: dict) -> RunRecord:
    return training.run(tiny.settings(**changes), Path(out), data=tiny.data())


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_share_the_samples(pool: Any, tmp_path: Path) -> None:
    changes = {"batch_size": 8}
    records = pool.run(ranked, str(tmp_path / "two"), changes, world_size=2)
    assert records[0] == records[1] and records[0].world_size == 2
    alone = training.run(tiny.settings(batch_size=16), tmp_path / "one", data=tiny.data())
    for name in ("samples", "steps", "reached_keep"):
        assert getattr(records[0], name) == getattr(alone, name), name
    single, ranks = tiny.history(tmp_path / "one"), tiny.history(tmp_path / "two")
    assert single[0]["loss"] == pytest.approx(ranks[0]["loss"], rel=0.2)


@pytest.mark.slow
@pytest.mark.ddp
def test_one_rank_resumes_a_run_of_two(pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stopped(tmp_path, monkeypatch, epochs=6)
    before = tiny.history(tmp_path)
    records = pool.run(ranked, str(tmp_path), {"epochs": 6, "checkpoint_every": 5}, world_size=2)
    history = tiny.history(tmp_path)
    assert history[: len(before)] == before and [line["epoch"] for line in history] == list(range(6))
    assert records[0].samples == sum(line["samples"] for line in history) <= 400 * 2 + 120 * 4
    assert history[-1]["lr"] < 0.05 * settings.lr
    rates = [line["lr"] for line in history]
    assert rates == sorted(rates, reverse=True)


def waiting(rank: int, world_size: int, out: str) -> float:
    """When this rank was let in."""
    run_folder._PATIENCE = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with run_folder.claimed(Path(out)):
            return time.time()


@pytest.mark.slow
@pytest.mark.ddp
def test_all_ranks_wait_for_another_process(pool: Any, tmp_path: Path) -> None:
    lock, released = FileLock(tmp_path / ".lock", thread_local=False), []
    lock.acquire()
    timer = threading.Timer(1.5, lambda: (released.append(time.time()), lock.release()))
    timer.start()
    entered = pool.run(waiting, str(tmp_path), world_size=2)
    timer.join()
    assert min(entered) >= released[0]


def looked(rank: int, world_size: int, folders: list[str]) -> bool:
    return run_folder.finished(Path(folders[rank]), tiny.settings(model="mlp")) is not None


@pytest.mark.slow
@pytest.mark.ddp
def test_ranks_go_the_way_of_the_first(pool: Any, tmp_path: Path) -> None:
    """Another process may finish the run between their looks."""
    training.run(tiny.settings(model="mlp"), tmp_path / "done", data=tiny.data())
    folders = [str(tmp_path / "done"), str(tmp_path / "later")]
    assert pool.run(looked, folders[::-1], world_size=2) == [False, False]
    assert pool.run(looked, folders[:1] * 2, world_size=2) == [True, True]


@pytest.mark.parametrize(("threads", "used"), [(0, 1), (2, 2)])
def test_the_thread_count_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, used: int) -> None:
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(training._Run, "train", lambda *rest: seen.append(torch.get_num_threads()))
    training.run(tiny.settings(threads=threads), tmp_path, data=tiny.data())
    assert seen == [used] and torch.get_num_threads() == before


def test_what_a_kill_after_the_record_left_is_removed(tmp_path: Path) -> None:
    data, settings = tiny.data(), tiny.settings(model="mlp")
    record = training.run(settings, tmp_path, data=data)
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in ("checkpoint.pt", ".lock"):
        (tmp_path / name).write_bytes(b"")
    assert training.run(settings, tmp_path, data=data) == record
    assert sorted(path.name for path in tmp_path.iterdir()) == names
