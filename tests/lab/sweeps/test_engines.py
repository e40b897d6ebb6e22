"""Runs side by side: the records of runs one after another, whatever fails or is interrupted on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import tiny
import torch

import dataprune
from dataprune import files
from dataprune.errors import CheckpointError, UsageError
from dataprune.lab.sweeps import engines
from dataprune.lab.sweeps.compare import Comparison
from dataprune.lab.sweeps.engine_ray import on_ray, train
from dataprune.lab.sweeps.engines import Job, local, perform, processes, side_by_side
from dataprune.lab.sweeps.sweep import carry_out
from dataprune.lab.training import run as training
from dataprune.lab.training.run_folder import Environment, RunRecord

ROOT = Path(dataprune.__file__).parents[1]
CHANGING = {"seconds", "train_seconds", "select_seconds", "evaluate_seconds", "scoring_seconds", "machine"}
CHANGING |= {"speedup", "total_speedup"}
RECORD = RunRecord(
    method="", seed=0, accuracy=None, val_accuracy=None, samples=0, steps=0, seconds=0.0, train_seconds=0.0,
    select_seconds=0.0, recalibrate_seconds=0.0, evaluate_seconds=0.0, reached_keep=1.0, epochs=0, train_samples=0,
    test_samples=0, note="", parameters=0, world_size=1, machine=Environment(),
)  # fmt: skip


def comparison(**changes: Any) -> Comparison:
    settings = tiny.settings(model="mlp", epochs=4, val_fraction=0.2)
    given: dict[str, Any] = {"methods": ("full", "short", "el2n", "margin", "emp"), "seeds": (0, 1)}
    return Comparison(**({"settings": settings, "learning_rates": (0.01, 0.05)} | given | changes))


def comparable(value: Any) -> Any:
    """Without what no two calls share."""
    if isinstance(value, dict):
        return {name: comparable(item) for name, item in value.items() if name not in CHANGING}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def same_sweep(first: Path, second: Path) -> None:
    """The same files, and in them the same but for seconds and machine."""

    def names(out: Path) -> list[str]:
        return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())

    assert names(first) == names(second)
    for name in names(first):
        if name.endswith("/config.json"):
            first_config, second_config = (files.read_json(out / name) for out in (first, second))
            assert {**first_config, "selection": None} == {**second_config, "selection": None}
            where = [Path(config["selection"] or "none") for config in (first_config, second_config)]
            assert where[0].parts[-2:] == where[1].parts[-2:] and where[0].is_absolute() == where[1].is_absolute()
        elif name.endswith(".json"):
            assert comparable(files.read_json(first / name)) == comparable(files.read_json(second / name)), name
        elif name.endswith(("history.jsonl", "counts.safetensors", "model.safetensors")):
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def pids(out: Path) -> set[int]:
    return {files.read_json(path)["machine"]["process"] for path in out.glob("*/*/metrics.json")}


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_leave_what_one_leaves(tmp_path: Path) -> None:
    lines: list[tuple[str, int, int]] = []

    def report(method: str, seed: int, line: dict[str, Any]) -> None:
        lines.append((method, seed, line["epoch"]))

    alone = carry_out(comparison(), tmp_path / "one", data=tiny.data(val=80), report=report)
    expected, lines = sorted(lines), []
    parallel = carry_out(comparison(), tmp_path / "two", data=tiny.data(val=80), report=report, engine=processes(2))
    assert comparable(alone) == comparable(parallel) == comparable(files.read_json(tmp_path / "two" / "compare.json"))
    assert [(row["method"], row["seed"]) for row in parallel["runs"]] == [
        (row["method"], row["seed"]) for row in alone["runs"]
    ]
    same_sweep(tmp_path / "one", tmp_path / "two")
    assert sorted(lines) == expected
    assert pids(tmp_path / "one") == {os.getpid()} and len(pids(tmp_path / "two") - {os.getpid()}) == 2


class Held:
    """Jobs that end when the test says so."""

    def __init__(self) -> None:
        self.futures: dict[str, Future[RunRecord]] = {}

    def __call__(self, job: Job) -> Future[RunRecord]:
        assert job.arm not in self.futures, "started twice"
        self.futures[job.arm] = Future()
        if job.arm.startswith("bad"):
            self.futures[job.arm].set_exception(ZeroDivisionError("division"))
        else:
            self.futures[job.arm].set_result(replace(RECORD, method=job.arm))
        return self.futures[job.arm]


def steps(out: Path, *stages: tuple[str, ...]) -> engines.Steps:
    methods = []
    for names in stages:
        records = yield [Job(name, 3, tiny.settings(), out / name) for name in names]
        methods.append(tuple(record.method for record in records))
    return methods


def test_what_steps_share_runs_once_and_a_failure_waits_for_the_others(tmp_path: Path) -> None:
    every = [
        steps(tmp_path, ("bad one",), ("never",)),
        steps(tmp_path, ("scoring",), ("a", "b")),
        steps(tmp_path, ("scoring", "bad one")),
        steps(tmp_path),
        steps(tmp_path, ("scoring",), ("c",), ("a",)),
    ]
    start, results = Held(), {}
    with pytest.raises(RuntimeError, match=r"bad one, seed 3: ZeroDivisionError\('division'\)"):
        for position, result in side_by_side(every, start, 1, None):
            results[position] = result
    assert results == {1: [("scoring",), ("a", "b")], 3: [], 4: [("scoring",), ("c",), ("a",)]}
    assert sorted(start.futures) == ["a", "b", "bad one", "c", "scoring"]


def test_a_damaged_record_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "metrics.json").write_text('{"method": "em')
    every = [steps(tmp_path, ("damaged",), ("never",)), steps(tmp_path, ("scoring",), ("a",))]
    results = []
    with pytest.raises(CheckpointError, match=r"damaged, seed 3: .*metrics\.json is damaged"):
        results.extend(result for _, result in side_by_side(every, Held(), 2, None))
    assert results == [[("scoring",), ("a",)]]


def test_no_more_run_at_once_than_may(tmp_path: Path) -> None:
    waiting: list[Future[RunRecord]] = []
    most = []

    def start(job: Job) -> Future[RunRecord]:
        waiting.append(Future())
        most.append(sum(not future.done() for future in waiting))
        if len(waiting) % 3 == 0:  # three run, then all of them end
            for future in waiting:
                if not future.done():
                    future.set_result(RECORD)
        return waiting[-1]

    every = [steps(tmp_path, (str(number),)) for number in range(9)]
    assert len(dict(side_by_side(every, start, 3, None))) == 9
    assert max(most) == 3


def call(*arguments: Any, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
    quick = ["--model", "mlp", "--train-size", "320", "--keep", "0.3", "--device", "cpu", "--seeds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, "-m", "dataprune", "compare", *quick, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("side", [("--jobs", 2), ("--engine", "ray", "--jobs", 2)])
def test_a_failing_run_is_named_and_stops_no_other(side: tuple, tmp_path: Path) -> None:
    if "ray" in side:
        pytest.importorskip("ray")
    folder = tmp_path / "out" / "runs" / "full-seed0"
    folder.mkdir(parents=True)
    (folder / "history.jsonl").mkdir()  # a folder where a file is to be written
    done = call("--epochs", 4, "--methods", "full,rs2", *side, "--out", tmp_path / "out")
    out, err = done.communicate(timeout=120)
    assert done.returncode == 1 and out == "", err
    lines = [line for line in err.splitlines() if not line.startswith("epoch ")]  # progress, where it is slow
    assert len(lines) == 1 and lines[0].startswith("error: full, seed 0: ") and "history.jsonl" in lines[0], err
    rows = files.read_json(tmp_path / "out" / "compare.json")["runs"]
    assert [(row["method"], row["seed"]) for row in rows] == [("rs2", 0), ("full", 1), ("rs2", 1)]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("side", [("--jobs", 2), ("--engine", "ray")])
def test_an_interrupted_sweep_loses_nothing_that_was_finished(side: tuple, tmp_path: Path) -> None:
    if "ray" in side:
        pytest.importorskip("ray")
    given = ("--epochs", 60, "--methods", "short,rs2,full", *side, "--out", tmp_path / "out")
    running = call(*given, start_new_session=True)
    compared = tmp_path / "out" / "compare.json"
    while not compared.exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    out, err = running.communicate(timeout=60)
    lines = [line for line in err.splitlines() if ".cc:" not in line]  # Ray's core may say what it lost
    assert running.returncode == 130 and out == "" and len(lines) == 1 and lines[0].startswith("interrupted: "), err
    finished = {path: path.read_bytes() for path in tmp_path.glob("out/runs/*/metrics.json")}
    assert 1 <= len(files.read_json(compared)["runs"]) <= len(finished) < 6
    left = list(tmp_path.glob("out/*/**/.*"))
    if "ray" in side:  # which kills its workers: what they were writing is left to the next writer
        left = [path for path in left if path.suffix != ".part"]
    assert all(path.name == ".lock" and not (path.parent / "metrics.json").exists() for path in left), left
    again = call(*given)
    out, err = again.communicate(timeout=120)
    lines = [line for line in err.splitlines() if not line.startswith("epoch ")]  # progress, where it is slow
    assert again.returncode == 0 and not lines, err
    for path, content in finished.items():
        assert path.read_bytes() == content
    assert len(files.read_json(compared)["runs"]) == 6 and not list(tmp_path.rglob("*.part"))


def terminated_while_it_writes(folder: Path, data: Path) -> None:
    def writing(job: Any, data: Any) -> None:
        files.write_text(folder / "file", "text")

    def terminated(descriptor: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    engines._begin(str(data), 1)
    engines.perform, os.fsync = writing, terminated  # type: ignore[assignment]
    engines._work(cast(engines.Job, None))


def test_a_terminated_worker_removes_what_it_was_writing(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "data.pt")
    given = (tmp_path / "out", tmp_path / "data.pt")
    given[0].mkdir()
    worker = multiprocessing.get_context("spawn").Process(target=terminated_while_it_writes, args=given)
    worker.start()
    worker.join()
    assert worker.exitcode == 128 + signal.SIGTERM and not list(given[0].iterdir())


@pytest.mark.slow
@pytest.mark.ddp
def test_terminated_processes_leave_no_data(tmp_path: Path) -> None:
    """SIGTERM, as a scheduler sends it, is no reason to leave the data set in the temporary folder."""
    (tmp_path / "temporary").mkdir()
    given = ("--epochs", 2000, "--methods", "short,rs2", "--jobs", 2, "--out", tmp_path / "out")
    environment = {"TMPDIR": str(tmp_path / "temporary")}
    running = call(*given, start_new_session=True, env=environment)
    while len(list(tmp_path.glob("out/runs/*/history.jsonl"))) < 2:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    assert list(tmp_path.glob("temporary/*/data.pt"))
    running.terminate()
    assert running.wait(60) == 128 + signal.SIGTERM and not list(tmp_path.glob("temporary/*/*.pt"))
    assert running.communicate() == ("", "")


@pytest.mark.slow
@pytest.mark.ddp
def test_the_same_command_twice_and_another_beside(tmp_path: Path) -> None:
    methods = ("rs2,loss", "rs2,loss", "rs2,emp")
    calls = [call("--epochs", 6, "--methods", names, "--out", tmp_path / "out") for names in methods]
    for running in calls:
        _, err = running.communicate(timeout=120)
        assert running.returncode == 0 and "error" not in err, err
    rows = files.read_json(tmp_path / "out" / "compare.json")["runs"]
    assert sorted((row["method"], row["seed"]) for row in rows) == [
        (name, seed) for name in ("emp", "loss", "rs2") for seed in (0, 1)
    ]
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.glob("out/runs/*/checkpoint.pt"))


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the processes of a session from /proc")
def test_the_processes_of_a_killed_sweep_end(tmp_path: Path) -> None:
    def alive() -> set[int]:
        pids_alive = set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:  # ended meanwhile
                continue
            if int(session) == running.pid and state != "Z":
                pids_alive.add(int(stat.parent.name))
        return pids_alive

    given = ("--epochs", 2000, "--methods", "short,rs2", "--jobs", 2, "--out", tmp_path / "out")
    running = call(*given, start_new_session=True)
    while len(list(tmp_path.glob("out/runs/*/history.jsonl"))) < 2:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    assert len(alive()) >= 3  # the one that drives, and two that train
    running.kill()
    running.communicate(timeout=60)  # until the last of them has closed its output
    until = time.monotonic() + 60
    while alive():
        assert time.monotonic() < until, alive()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.ddp
def test_a_ray_sweep_equals_the_local_one(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    methods = ("--methods", "full,short,el2n,k_center,emp", "--tune-lr", "0.01,0.05", "--val-fraction", "0.2")
    given = ("--epochs", 6, *methods, "--json")
    results = []
    for name, more in (("one", ()), ("two", ("--engine", "ray"))):
        done = call(*given, *more, "--out", name, cwd=tmp_path)  # a relative folder, for workers that are elsewhere
        out, err = done.communicate(timeout=240)
        assert done.returncode == 0, err
        results.append(json.loads(out))
    assert comparable(results[0]) == comparable(results[1])
    same_sweep(tmp_path / "one", tmp_path / "two")
    assert len(pids(tmp_path / "one")) == 1 and len(pids(tmp_path / "two")) >= 2


def test_a_worker_that_does_not_see_the_folder_sends_its_files(tmp_path: Path) -> None:
    data, sweep = tiny.data(), comparison(methods=("rs2", "el2n"), seeds=(0,), learning_rates=())
    carry_out(sweep, tmp_path / "sweep", data=data)
    folder, coreset = (tmp_path / "sweep" / name for name in ("runs/el2n-seed0", "coresets/el2n-seed0.safetensors"))
    settings = sweep.run_settings("el2n", 0, 400, coreset)
    given = {"coreset": coreset.read_bytes()}
    coreset.unlink()  # it is not where the worker is
    job = Job("el2n", 0, settings, tmp_path / "there")
    done = train(job, data, given, str(tmp_path / "no such mark"))
    assert not job.out.exists()
    assert set(done.files) == {path.name for path in folder.iterdir()}
    assert done.files["history.jsonl"] == (folder / "history.jsonl").read_bytes()
    assert comparable(done.record.as_dict()) == comparable(files.read_json(folder / "metrics.json"))
    (tmp_path / "mark").touch()
    seen = train(job, data, given, str(tmp_path / "mark"))
    assert seen.files == {} and (job.out / "metrics.json").exists()
    assert comparable(seen.record.as_dict()) == comparable(done.record.as_dict())


def test_a_worker_is_sent_the_weights_that_it_goes_on_from(tmp_path: Path) -> None:
    data, settings = tiny.data(), tiny.settings(method="full", epochs=2)
    training.run(settings, tmp_path / "first", data=data)
    weights = tmp_path / "first/model.safetensors"
    job = Job("full", 0, replace(settings, seed=1), tmp_path / "next", weights=weights)
    wanted = perform(job, data)
    shutil.rmtree(job.out)
    given = {"weights": weights.read_bytes()}
    weights.unlink()
    assert comparable(train(job, data, given, str(tmp_path / "no such mark")).record.as_dict()) == comparable(
        wanted.as_dict()
    )
    with pytest.raises(UsageError, match="did not save its weights"):
        perform(job, data)


@pytest.mark.slow
def test_pre_training_and_fine_tuning_side_by_side(tmp_path: Path) -> None:
    settings = tiny.settings(task="contrastive", method="rs2", optimizer="adam", lr=1e-3, dim=8, shift=0, flip=False)
    sweep = Comparison(settings, methods=("short", "rs2"), seeds=(0, 1), finetune_epochs=1)
    first = carry_out(sweep, tmp_path / "one", data=tiny.data())
    second = carry_out(sweep, tmp_path / "two", data=tiny.data(), engine=processes(2))
    assert first["untrained"] == second["untrained"] and len(first["untrained"]) == 2
    assert [row["finetuned_accuracy"] for row in first["runs"]] == [row["finetuned_accuracy"] for row in second["runs"]]


def test_engines_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused"):
        carry_out(comparison(), tmp_path, data=tiny.data(val=80), engine=on_ray("127.0.0.1:1"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for engine, option in ((processes(2), "--jobs"), (on_ray(), "--engine ray")):
        with pytest.raises(UsageError, match=f"{option} runs .* start without torchrun"):
            carry_out(comparison(), tmp_path, data=tiny.data(val=80), engine=engine)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install -c constraints.txt -e '\.\[ray\]'"):
        carry_out(comparison(), tmp_path, data=tiny.data(val=80), engine=on_ray())


def test_one_after_another_names_what_failed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    training.run(tiny.settings(method="full", model="mlp"), out, data=tiny.data())
    with (
        local(tiny.settings(), tiny.data(), None) as drive,
        pytest.raises(UsageError, match=r"rs2, seed 0: .*other settings"),
    ):
        list(drive([iter_of(Job("rs2", 0, tiny.settings(method="rs2", model="mlp"), out))]))


def iter_of(job: Job) -> engines.Steps:
    return (yield [job])
