"""Progress of training: lines off a terminal, a bar on one."""

from __future__ import annotations

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
            shown.run_epoch("emp", 0, LINE)
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


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress.training_progress(1) as shown:
        shown.epoch(LINE)
    assert capsys.readouterr() == ("", "")
