"""Grids of data and network pruning: differences from the base over seeds, missing cells, and their report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError
from . import joint_plots
from .document import Block, Chart, Part, Table
from .formatting import counted, percent, points, setting
from .significance import LEVEL, detectable, moments, paired

BASE = "base"  # the arm without data selection
_FIGURES = {
    "flops": "accuracy against the training FLOPs of all stages",
    "fine_tuning": "accuracy after every epoch of fine-tuning, for each ratio and amount",
    "before_and_after": "accuracy over training and fine-tuning at the smallest ratio",
    "sparsity": "share of zeros of every layer",
}
Line = Mapping[str, Any]


def summarize(content: Line) -> list[dict[str, Any]]:
    """The `summary` of joint.json: a line for each arm, ratio and amount of which every seed and its base is finished.

    Differences are paired by seed: both models of a pair start from the same weights. Lines have `difference_mean`,
    `difference_std` (of the sample, 0 for a single seed) and `p`, see `significance.paired`. FLOPs are means over
    seeds, with masks counted as if zeros were free.
    """
    seeds, cells = content["grid"]["seeds"], _by_place(content)
    lines = []
    for arm, ratio, amount in _places(content["grid"]):
        places = [((arm, ratio, amount, seed), (BASE, None, amount, seed)) for seed in seeds]
        pairs = [(cells[place], cells[base]) for place, base in places if place in cells and base in cells]
        if arm == BASE or len(pairs) < len(seeds):
            continue
        columns = {
            "accuracy": [cell["accuracy"] for cell, _ in pairs],
            "base": [base["accuracy"] for _, base in pairs],
            "difference": [cell["accuracy"] - base["accuracy"] for cell, base in pairs],
        }
        line: dict[str, Any] = {"arm": arm, "ratio": ratio, "amount": amount}
        for name, values in columns.items():
            line[f"{name}_mean"], line[f"{name}_std"] = moments(values)
        line["p"] = paired(columns["difference"])
        for name, part in zip(("flops", "base_flops"), zip(*pairs)):
            line[name] = moments([cell["flops"]["total"] for cell in part])[0]
        lines.append(line)
    return lines


def missing(content: Line) -> list[str]:
    """Names of the cells in a grid that are not finished."""
    cells = _by_place(content)
    return [
        f"{arm}{'' if ratio is None else f' ratio {ratio:g}'} amount {amount:g} seed {seed}"
        for seed in content["grid"]["seeds"]
        for arm, ratio, amount in _places(content["grid"])
        if (arm, ratio, amount, seed) not in cells
    ]


def check_whole(content: Line) -> None:
    """Raise UsageError unless every cell of the grid is finished."""
    gaps = missing(content)
    if gaps:
        named = ", ".join(gaps[:3]) + (" ..." if len(gaps) > 3 else "")
        raise UsageError(
            f"{len(gaps)} of {len(gaps) + len(content['cells'])} cells are missing ({named}): run the command again "
            "without --table to continue"
        )


def part(source: str, result: Line) -> Part:
    """The part of a report on what joint.json holds, from the folder or file `source`."""
    seeds, lines = len(result["grid"]["seeds"]), result["summary"]
    heading = f"{setting(result)}: {result['epochs']} epochs, pruned, {result['finetune_epochs']} epochs"
    title = f"{heading}, {counted(seeds, 'seed')} ({Path(source).stem})"
    note = (
        "The base is trained on all data and pruned alike; differences are taken seed by seed. Zeros count as free in "
        "FLOPs: they save no time here."
    )
    sections: dict[str, Sequence[Block]] = {"Differences from the base": [differences(result)]}
    if missing(result) or not all("curve" in cell and "layers" in cell for cell in result["cells"]):
        return Part(title, source, _sentence(lines, seeds), [note], sections)
    of = f"{setting(result)}, data and network pruning"
    figures = [Chart(name, f"{of}: {shown}", joint_plots.FIGURES[name](result)) for name, shown in _FIGURES.items()]
    sections["Training and layers"] = [figures[1:]]
    return Part(title, source, _sentence(lines, seeds), [figures[:1], note], sections)


def differences(result: Line) -> Table:
    """A line for each arm, ratio and amount."""
    seeds, rows = len(result["grid"]["seeds"]), []
    for line in result["summary"]:
        shares = [f"{100 * line[name]:g}%" for name in ("ratio", "amount")]
        values = [percent(line[f"{name}_mean"], line[f"{name}_std"], seeds) for name in ("base", "accuracy")]
        difference = points(line["difference_mean"], line["difference_std"] if seeds > 1 else None)
        p = "–" if line["p"] is None else f"{line['p']:.2g}"
        rows.append([line["arm"], *shares, *values, difference, p, f"{line['flops'] / line['base_flops']:.2f}"])
    caption = "Test accuracy after fine-tuning"
    if seeds > 2:
        caption += f"; p of a paired t-test, detectable from {detectable(seeds):.2g} standard deviations on"
    head = ["arm", "data", "weights pruned", "base, %", "accuracy, %", "minus base, points", "p", "FLOPs, base = 1"]
    return Table(caption, head, rows, folded=len(rows) > 20)


def _sentence(lines: Sequence[Line], seeds: int) -> str:
    if not lines:
        return "No cell of the grid has all its seeds yet."
    best = max(lines, key=lambda line: line["difference_mean"])
    above = "above" if best["difference_mean"] > 0 else "below"
    text = (
        f"The best cell is {best['arm']} at {best['ratio']:.0%} of the data and {best['amount']:.0%} of the weights "
        f"pruned, {100 * abs(best['difference_mean']):.1f} points {above} the base with "
        f"{best['flops'] / best['base_flops']:.2f} of its FLOPs"
    )
    if seeds < 3:
        return f"{text}; {counted(seeds, 'seed')} cannot show whether that is chance."
    detected = [line["difference_mean"] for line in lines if line["p"] is not None and line["p"] < LEVEL]
    high, low = sum(mean > 0 for mean in detected), sum(mean < 0 for mean in detected)
    return (
        f"{text}. Differences with p < {LEVEL:g}: higher than the base in {high} of {len(lines)} cells, lower in {low}."
    )


def _by_place(content: Line) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {(cell["arm"], cell["ratio"], cell["amount"], cell["seed"]): cell for cell in content["cells"]}


def _places(grid: Line) -> Iterator[tuple[str, float | None, float]]:
    for arm, ratio in [(BASE, None), *((arm, ratio) for arm in grid["arms"] for ratio in grid["ratios"])]:
        for amount in grid["amounts"]:
            yield arm, ratio, amount
