"""The experiments on prompts for reinforcement learning, at a scale of seconds."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; torch's number of threads is afterwards what it was."""
    threads = torch.get_num_threads()
    names = ("emp_figure4", "prompts_simulation")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
    torch.set_num_threads(threads)


def test_skipping_saves_rollouts_in_the_simulation(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts["prompts_simulation"]
    monkeypatch.setattr(script, "PANELS", {"3,000 prompts": (3000, 6.0)})
    monkeypatch.setattr(script, "RATE", 0.05)
    monkeypatch.setattr(sys, "argv", ["prompts_simulation", "--seeds", "3", "--out", str(tmp_path)])
    script.main()
    record = json.loads((tmp_path / "prompts_simulation.json").read_text())
    assert len(record["points"]) == 3 * len(script.ARMS)
    result = record["result"]
    for arm in ("greso", "mopps"):
        mean, low, high = result[f"3,000 prompts, {arm}"]["to_uniform"]
        assert low < mean < high < 1
        assert result[f"3,000 prompts, {arm}"]["no_variance"] < result["3,000 prompts, uniform"]["no_variance"]
    filtered = result["3,000 prompts, filter_after"]
    assert filtered["steps"] < result["3,000 prompts, uniform"]["steps"]
    before = (tmp_path / "runs.jsonl").read_text()
    script.main()
    assert (tmp_path / "runs.jsonl").read_text() == before


def test_a_world_begins_at_its_success_and_learns_from_variance_alone(scripts: dict[str, ModuleType]) -> None:
    world = scripts["prompts_simulation"].World(2000, 3.0, seed=1)
    assert world.success() == pytest.approx(0.4, abs=1e-3)
    skill = world.skill
    world.train(torch.arange(4), torch.ones(4, 8))
    assert world.skill == skill and not world.own.any()
    world.train(torch.arange(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert world.skill > skill and world.own[:2].tolist() == [0.25, 0.0]
