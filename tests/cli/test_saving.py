"""dataprune saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import call, fails

from dataprune.errors import UsageError
from dataprune.lab.sweeps import saving as sweeps

QUICK = (
    *("saving", "--model", "mlp", "--epochs", "4", "--train-size", "320", "--test-size", "100", "--lr", "0.05"),
    *("--data", "digits", "--device", "cpu", "--seeds", "2", "--max-seeds", "2", "--budgets", "0.5,0.8"),
)


def test_saving_prints_a_table_or_json(tmp_path: Path) -> None:
    arguments = [*QUICK, "--margin", 9, "--longer", 0, "--methods", "short,memory", "--out", tmp_path / "out"]
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "…" not in result.stdout
    lines = result.stdout.splitlines()
    assert any(line.startswith("On this data `memory` ") or line.startswith("Not told for `memory`") for line in lines)
    assert any(line.startswith("Whether full has converged was not tried (--longer)") for line in lines)
    assert lines[-1] == f"results: {tmp_path / 'out/saving.json'}, figure: {tmp_path / 'out/saving.svg'}"
    as_json = call(*arguments, "--json")
    content = json.loads(as_json.stdout)
    assert content == json.loads((tmp_path / "out/saving.json").read_text()) and as_json.stderr == ""
    assert content["margin"] == 9
    assert [line["method"] for line in content["saving"]] == ["short", "memory"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".sweep.lock", "runs", "saving.json", "saving.png", "saving.svg", "sweep.json"}


def planned(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> sweeps.Saving:
    """The sweep that a call makes."""
    made: list[sweeps.Saving] = []

    def stop(saving: sweeps.Saving, *arguments: Any, **more: Any) -> None:
        made.append(saving)
        raise UsageError("stopped")

    monkeypatch.setattr(sweeps, "until_settled", stop)
    fails(2, "stopped", *arguments)
    return made[0]


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sweep = planned(monkeypatch, "saving")
    assert sweep.methods == ["short", "rs2", "learnability"] and sweep.grid(1000) == list(sweeps.GRID)
    assert (sweep.seeds, sweep.most, sweep.margin, sweep.longer) == (3, 9, 0.3, 1.5)
    config = tmp_path / "saving.yaml"
    config.write_text("methods: [loss, rs2]\nbudgets: [0.3, 0.6]\nseeds: 4\n")
    sweep = planned(monkeypatch, "saving", "--config", config)
    assert (sweep.methods, sweep.budgets, sweep.seeds, sweep.most) == (["loss", "rs2"], (0.3, 0.6), 4, 12)
    contrastive = planned(monkeypatch, "saving", "--task", "contrastive", "--data", "digits")
    assert contrastive.methods == ["short", "rs2", "emp_contrastive"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--margin", "0.003"), "if a share of 1 was meant, give --margin 0.3"),
        (("--budgets", "0.5,1.5"), "--budgets are shares of full's steps in (0, 1], got 1.5"),
        (("--budgets", "half"), "--budgets takes comma-separated numbers, got 'half'"),
        (("--methods", "rs2,rs2"), "method rs2 is named twice"),
        (("--seeds", "1"), "give --seeds 2 or more"),
        (("--budgets", "0.1,0.5"), "budget 0.1 of 4 epochs is used up by 1 full epochs"),
    ],
)
def test_bad_input_is_one_line(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    fails(2, message, *QUICK, *options, "--out", tmp_path / "out")
