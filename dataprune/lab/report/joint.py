"""Grids of data and network pruning: their summary over seeds, and their report with its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UsageError
from . import plots
from .document import Block, Chart, Part, Table, pipe_table
from .formatting import counted, percent, points, setting
from .significance import LEVEL, detectable, moments, paired

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASE = "base"  # the arm without data selection
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
        count = f"{len(gaps)} of {len(gaps) + len(content['cells'])}"
        raise UsageError(f"{count} cells are missing ({named}): run the command again without --table to continue")


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
    figures = [Chart(figure.__name__, f"{of}: {shown}", figure(result)) for figure, shown in _FIGURES.items()]
    sections["Training and layers"] = [figures[1:]]
    return Part(title, source, _sentence(lines, seeds), [figures[:1], note], sections)


def differences(result: Line) -> Table:
    """A line for each arm, ratio and amount."""
    seeds = len(result["grid"]["seeds"])
    rows = [
        {
            "arm": line["arm"],
            "data": f"{100 * line['ratio']:g}%",
            "weights pruned": f"{100 * line['amount']:g}%",
            "base, %": percent(line["base_mean"], line["base_std"], seeds),
            "accuracy, %": percent(line["accuracy_mean"], line["accuracy_std"], seeds),
            "minus base, points": points(line["difference_mean"], line["difference_std"] if seeds > 1 else None),
            "p": "–" if line["p"] is None else f"{line['p']:.2g}",
            "FLOPs, base = 1": f"{line['flops'] / line['base_flops']:.2f}",
        }
        for line in result["summary"]
    ]
    caption = "Test accuracy after fine-tuning"
    if seeds > 2:
        caption += f"; p of a paired t-test, detectable from {detectable(seeds):.2g} standard deviations on"
    return Table(caption, rows, folded=len(rows) > 20)


def beside(result: Line, printed: Mapping[str, Mapping[float, Mapping[float, float]]]) -> list[str]:
    """Markdown lines: differences from the base beside those that a paper prints, by arm, ratio and amount."""
    rows = []
    for line in result["summary"]:
        paper = printed.get(line["arm"], {}).get(line["ratio"], {}).get(line["amount"])
        if paper is not None:
            place = [line["arm"], f"{line['ratio']:g}", f"{line['amount']:g}"]
            rows.append([*place, points(line["difference_mean"]), points(paper / 100)])
    head = ["arm", "ratio", "amount", "minus base, points", "the paper's"]
    return ["", pipe_table(head, rows)] if rows else []


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


# -- figures ----------------------------------------------------------------------------------------------------------


def draw(result: Line, folder: Path) -> list[Path]:
    """Write every figure of a finished grid as SVG and PNG."""
    return [file for figure in _FIGURES for file in plots.write(figure(result), folder / figure.__name__)]


def flops(result: Line) -> Figure:
    """Final accuracy against the FLOPs of all stages, scoring included; a line joins an arm and ratio."""
    grid = result["grid"]
    figure, panels = plots.panels(1, 1, (7.5, 4.2))
    axes = panels[0, 0]
    for color, arm in _arms(grid):
        for number, ratio in enumerate(grid["ratios"][:1] if arm == BASE else grid["ratios"]):
            cells = [_cells(result, arm, ratio, amount) for amount in grid["amounts"]]
            x = [fmean(cell["flops"]["total"] for cell in group) for group in cells]
            y, spread = zip(*(moments([100 * cell["accuracy"] for cell in group]) for group in cells))
            style = {"fmt": plots.MARKERS[number % 12] + "-", "linewidth": 0.8, "markersize": 4, "capsize": 2}
            style["yerr"] = spread if len(grid["seeds"]) > 1 else None
            axes.errorbar(x, y, color=color, label=arm if arm == BASE else f"{arm}, {ratio:.0%}", **style)
    axes.set_xlim(left=0)
    axes.set_xlabel("training FLOPs of all stages; theoretical: pruned weights counted as free", fontsize=9)
    axes.set_ylabel("test accuracy, %")
    amounts = ", ".join(f"{amount:.0%}" for amount in grid["amounts"])
    axes.set_title(f"{_heading(result)}; along a line: {amounts} pruned", fontsize=10)
    plots.finish(figure, panels, None, 9)
    return figure


def fine_tuning(result: Line) -> Figure:
    """Test accuracy after every epoch of fine-tuning, with and without data selection, for each ratio and amount.

    Means over seeds, and a standard deviation to either side. Figure 1 of "Drop it like it's hot".
    """
    grid = result["grid"]
    figure, panels = _panels(len(grid["ratios"]), len(grid["amounts"]))
    for row, ratio in zip(panels, grid["ratios"], strict=True):
        for axes, amount in zip(row, grid["amounts"], strict=True):
            for color, arm in _arms(grid):
                curves = [cell["curve"] for cell in _cells(result, arm, ratio, amount)]
                # before fine-tuning accuracies are so low that the differences after it would not be visible
                _band(axes, range(1, len(curves[0])), [curve[1:] for curve in curves], color, arm)
            axes.set_title(f"{ratio:.0%} of the data, {amount:.0%} pruned", fontsize=8)
    return _finished(figure, panels, f"{_heading(result)}: fine-tuning after pruning", "epoch of fine-tuning")


def before_and_after(result: Line) -> Figure:
    """Test accuracy over training and then, pruned, over fine-tuning, at the smallest ratio; a panel for each amount.

    Figure 2 of "Drop it like it's hot".
    """
    grid, ratio, epochs = result["grid"], min(result["grid"]["ratios"]), result["epochs"]
    figure, panels = _panels(1, len(grid["amounts"]))
    for axes, amount in zip(panels[0], grid["amounts"], strict=True):
        for color, arm in _arms(grid):
            trained = [run["curve"] for run in _of_arm(result["training"], arm, ratio)]
            tuned = [cell["curve"] for cell in _cells(result, arm, ratio, amount)]
            end = len(trained[0])
            _band(axes, range(1, end + 1), trained, color, arm)
            _band(axes, range(end, end + len(tuned[0])), tuned, color, None)
        axes.axvline(epochs, color="grey", linewidth=0.8, linestyle=":")
        axes.set_title(f"{amount:.0%} pruned", fontsize=8)
    title = f"{_heading(result)}\ntrained on {ratio:.0%} of the data, pruned (dotted line), fine-tuned"
    return _finished(figure, panels, title, "epoch")


def sparsity(result: Line) -> Figure:
    """Share of zeros of every layer, a panel for the base and for each arm at the smallest ratio, mean over seeds.

    Ranked layer by layer all layers lose the same share; with a global ranking this shows which ones lose more.
    """
    grid, ratio, names = result["grid"], min(result["grid"]["ratios"]), list(result["cells"][0]["layers"])
    arms = [arm for _, arm in _arms(grid)]
    figure, panels = _panels(1, len(arms))
    for axes, arm in zip(panels[0], arms, strict=True):
        for number, amount in enumerate(grid["amounts"]):
            layers = [cell["layers"] for cell in _cells(result, arm, ratio, amount)]
            means = [100 * fmean(zeros[name] for zeros in layers) for name in names]
            style = {"marker": "o", "markersize": 3, "color": f"C{number % 10}", "linewidth": 1}
            axes.plot(range(len(names)), means, label=f"{amount:.0%} pruned", **style)
        axes.set_title(arm if arm == BASE else f"{arm}, {ratio:.0%} of the data", fontsize=8)
    ranked = {"layer": "layer by layer", "global": "all together"}[result["scope"]]
    title = f"{_heading(result)}: zeros of each layer, ranked {ranked}"
    _finished(figure, panels, title, "layer, in order", "zeros, %")
    if len(names) <= 8:
        for axes in panels[0]:
            axes.set_xticks(range(len(names)), names, rotation=45, fontsize=7)
    return figure


_FIGURES: Mapping[Callable[[Line], Figure], str] = {
    flops: "accuracy against the training FLOPs of all stages",
    fine_tuning: "accuracy after every epoch of fine-tuning, for each ratio and amount",
    before_and_after: "accuracy over training and fine-tuning at the smallest ratio",
    sparsity: "share of zeros of every layer",
}


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    return plots.panels(rows, columns, (1 + 2.2 * columns, 1 + 1.8 * rows), sharex=True, sharey="row")


def _band(axes: Axes, epochs: Sequence[int], curves: Sequence[Sequence[float]], color: str, label: str | None) -> None:
    mean, spread = np.array([moments([100 * value for value in values]) for values in zip(*curves, strict=True)]).T
    axes.plot(epochs, mean, color=color, linewidth=1.2, label=label)
    if len(curves) > 1:
        axes.fill_between(epochs, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)


def _finished(figure: Figure, panels: Any, title: str, xlabel: str, ylabel: str = "test accuracy, %") -> Figure:
    for axes in panels.flat:
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[-1]:
        axes.set_xlabel(xlabel, fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel(ylabel, fontsize=8)
    plots.finish(figure, panels, title, 9)
    return figure


def _arms(grid: Line) -> list[tuple[str, str]]:
    """Colour and name of the base and of every arm."""
    return [("black", BASE), *((f"C{number % 10}", arm) for number, arm in enumerate(grid["arms"]))]


def _of_arm(lines: Sequence[Line], arm: str, ratio: float) -> list[Line]:
    """Lines of an arm at a ratio; the base was trained on all the data, whatever the ratio."""
    return [line for line in lines if line["arm"] == arm and (arm == BASE or line["ratio"] == ratio)]


def _cells(result: Line, arm: str, ratio: float, amount: float) -> list[Line]:
    return [cell for cell in _of_arm(result["cells"], arm, ratio) if cell["amount"] == amount]


def _heading(result: Line) -> str:
    return f"{setting(result)}, {counted(len(result['grid']['seeds']), 'seed')}"
