"""Figures of data and network pruning together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from . import plots
from .formatting import counted, setting
from .significance import moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = Mapping[str, Any]


def draw(result: Line, folder: Path) -> list[Path]:
    """Write every figure of a finished `joint.json` as SVG and PNG."""
    return [file for name, figure in FIGURES.items() for file in plots.write(figure(result), folder / name)]


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
    _finish(figure, panels, f"{_heading(result)}: fine-tuning after pruning", "epoch of fine-tuning")
    return figure


def before_and_after(result: Line) -> Figure:
    """Test accuracy over training and then, pruned, over fine-tuning, at the smallest ratio; a panel for each amount.

    Figure 2 of "Drop it like it's hot".
    """
    grid = result["grid"]
    ratio = min(grid["ratios"])
    figure, panels = _panels(1, len(grid["amounts"]))
    for axes, amount in zip(panels[0], grid["amounts"], strict=True):
        for color, arm in _arms(grid):
            trained = [run["curve"] for run in _of_arm(result["training"], arm, ratio)]
            tuned = [cell["curve"] for cell in _cells(result, arm, ratio, amount)]
            epochs = len(trained[0])
            _band(axes, range(1, epochs + 1), trained, color, arm)
            _band(axes, range(epochs, epochs + len(tuned[0])), tuned, color, None)
        axes.axvline(result["epochs"], color="grey", linewidth=0.8, linestyle=":")
        axes.set_title(f"{amount:.0%} pruned", fontsize=8)
    title = f"{_heading(result)}\ntrained on {ratio:.0%} of the data, pruned (dotted line), fine-tuned"
    _finish(figure, panels, title, "epoch")
    return figure


def flops(result: Line) -> Figure:
    """Final accuracy against the FLOPs of all stages, scoring included; a line joins an arm and ratio."""
    grid, several = result["grid"], len(result["grid"]["seeds"]) > 1
    figure, panels = plots.panels(1, 1, (7.5, 4.2))
    axes = panels[0, 0]

    def add(label: str, marker: int, color: str, lines: Sequence[Line], prefix: str, accuracy: str) -> None:
        axes.errorbar(
            [line[f"{prefix}flops"] for line in lines],
            [100 * line[f"{accuracy}_mean"] for line in lines],
            yerr=[100 * line[f"{accuracy}_std"] for line in lines] if several else None,
            fmt=plots.MARKERS[marker % 12] + "-",
            color=color,
            linewidth=0.8,
            markersize=4,
            capsize=2,
            label=label,
        )

    def lines_of(arm: str, ratio: float) -> list[Line]:
        return [line for line in result["summary"] if (line["arm"], line["ratio"]) == (arm, ratio)]

    (_, color), *arms = [(arm, color) for color, arm in _arms(grid)]
    add("base", 0, color, lines_of(grid["arms"][0], grid["ratios"][0]), "base_", "base")
    for arm, color in arms:
        for marker, ratio in enumerate(grid["ratios"]):
            add(f"{arm}, {ratio:.0%}", marker, color, lines_of(arm, ratio), "", "accuracy")
    axes.set_xlim(left=0)
    axes.set_xlabel("training FLOPs of all stages; theoretical: pruned weights counted as free", fontsize=9)
    axes.set_ylabel("test accuracy, %")
    amounts = ", ".join(f"{amount:.0%}" for amount in grid["amounts"])
    axes.set_title(f"{_heading(result)}; along a line: {amounts} pruned", fontsize=10)
    plots.finish(figure, panels, None, 9)
    return figure


def sparsity(result: Line) -> Figure:
    """Share of zeros of every layer, a panel for the base and for each arm at the smallest ratio, mean over seeds.

    Ranked layer by layer all layers lose the same share; with a global ranking this shows which ones lose more.
    """
    grid = result["grid"]
    arms, ratio = [arm for _, arm in _arms(grid)], min(grid["ratios"])
    figure, panels = _panels(1, len(arms))
    for axes, arm in zip(panels[0], arms, strict=True):
        for number, amount in enumerate(grid["amounts"]):
            layers = [cell["layers"] for cell in _cells(result, arm, ratio, amount)]
            means = [100 * fmean(zeros[name] for zeros in layers) for name in layers[0]]
            style = {"marker": "o", "markersize": 3, "color": f"C{number % 10}", "linewidth": 1}
            axes.plot(range(len(means)), means, label=f"{amount:.0%} pruned", **style)
        axes.set_title(arm if arm == "base" else f"{arm}, {ratio:.0%} of the data", fontsize=8)
    ranked = {"layer": "layer by layer", "global": "all together"}[result["scope"]]
    _finish(figure, panels, f"{_heading(result)}: zeros of each layer, ranked {ranked}", "layer, in order")
    names = list(result["cells"][0]["layers"])
    if len(names) <= 8:
        for axes in panels[0]:
            axes.set_xticks(range(len(names)), names, rotation=45, fontsize=7)
    panels[0, 0].set_ylabel("zeros, %", fontsize=8)
    return figure


FIGURES: Mapping[str, Callable[[Line], Figure]] = {
    plot.__name__: plot for plot in (fine_tuning, before_and_after, flops, sparsity)
}


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    return plots.panels(rows, columns, (1 + 2.2 * columns, 1 + 1.8 * rows), sharex=True, sharey="row")


def _band(axes: Axes, epochs: Sequence[int], curves: Sequence[Sequence[float]], color: str, label: str | None) -> None:
    means, spread = zip(*(moments([100 * value for value in values]) for values in zip(*curves, strict=True)))
    axes.plot(epochs, means, color=color, linewidth=1.2, label=label)
    if len(curves) > 1:
        low, high = ([mean + sign * around for mean, around in zip(means, spread)] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)


def _finish(figure: Figure, panels: Any, title: str, xlabel: str) -> None:
    for axes in panels.flat:
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[-1]:
        axes.set_xlabel(xlabel, fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy, %", fontsize=8)
    plots.finish(figure, panels, title, 9)


def _arms(grid: Line) -> list[tuple[str, str]]:
    """Colour and name of the base and of every arm."""
    return [("black", "base"), *((f"C{number % 10}", arm) for number, arm in enumerate(grid["arms"]))]


def _cells(result: Line, arm: str, ratio: float, amount: float) -> list[Line]:
    return [cell for cell in _of_arm(result["cells"], arm, ratio) if cell["amount"] == amount]


def _of_arm(lines: Sequence[Line], arm: str, ratio: float) -> list[Line]:
    """Lines of an arm at a ratio; the base was trained on all the data, whatever the ratio."""
    return [line for line in lines if line["arm"] == arm and (arm == "base" or line["ratio"] == ratio)]


def _heading(result: Line) -> str:
    return f"{setting(result)}, {counted(len(result['grid']['seeds']), 'seed')}"
