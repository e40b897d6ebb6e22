"""What people read of savings: sentences, tables, figure and report, from made-up runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataprune import files
from dataprune.errors import CheckpointError
from dataprune.lab.report import pack, page, plots, saving, saving_part, tables

BUDGETS = (0.2, 0.4, 0.6, 0.8)
FULL = (0.899, 0.9, 0.901)
NEAR = {"short": (-3, -1, -0.9, 0.0), "rs2": (-3, -1, 0.0, 0.1), "memory": (-2, 0.05, 0.1, 0.2)}


def content(
    points: Mapping[str, Sequence[float]],
    *,
    longer: float | None = 0.0,
    spread: float = 0.0002,
    margin: float = 0.3,
    scored: Sequence[str] = (),
) -> dict[str, Any]:
    """A result in which methods are so many points above `full` at the budgets."""
    rows = [_row("full", 1.0, seed, value) for seed, value in enumerate(FULL)]
    if longer is not None:
        rows += [_row("longer", 1.5, seed, value + longer / 100) for seed, value in enumerate(FULL)]
    for method, means in points.items():
        for budget, mean in zip(BUDGETS, means):
            for seed, value in enumerate(FULL):
                row = _row(method, budget, seed, value + mean / 100 + (seed - 1) * spread)
                rows.append(row | ({"scoring_samples": 600, "scoring_seconds": 6.0} if method in scored else {}))
    found = saving.summarize(rows, margin=margin / 100, held_out=1_000_000)
    about = {"data": "made-up", "model": "mlp", "epochs": 10, "test_samples": 1_000_000}
    return json.loads(json.dumps({**about, **found, "margin": margin, "runs": rows}))


def _row(method: str, budget: float, seed: int, accuracy: float) -> dict[str, Any]:
    return {
        "method": method, "budget": budget, "seed": seed, "accuracy": accuracy, "samples": round(1000 * budget),
        "steps": round(100 * budget), "seconds": 10 * budget, "reached_keep": budget,
    }  # fmt: skip


def test_the_sentence_has_the_best_first_and_all_the_data_for_fewer_steps_behind() -> None:
    assert saving_part.sentence(content(NEAR)) == (
        "On this data `memory` saves 60 % (60 to 60), a random subset in every epoch (`rs2`) saves 40 % (40 to 40), "
        "all the data for fewer steps saves 20 % (20 to 20)."
    )
    beyond, *_ = saving_part.remarks(content(NEAR))
    assert beyond == (
        "Beyond what all the data for fewer steps saves: `memory` +40 % (+40 to +40), `rs2` +20 % (+20 to +20)."
    )


def test_the_sentence_where_there_is_nothing_to_say() -> None:
    assert saving_part.sentence(content({"loss": (-9, -8, -7, -6), "rs2": (0.1, 0.1, 0.1, 0.1)})) == (
        "On this data `loss` saves less than 20 % (at 0.8 of the steps it is surely below), a random subset in every "
        "epoch (`rs2`) saves 80 % or more (at least 80)."
    )
    untold = content(NEAR, spread=0.006)
    text = saving_part.sentence(untold)
    assert text.startswith(
        "Not told for `memory`, all the data for fewer steps, a random subset in every epoch (`rs2`): "
    )
    needed = saving.seeds_needed(untold["deviation"], 0.003)
    assert f"varies by {100 * untold['deviation']:.2f} points from seed to seed; try --max-seeds {needed}, " in text
    hopeless = content({"memory": NEAR["memory"]}, spread=0.2)
    assert "too much for a margin of 0.3: more test samples, or a larger --margin" in saving_part.sentence(hopeless)
    begun = saving.summarize([], margin=0.003, held_out=10, planned={"memory": BUDGETS})
    assert saving_part.sentence(begun) == "Not told for `memory`: runs are missing, repeat the command to continue."


def test_a_method_that_costs_more_than_full_says_so() -> None:
    result = content({"el2n": (0, 0.1, 0.1, 0.1), "memory": (0, 0, 0, 0)}, scored=["el2n"])
    assert "`el2n` saves 20 % or more" in saving_part.sentence(result)
    never = content({"el2n": (-9, -9, -9, -9)}, scored=["el2n"])
    assert "`el2n` saves nothing (at 0.8 of the steps it is surely below)" in saving_part.sentence(never)
    late = content({"el2n": (-3, -3, 0.1, 0.1)}, scored=["el2n"])
    assert "`el2n` costs 20 % (20 to 20) more than full" in saving_part.sentence(late)
    assert saving_part.table_rows(late)[1]["saves"] == "−20 % (−20 to −20)"
    assert "without runs of short: add it to --methods" in saving_part.remarks(late)[0]


@pytest.mark.parametrize(
    ("longer", "text"),
    [
        (0.02, "full has converged: 1.5 times the epochs give +0.02 ± "),
        (2.0, "full has not converged: 1.5 times the epochs give +2.00 ± "),
        (None, "Whether full has converged was not tried (--longer)"),
    ],
)
def test_convergence_is_said(longer: float | None, text: str) -> None:
    result = content(NEAR, longer=longer)
    assert saving_part.convergence(result).startswith(text) and saving_part.convergence(result) in saving_part.remarks(
        result
    )


def test_tables_have_the_level_budget_and_its_costs() -> None:
    rows = {row["method"]: row for row in saving_part.table_rows(content(NEAR))}
    assert list(rows) == ["full", "short", "rs2", "memory"]
    assert rows["memory"] | {"minus full": ""} == {
        "method": "memory",
        "saves": "60 % (60 to 60)",
        "beyond short": "+40 % (+40 to +40)",
        "budget": "0.4",
        "accuracy, %": "90.05",
        "minus full": "",
        "seeds": "3",
        "samples": "400",
        "steps": "40",
        "seconds": "4.0",
        "FLOPs": "40.0 %",
    }
    assert {row["decision"] for row in saving_part.cell_rows(content(NEAR))} == {"level", "below"}
    text = tables.plain(tables.saving(content({**NEAR, "loss": (-9, -8, -7, -6)})))
    assert "less than 20 %" in text and "made-up, mlp: 10 epochs, level within 0.3 points" in text


@pytest.mark.parametrize("points", [NEAR, {"loss": (-9, -8, -7, -6)}, {"memory": (1, 1, 1, 1)}])
def test_the_figure_rings_each_level_budget(points: Mapping[str, Sequence[float]], tmp_path: Path) -> None:
    result = content(points)
    drawn = saving_part.figure(result)
    rings = [line for line in drawn.axes[0].lines if line.get_markersize() == 11]
    budgets = [line["budget"] for line in result["saving"] if line["budget"] is not None]
    across = np.array([ring.get_xdata() for ring in rings], dtype=float).ravel()
    assert across == pytest.approx([100 * budget for budget in budgets])
    assert all(path.stat().st_size > 5000 for path in plots.write(drawn, tmp_path / "saving"))


def test_a_report_and_a_packed_file_show_it(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    files.write_json(folder / "saving.json", content(NEAR))
    _, text = (path.read_text() for path in page.write([folder], tmp_path / "report"))
    assert "**On this data memory saves 60 % (60 to 60), " in text and "full has converged" in text
    assert "![Test accuracy against compute. On this data memory saves" in text
    assert (tmp_path / "report/figures/saving.png").exists()
    packed, table = pack.pack([folder], tmp_path / "saved.json")
    assert "On this data `memory` saves 60 % (60 to 60)" in table.read_text()
    (entry,) = pack.read(packed)
    assert entry.command == "saving" and entry.result is not None and len(entry.result["runs"]) == 3 * 14
    again = page.write([packed], tmp_path / "again")[1].read_text()
    assert again.replace(str(packed), str(folder)) == text
    both = page.write([folder, packed], tmp_path / "both")[1].read_text()
    assert both.count("**On this data memory saves") == 2


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    result = content(NEAR)
    del result["saving"][0]["saved"]
    files.write_json(tmp_path / "saving.json", result)
    with pytest.raises(CheckpointError, match=r"saving.json is damaged \(KeyError\('saved'\)\)"):
        page.write([tmp_path], tmp_path / "report")
