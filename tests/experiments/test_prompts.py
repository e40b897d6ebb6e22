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
    names = ("emp_figure4", "prompts_simulation", "prompts_grpo")
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
    monkeypatch.setattr(script, "RATE", 0.2)
    monkeypatch.setattr(sys, "argv", ["prompts_simulation", "--seeds", "2", "--out", str(tmp_path)])
    script.main()
    record = json.loads((tmp_path / "prompts_simulation.json").read_text())
    assert len(record["points"]) == 2 * len(script.ARMS)
    result = record["result"]
    for arm in ("greso", "mopps"):
        mean, low, high = result[f"3,000 prompts, {arm}"]["to_uniform"]
        assert low < mean < high and mean < 1
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


def test_every_policy_trains_the_same_decoder(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts["prompts_grpo"]
    small = {"train": 60, "held_out": 20, "warm_steps": 10, "evaluations": 2, "count": 4}
    monkeypatch.setattr(script, "SETTINGS", script.SETTINGS | small)
    arguments = ["--seeds", "2", "--rollouts", "200", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["prompts_grpo", *arguments])
    script.main()
    record = json.loads((tmp_path / "prompts_grpo.json").read_text())
    assert len(record["points"]) == 2 * len(script.ARMS)
    for seed in range(2):
        starts = [point["curve"]["train"][0] for point in record["points"] if point["seed"] == seed]
        assert len(set(starts)) == 1
    for point in record["points"]:
        assert point["curve"]["rollouts"][-1] >= 200 and 2 <= len(point["curve"]["rollouts"]) <= 3
    table = {(point["arm"], point["seed"]): point for point in record["points"]}
    gaps = [
        script.at(table["greso", seed], "rollouts", 200, "train")
        - script.at(table["uniform", seed], "rollouts", 200, "train")
        for seed in range(2)
    ]
    assert record["result"]["greso"]["train final minus uniform"][0] == pytest.approx(sum(gaps) / 2, abs=1e-3)


def test_answers_are_those_that_the_task_asks_for(scripts: dict[str, ModuleType]) -> None:
    script = scripts["prompts_grpo"]
    names = {number: symbol for symbol, number in script.SYMBOLS.items()}
    for row in script.different(300, seed=3).tolist():
        asked, answer = "".join(names[token] for token in row).replace("_", "").split("=")
        assert answer.endswith(".")
        kind, given, answer = asked[0], asked[1:], answer[:-1]
        if kind == "s":
            assert answer == str(sum(map(int, given)) % 10)
        elif kind == "o":
            assert answer == "".join(sorted(given))
        else:
            text = given + answer
            while "()" in text or "[]" in text:
                text = text.replace("()", "").replace("[]", "")
            assert text == "" and len(answer) == len(given)


def test_log_likelihoods_are_of_the_answers_alone(scripts: dict[str, ModuleType]) -> None:
    script = scripts["prompts_grpo"]
    torch.manual_seed(0)
    model, rows = script.Decoder(16, 1, 2), script.different(3, seed=0)
    likelihood, real = model.log_likelihood(rows)
    for row, values, counted in zip(rows, likelihood, real, strict=True):
        for place in range(script.ANSWERED):
            at = script.ASKED + place
            assert counted[place] == (row[at] != script.PAD)
            logits = model(row[None, :at])[0, -1]
            torch.testing.assert_close(values[place], logits.log_softmax(0)[row[at]])
    drawn = model.answer(rows[:, : script.ASKED], torch.Generator().manual_seed(0))
    ended = [(row == script.END).nonzero() for row in drawn[:, script.ASKED :]]
    assert all(
        (row[int(end[0]) + 1 :] == script.PAD).all() for row, end in zip(drawn[:, script.ASKED :], ended) if len(end)
    )
