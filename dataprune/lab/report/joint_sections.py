"""The report of a grid of data and network pruning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import joint_plots
from .document import Block, Chart, Part, Section, Table, counted
from .significance import LEVEL, detectable
from .tables import percent, setting

_SHOWN = {
    "flops": "accuracy against the training FLOPs of all stages",
    "fine_tuning": "accuracy after every epoch of fine-tuning, for each ratio and amount",
    "before_and_after": "accuracy over training and fine-tuning at the smallest ratio",
    "sparsity": "share of zeros of every layer",
}


def part(source: str, result: Mapping[str, Any]) -> Part:
    """A grid's part of the report.

    Args:
        source: where it is from.
        result: what joint.json holds.
    """
    seeds = len(result["grid"]["seeds"])
    heading = f"{setting(result)}: {result['epochs']} epochs, pruned, {result['finetune_epochs']} epochs"
    title = f"{heading}, {counted(seeds, 'seed')} ({Path(source).stem})"
    note = (
        "The base is trained on all data and pruned alike; differences are taken seed by seed. Zeros count as free in "
        "FLOPs: they save no time here."
    )
    lines = result["summary"]
    figures = [] if _incomplete(result) else [_chart(name, result) for name in _SHOWN]
    first: list[Block] = [*([figures[:1]] if figures else []), note]
    details: list[Section] = [Section("Differences from the base", [_differences(lines, seeds)])]
    if figures:
        details.append(Section("Training and layers", [figures[1:]]))
    return Part(title, source, _sentence(lines, seeds), first, details)


def _sentence(lines: list[Mapping[str, Any]], seeds: int) -> str:
    if not lines:
        return "No cell of the grid has all its seeds yet."
    best = max(lines, key=lambda line: line["difference_mean"])
    low = [line for line in lines if line["p"] is not None and line["p"] < LEVEL and line["difference_mean"] < 0]
    high = [line for line in lines if line["p"] is not None and line["p"] < LEVEL and line["difference_mean"] > 0]
    points = f"{100 * abs(best['difference_mean']):.1f} points {'above' if best['difference_mean'] > 0 else 'below'}"
    text = (
        f"The best cell is {best['arm']} at {best['ratio']:.0%} of the data and {best['amount']:.0%} of the weights "
        f"pruned, {points} the base with {best['flops'] / best['base_flops']:.2f} of its FLOPs"
    )
    if seeds < 3:
        return f"{text}; {counted(seeds, 'seed')} cannot show whether that is chance."
    counts = f"higher than the base in {len(high)} of {len(lines)} cells, lower in {len(low)}"
    return f"{text}. Differences with p < {LEVEL:g}: {counts}."


def _differences(lines: list[Mapping[str, Any]], seeds: int) -> Table:
    rows = []
    for line in lines:
        difference = f"{100 * line['difference_mean']:+.2f}".replace("-", "−")
        difference += f" ± {100 * line['difference_std']:.2f}" if seeds > 1 else ""
        values = [percent(line[f"{name}_mean"], line[f"{name}_std"], seeds, 2) for name in ("base", "accuracy")]
        p = "–" if line["p"] is None else f"{line['p']:.2g}"
        shares = [f"{line['ratio']:.0%}", f"{line['amount']:.0%}"]
        rows.append([line["arm"], *shares, *values, difference, p, f"{line['flops'] / line['base_flops']:.2f}"])
    caption = "Test accuracy after fine-tuning"
    if seeds > 2:
        caption += f"; p of a paired t-test, detectable from {detectable(seeds):.2g} standard deviations on"
    head = ["arm", "data", "weights pruned", "base, %", "accuracy, %", "minus base, points", "p", "FLOPs, base = 1"]
    return Table(caption, head, rows, folded=len(rows) > 20)


def _chart(name: str, result: Mapping[str, Any]) -> Chart:
    return Chart(
        name, f"{setting(result)}, data and network pruning: {_SHOWN[name]}", joint_plots.FIGURES[name](result)
    )


def _incomplete(result: Mapping[str, Any]) -> bool:
    """Whether cells are missing, or lack what the figures draw."""
    grid = result["grid"]
    cells = len(grid["seeds"]) * len(grid["amounts"]) * (1 + len(grid["arms"]) * len(grid["ratios"]))
    return len(result["cells"]) < cells or not all("curve" in cell and "layers" in cell for cell in result["cells"])
