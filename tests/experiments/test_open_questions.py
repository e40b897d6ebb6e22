"""The experiments on EMP's open questions, at a scale of seconds."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCRIPTS = ("emp_figure4", "emp_figure5", "emp_first_term", "open_questions")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; torch's number of threads is afterwards what it was."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield {name: importlib.import_module(name) for name in SCRIPTS}
        for name in SCRIPTS:
            patch.delitem(sys.modules, name, raising=False)
    torch.set_num_threads(threads)


def test_every_arm_is_trained_once_and_compared_within_seeds(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts["open_questions"]
    monkeypatch.setattr(script, "DATA", ("digits",))
    monkeypatch.setattr(script, "KEEPS", (0.5,))
    arguments = ["--seeds", "2", "--train-size", "300", "--epochs", "4", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["open_questions", *arguments])
    script.main()
    record = json.loads((tmp_path / "open_questions.json").read_text())
    assert len(record["points"]) == 2 * len(script.ARMS)
    assert {point["steps"] for point in record["points"]} == {2 + 1 + 1 + 1}  # whole batches of 128 of 300 and of 150
    lines = {point["run"]: point for point in record["points"]}
    differences = [
        100
        * (
            lines[f"digits keep 0.5 conv2 seed {seed}"]["accuracy"]
            - lines[f"digits keep 0.5 emp seed {seed}"]["accuracy"]
        )
        for seed in (0, 1)
    ]
    assert record["result"]["digits keep 0.5 conv2"]["minus_emp"][0] == pytest.approx(np.mean(differences), abs=0.006)
    before = (tmp_path / "runs.jsonl").read_text()
    script.main()
    assert (tmp_path / "runs.jsonl").read_text() == before


def test_first_terms_are_estimated_and_resumed(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    script = scripts["emp_first_term"]
    result = script.main("smoke", tmp_path)
    assert result["halves"]["repetitions"] == result["neighbours"]["repetitions"] == 2
    before = (tmp_path / "retrainings.jsonl").read_text()
    assert script.main("smoke", tmp_path) == result
    assert (tmp_path / "retrainings.jsonl").read_text() == before


def test_a_perfect_estimate_correlates_with_the_memory(scripts: dict[str, ModuleType]) -> None:
    rng = np.random.default_rng(0)
    memory, hardness, size = rng.normal(size=50), rng.uniform(5, 20, 50), 50
    table = hardness + 0.01 * rng.normal(size=(size, size)) + np.diag(memory)
    points = [{"run": f"without {i}", "distance": table[i].tolist()} for i in range(size)]
    judge = {
        "settings": {"left_out": list(range(size))},
        "points": [*points, {"run": "all", "distance": hardness.tolist()}],
    }
    lines = {
        f"{name} {i}": {"memory": (memory + 0.1 * rng.normal(size=size)).tolist(), "own": hardness.tolist()}
        for name in ("halves", "neighbours")
        for i in range(4)
    }
    result = scripts["emp_first_term"].analyse(lines, judge)
    assert result["memory_reliability"] > 0.99
    assert result["halves"]["with_memory"][0] > 0.98 < result["halves"]["with_itself"][0]
    assert abs(result["kept_term"]["with_memory"][0]) < 0.4
