"""The report of everything below a folder, and the result in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from dataprune.errors import UsageError
from dataprune.lab.report import page, records
from dataprune.lab.report.differences import sentence

RESULTS = Path(__file__).parents[3] / "experiments/results"


def result(seeds: int = 3, **accuracies: float) -> dict[str, Any]:
    """What compare.json holds: `full` trained 1,000 samples in 10 steps, the others a quarter."""
    size = {"full": (1000, 10)}
    runs = [
        {"method": name, "seed": seed, "accuracy": value + seed * 1e-4, "samples": size.get(name, (250, 3))[0],
         "steps": size.get(name, (250, 3))[1], "seconds": 1.0, "reached_keep": 0.2}
        for name, value in accuracies.items() for seed in range(seeds)
    ]  # fmt: skip
    summary = [
        {"method": name, "accuracy_mean": value, "accuracy_std": 1e-4, "samples": size.get(name, (250, 3))[0],
         "steps": 3, "seconds": 1.0}
        for name, value in accuracies.items()
    ]  # fmt: skip
    return {"data": "tiny", "model": "mlp", "keep": 0.2, "epochs": 5, "runs": runs, "summary": summary}


def written(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    written(tmp_path / "a/deep", "compare.json", result(full=0.9, rs2=0.8, emp=0.85))
    written(tmp_path / "a/deep/runs/emp-seed0", "config.json", {})  # of the comparison
    written(tmp_path / "b", "compare.json", result(full=0.9, rs2=0.8, emp=0.82))
    written(tmp_path / "unfinished", "config.json", {})
    written(tmp_path / "begun", "compare.json", result())
    written(tmp_path, "other.json", [1, 2])
    (tmp_path / "packed.json").write_text((RESULTS / "digits.json").read_text())
    return tmp_path


def test_everything_finished_below_a_folder_is_found(tree: Path) -> None:
    groups, left_out = records.groups(records.entries([tree]))
    assert [group.folder for group in groups] == [tree / "a/deep", tree / "b", tree / "packed.json"]
    assert left_out == [tree / "begun", tree / "unfinished"]
    with pytest.raises(UsageError, match=r"unfinished is not finished: repeat the command"):
        records.read([tree / "unfinished"])


def test_groups_have_names_and_a_table_across(tree: Path) -> None:
    page.write([tree / "a", tree / "b", tree / "unfinished"], tree / "out")
    text = (tree / "out/report.md").read_text()
    assert (
        "| tiny, mlp (deep) | emp | 85.00 ± 0.01 | +5.00 ± 0.00<br>higher | 90.00 ± 0.01 | – | 80.00 ± 0.01 |" in text
    )
    assert "## tiny, mlp: 5 epochs, keep 0.2, 3 seeds (b)" in text and "Left out, not finished" in text
    assert '<h2 id="tiny-mlp-5-epochs-keep-0-2-3-seeds-b">' in (tree / "out/report.html").read_text()


def test_a_grid_is_reported(tmp_path: Path) -> None:
    from dataprune.lab.report import joint

    *_, entry = records.entries([RESULTS / "joint_mnist.json"])
    part = joint.part(str(entry.folder), entry.result or {})
    assert "3 seeds (joint_mnist_lenet_rs2)" in part.title and "of 3 cells" in part.result and len(part.charts) == 4


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (result(full=0.9, rs2=0.8, short=0.79, emp=0.85, loss=0.7),
         "emp reaches 85.0 % test accuracy with 25 % of the samples of full training, 5.0 points above rs2 (a random "
         "subset in every epoch). Full training is 5.0 points higher."),
        (result(2, full=0.9, rs2=0.8, emp=0.85),
         "emp reaches 85.0 % test accuracy with 25 % of the samples of full training, 5.0 points above rs2 (a random "
         "subset in every epoch); two seeds are too few to test it. Full training is 5.0 points higher."),
        (result(emp=0.85), "emp reaches 85.0 % test accuracy."),
        (result(full=0.9, short=0.9, emp=0.8),
         "emp reaches 80.0 % test accuracy with 25 % of the samples of full training, 10.0 points below short (all "
         "data for as many steps). Full training is 10.0 points higher."),
        (result(full=0.9), "full reaches 90.0 % test accuracy."),
    ],
)  # fmt: skip
def test_the_result_in_a_sentence(made: dict[str, Any], wanted: str) -> None:
    assert sentence(made) == wanted
