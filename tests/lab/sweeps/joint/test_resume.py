"""Grids go on after any interruption, and grow; what was damaged is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_joint import grid

from dataprune import Selection, files
from dataprune.dynamics import Recorder, load_scores
from dataprune.errors import CheckpointError, UsageError
from dataprune.lab.report.joint import check_whole, missing
from dataprune.lab.sweeps.sweep import carry_out
from dataprune.lab.training import run as training
from dataprune.lab.training import run_folder
from dataprune.lab.training.tasks.images import Classification


class Interrupted:
    """Raises KeyboardInterrupt at one call of a function, once."""

    def __init__(self, function: Callable[..., Any], at: int):
        self.function, self.left = function, at

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*args, **more)


INTERRUPTIONS = [  # an owner, a function's name, and the call that is interrupted
    (training._Run, "_train_step", 230),
    (files, "write_bytes", 25),
    (Classification, "validate", 4),
    *(
        pytest.param(*interruption, marks=pytest.mark.slow)
        for interruption in (
            *((training._Run, "_train_step", at) for at in (1, 30, 85, 110, 145, 300)),
            *((files, "write_bytes", at) for at in (1, 2, 4, 9, 12, 17, 40, 60, 77)),
            *((Classification, "validate", at) for at in (1, 9)),
            (Recorder, "scores", 1),
            (run_folder, "save_scores", 1),
            (Path, "unlink", 3),
            (Selection, "save", 2),
        )
    ),
]


QUICK: dict[str, Any] = {"epochs": 1, "score_epochs": 2, "finetune_epochs": 1}
SMALL: dict[str, Any] = {**QUICK, "ratios": (0.5,), "amounts": (0.6,)}
RESUMED: dict[str, Any] = {"ratios": (0.2,), "amounts": (0.0, 0.6), "checkpoint_every": 7}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    carry_out(grid(**RESUMED), out, data=tiny.data())
    return out


@pytest.mark.parametrize(("owner", "name", "at"), INTERRUPTIONS)
def test_an_interrupted_grid_goes_on(
    owner: Any, name: str, at: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = getattr(owner, name)
    stop = Interrupted(function, at)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        bound = (lambda self, *args, **more: stop(self, *args, **more)) if isinstance(owner, type) else stop
        patch.setattr(owner, name, bound)
        carry_out(grid(**RESUMED), tmp_path, data=tiny.data())
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*/metrics.json")}
    carry_out(grid(**RESUMED), tmp_path, data=tiny.data())
    assert (tmp_path / "joint.json").read_text() == (whole / "joint.json").read_text()
    for path, content in before.items():
        assert path.read_bytes() == content  # what was finished was not made again
    columns = [load_scores(next((out / "scoring/seed0").glob("scores.*"))).scores for out in (tmp_path, whole)]
    assert columns[0].keys() == columns[1].keys()
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.name != "model.safetensors"}
    assert names <= {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}


def test_an_interruption_loses_at_most_the_running_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, step = grid(ratios=(0.5,)), training._Run._train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop = Interrupted(step, 350)
        patch.setattr(training._Run, "_train_step", lambda self, *args: stop(self, *args))
        carry_out(sweep, tmp_path, data=tiny.data())
    result = files.read_json(tmp_path / "joint.json")
    done = len(list(tmp_path.glob("cells/*/cell.json")))
    assert len(result["cells"]) == done > 2
    gaps = missing(result)
    assert len(gaps) == 8 - done and gaps[-1] == "random ratio 0.5 amount 0.6 seed 0"
    with pytest.raises(UsageError, match=rf"^{8 - done} of 8 cells are missing \(.* \.\.\.\): run the command again"):
        check_whole(result)
    made: list[str] = []
    carry_out(sweep, tmp_path, data=tiny.data(), report=lambda arm, seed, line: made.append(arm))
    cells = {name for name in made if "amount" in name}
    assert len(cells) == 8 - done


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a grid of one cell an arm; tests leave it as it is."""
    out = tmp_path_factory.mktemp("small")
    carry_out(grid(**SMALL), out, data=tiny.data())
    return out


@pytest.mark.slow
def test_a_grid_grows_without_doing_anything_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tiny.data(), Path(shutil.copytree(small, tmp_path / "grown"))
    before = files.read_json(out / "joint.json")
    made: set[str] = set()
    larger = grid(**QUICK, seeds=(0, 1))
    wide = carry_out(larger, out, data=data, report=lambda arm, seed, line: made.add(f"{arm}, {seed}"))
    assert all(row in wide["cells"] for row in before["cells"])
    assert "base, 0" not in made and "base-amount0, 0" in made and "base, 1" in made
    assert "base-amount0.6, 0" not in made and "scoring, 0" not in made
    monkeypatch.setattr(training, "_Run", None)  # nothing is left to train
    assert carry_out(larger, out, data=data) == wide
    assert carry_out(grid(**SMALL), out, data=data) == before


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"scope": "global"}, 'scope was "layer", now "global"'),
        ({"lr": 0.01}, "lr was 0.05, now 0.01; finetune_lr was 0.05, now 0.01"),
        ({"reinitialize": True}, "reinitialize was false, now true"),
        ({"finetune_epochs": 3}, "finetune_epochs was 1, now 3"),
        ({"data_methods": ("random",)}, 'data_side was "coresets", now "methods"'),
    ],
)
def test_another_grids_folder_is_refused(changes: dict, names: str, small: Path) -> None:
    result = files.read_json(small / "joint.json")
    with pytest.raises(UsageError, match=rf"holds another grid \({names}\): choose another --out"):
        carry_out(grid(**{**SMALL, **changes}), small, data=tiny.data())
    assert files.read_json(small / "joint.json") == result


def test_what_was_deleted_or_damaged_is_named(small: Path, tmp_path: Path) -> None:
    data, out = tiny.data(), Path(shutil.copytree(small, tmp_path / "damaged"))
    larger = grid(**{**SMALL, "amounts": (0.6, 0.3)})
    weights = out / "training/low-keep0.5-seed0/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(
        CheckpointError, match=r"low-keep0.5-amount0.3, seed 0: .*model.safetensors is missing or damaged"
    ):
        carry_out(larger, out, data=data)
    next((out / "scoring/seed0").glob("scores.*")).unlink()
    with pytest.raises(CheckpointError, match="holds 0 of 2 epochs: delete"):
        carry_out(larger, out, data=data)
