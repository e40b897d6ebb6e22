"""Progress of training: lines off a terminal, a bar on one."""

from __future__ import annotations

import contextlib
import os
import pty
import re
from typing import Any

import pytest
from command_line import QUICK, call

from dataprune.cli import progress

LINE = {"epoch": 0, "samples": 320, "loss": 0.5, "train_accuracy": 0.8, "val_accuracy": 0.75}


def test_a_single_run_prints_a_line_an_epoch_off_a_terminal() -> None:
    lines = call("train", *QUICK).stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"epoch {epoch}/4" for epoch in (1, 2, 3, 4)]
    assert "loss" in lines[0] and "train accuracy" in lines[0] and lines[0].endswith("320 samples")
    assert call("train", *QUICK, "--seed", 1, "--json").stderr == ""


def test_runs_of_a_comparison_share_the_lines(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    now = iter((0.0, 1.0, 40.0, 40.0, 41.0, 41.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.training_progress(3, several=True) as shown:
        for _ in range(3):
            shown("emp", 0, LINE)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 2/3: emp seed 0, loss 0.500, train accuracy 80.0 %, val. accuracy 75.0 %, 320 samples",
        "epoch 3/3: emp seed 0, loss 0.500, train accuracy 80.0 %, val. accuracy 75.0 %, 320 samples",
    ]


def test_the_bar_moves_in_steps_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress.Console, "is_terminal", True)
    with progress.training_progress(2) as shown:
        bar = shown._bar
        assert bar is not None
        shown.step(1, 2, 0.7)
        assert bar.tasks[0].completed == 0.5 and bar.tasks[0].fields["text"] == "loss 0.700"
        shown.epoch(LINE)
        assert bar.tasks[0].completed == 1 and "train accuracy 80.0 %" in bar.tasks[0].fields["text"]
        shown.epoch({**LINE, "epoch": 1, "loss": None})
        assert bar.tasks[0].completed == 2
    assert "epoch 1/2:" not in capsys.readouterr().err


def test_the_bar_of_a_sweep_moves_in_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.Console, "is_terminal", True)
    shown: list[tuple[float, str]] = []
    monkeypatch.setattr(
        progress.Progress, "update", lambda self, task, completed, text: shown.append((completed, text))
    )
    assert call("compare", *QUICK, "--methods", "rs2,short", "--seeds", 1, "--json").exit_code == 0
    assert shown[0] == (0.1, "rs2 seed 0") and shown[9] == (1.0, "rs2 seed 0")  # an epoch of ten steps
    completed, text = shown[10]
    assert completed == 1 and text.startswith("rs2 seed 0, loss ") and text.endswith(" %, 320 samples")
    completed, text = shown[11]
    assert completed == pytest.approx(1 + 1 / 3) and re.fullmatch(r"rs2 seed 0, loss \S+, train accuracy \S+ %", text)
    assert [done for done, _ in shown] == sorted(done for done, _ in shown) and shown[-1][0] == 6  # of `short` two
    assert next(text for done, text in shown if done > 4) == "short seed 0"  # of which nothing is known yet


def read_terminal(controller: int) -> str:
    """What was written to the other end of a pseudo-terminal, which is closed."""
    text = b""
    with contextlib.suppress(OSError):  # at the end
        while part := os.read(controller, 1 << 16):
            text += part
    os.close(controller)
    return text.decode()


def test_a_terminal_shows_steps_loss_and_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with open(terminal, "w") as stream, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        with progress.training_progress(2) as shown:
            shown.epoch(LINE)
            shown.step(3, 10, 0.7)
            assert shown._bar is not None
            shown._bar.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read_terminal(controller))
    assert "1.3/2 epochs loss 0.700, train accuracy 80.0 %, val. accuracy 75.0 %" in text


def test_training_reports_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int, float | None]] = []
    monkeypatch.setattr(progress.TrainingProgress, "step", lambda self, *report: steps.append(report))
    assert call("train", *QUICK, "--json").exit_code == 0
    pruned = [(step, 3) for step in (1, 2, 3)]
    assert [report[:2] for report in steps] == [*((step, 10) for step in range(1, 11)), *pruned, *pruned, *pruned]
    assert steps[0][2] is None and all(loss is not None for _, _, loss in steps[10:])


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress.training_progress(1) as shown:
        shown.epoch(LINE)
    assert capsys.readouterr() == ("", "")
