"""EMP's leave-out experiments at a scale of seconds: who is left out, what is resumed, and the numbers they report."""

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

from dataprune.errors import UsageError

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def figures() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The two scripts as modules; torch's number of threads is afterwards what it was."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module("emp_figure4"), importlib.import_module("emp_figure5")
        for name in ("emp_figure4", "emp_figure5"):
            patch.delitem(sys.modules, name, raising=False)
    torch.set_num_threads(threads)


def test_figure_4_is_drawn_and_resumed(figures: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    four, _ = figures
    result = four.main("smoke", tmp_path)
    record = json.loads((tmp_path / "figure4.json").read_text())
    assert {line["run"] for line in record["points"]} >= {"untrained", "all"}
    assert len(record["points"]) == 7 and all(len(line["distance"]) == 5 for line in record["points"])
    assert record["settings"]["seed"] == 0 and record["machine"]["torch"] == torch.__version__
    assert (tmp_path / "figure4.png").stat().st_size > 20_000

    path, images = tmp_path / "retrainings.jsonl", [(tmp_path / f"figure4.{form}") for form in ("svg", "png")]
    before, drawn = path.read_text().splitlines(), [image.read_bytes() for image in images]
    path.write_text("\n".join(before[:4]) + "\n" + before[4][:30])  # killed while it wrote a line
    assert four.main("smoke", tmp_path) == result
    after = [json.loads(line) | {"cpu_seconds": 0} for line in path.read_text().splitlines()]
    assert after == [json.loads(line) | {"cpu_seconds": 0} for line in before]
    assert [image.read_bytes() for image in images] == drawn
    with pytest.raises(UsageError, match="other settings: choose another --out"):
        four.Ledger(path, {"seed": 1})


def test_figure_5_is_drawn_and_resumed(figures: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, five = figures
    result = five.main("smoke", tmp_path)
    record = json.loads((tmp_path / "figure5.json").read_text())
    assert len(record["points"]) == 1 + 2 * 2 * 2  # all the data; arms, rates, repetitions
    assert {(line["arm"], line["steps"]) for line in record["points"]} == {
        ("all", 6), ("epochs", 4), ("epochs", 2), ("steps", 6)
    }  # fmt: skip
    assert (tmp_path / "figure5.svg").stat().st_size > 10_000
    path = tmp_path / "retrainings.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert five.main("smoke", tmp_path) == result


def test_a_sample_that_is_left_out_has_no_part(figures: tuple[ModuleType, ModuleType]) -> None:
    four, five = figures
    study = four.Study("smoke", pairs=1)
    sample = int(study.draw("left out")[0])
    everyone = torch.arange(60)
    kept, measured = everyone[everyone != sample], everyone[everyone != sample][:1]
    plans = {
        "without": list(four.without(study, sample)),
        "epochs": five.batches(study, kept, "epochs"),
        "steps": five.batches(study, kept, "steps"),
    }
    assert [len(plan) for plan in plans.values()] == [6, 4, 6]
    before = {name: study.distances(study.retrain(plan)[0], measured)[0] for name, plan in plans.items()}
    whole = study.distances(study.retrain(list(four.without(study, None)))[0], measured)[0]
    study.images[sample] = 255 - study.images[sample]
    for name, plan in plans.items():
        assert torch.equal(study.distances(study.retrain(plan)[0], measured)[0], before[name])
    assert not torch.equal(study.distances(study.retrain(list(four.without(study, None)))[0], measured)[0], whole)

    whole_batches, fewer = list(four.without(study, None)), plans["without"]
    for (epoch, all_of_it), (same_epoch, rest) in zip(whole_batches, fewer):
        assert epoch == same_epoch and rest.tolist() == [
            position for position in all_of_it.tolist() if position != sample
        ]


def test_the_numbers_of_figure_4_are_those_of_plain_loops(figures: tuple[ModuleType, ModuleType]) -> None:
    four, _ = figures
    random = np.random.default_rng(0)
    size, effect = 12, 0.3
    samples, models = random.normal(2, 0.5, size), random.normal(0, 0.2, size)
    table = samples[None, :] + models[:, None] + random.normal(0, 0.02, (size, size)) + effect * np.eye(size)
    whole = samples + random.normal(0, 0.02, size)
    result = four.analyse(torch.from_numpy(table), torch.from_numpy(whole))

    included = np.array([np.mean([table[r, s] for r in range(size) if r != s]) for s in range(size)])
    first = np.array([table[s, s] for s in range(size)])
    spread = sum((table[r, s] - included[s]) ** 2 for r in range(size) for s in range(size) if r != s)
    assert result["first_term_mean"] == pytest.approx(first.mean())
    assert result["own_absence_relative"] == pytest.approx((first - included).mean() / included.mean())
    assert result["deviation_over_retrainings"] == pytest.approx((spread / (size * (size - 2))) ** 0.5)
    assert result["first_over_second_deviation"] == pytest.approx(first.std(ddof=1) / whole.std(ddof=1))
    assert result["first_second_pearson"] == pytest.approx(np.corrcoef(first, whole)[0, 1])
    assert (
        result["own_absence_permutation_p"] < 0.01
    )  # an effect of 15 times the noise, within models that differ by 10
    assert result["agrees"]["insensitive"] is False and result["agrees"]["uniform"] is False

    nothing = four.analyse(torch.from_numpy(table - effect * np.eye(size)), torch.from_numpy(whole))
    assert nothing["own_absence_permutation_p"] > 0.05


def test_the_numbers_of_figure_5(figures: tuple[ModuleType, ModuleType]) -> None:
    _, five = figures
    lines = [
        {"arm": arm, "rate": rate, "length": length, "pruned": 1 + rate, "kept": 1.0, "pruned_under_all": 1.0,
         "kept_under_all": 2.0}
        for arm, growth in (("epochs", 3), ("steps", 0))
        for rate in (0.1, 0.5, 0.9)
        for length in (1.0 + growth * rate,) * 3
    ]  # fmt: skip
    result = five.analyse([{"arm": "all", "rate": 0}, *lines])
    assert result["epochs"]["agrees"] == {"rises": True, "rises_over_length": False}
    assert result["steps"]["agrees"] == {"rises": True, "rises_over_length": True}
    assert result["epochs"]["memory"]["at_largest_r"] == pytest.approx([0.9, 0.0])
    assert result["epochs"]["left_out"]["at_smallest_r"] == pytest.approx([1.2, 0.0])
