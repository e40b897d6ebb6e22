"""Figures of data and network pruning together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plots import MARKERS, write
from .significance import moments
from .tables import setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every figure of `FIGURES` as SVG and PNG.

    Args:
        result: what `joint.json` holds, of a finished grid.
        folder: that they go to.
    """
    return [file for name, figure in FIGURES.items() for file in write(figure(result), folder / name)]


def fine_tuning(result: Mapping[str, Any]) -> Figure:
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


def before_and_after(result: Mapping[str, Any]) -> Figure:
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


def flops(result: Mapping[str, Any]) -> Figure:
    """Final accuracy against the FLOPs of all stages, scoring included; a line joins an arm and ratio."""
    from matplotlib.figure import Figure

    grid, summary = result["grid"], result["summary"]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    first = [line for line in summary if (line["arm"], line["ratio"]) == (grid["arms"][0], grid["ratios"][0])]
    names = {"flops": "base_flops", "accuracy_mean": "base_mean", "accuracy_std": "base_std"}
    series = {"base": [{name: line[of_base] for name, of_base in names.items()} for line in first]}
    series |= {
        f"{arm}, {ratio:.0%}": [line for line in summary if (line["arm"], line["ratio"]) == (arm, ratio)]
        for arm in grid["arms"]
        for ratio in grid["ratios"]
    }
    colors = {arm: color for color, arm in _arms(grid)}
    for number, (label, lines) in enumerate(series.items()):
        axes.errorbar(
            [line["flops"] for line in lines],
            [100 * line["accuracy_mean"] for line in lines],
            yerr=[100 * line["accuracy_std"] for line in lines] if len(grid["seeds"]) > 1 else None,
            fmt=MARKERS[max(number - 1, 0) % len(grid["ratios"]) % 12] + "-",
            color=colors[label.split(",")[0]],
            linewidth=0.8,
            markersize=4,
            capsize=2,
            label=label,
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("training FLOPs of all stages; theoretical: pruned weights counted as free", fontsize=9)
    axes.set_ylabel("test accuracy, %")
    amounts = ", ".join(f"{amount:.0%}" for amount in grid["amounts"])
    axes.set_title(f"{_heading(result)}; along a line: {amounts} pruned", fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def sparsity(result: Mapping[str, Any]) -> Figure:
    """Share of zeros of every layer, a panel for the base and for each arm at the smallest ratio, mean over seeds.

    Ranked layer by layer all layers lose the same share; with a global ranking this shows which ones lose more.
    """
    grid = result["grid"]
    arms, ratio = [arm for _, arm in _arms(grid)], min(grid["ratios"])
    figure, panels = _panels(1, len(arms))
    names: list[str] = []
    for axes, arm in zip(panels[0], arms, strict=True):
        for number, amount in enumerate(grid["amounts"]):
            layers = [cell["layers"] for cell in _cells(result, arm, ratio, amount)]
            names = list(layers[0])
            means = [100 * statistics.fmean(zeros[name] for zeros in layers) for name in names]
            style = {"marker": "o", "markersize": 3, "color": f"C{number % 10}", "linewidth": 1}
            axes.plot(range(len(names)), means, label=f"{amount:.0%} pruned", **style)
        axes.set_title(arm if arm == "base" else f"{arm}, {ratio:.0%} of the data", fontsize=8)
    ranked = {"layer": "layer by layer", "global": "all together"}[result["scope"]]
    _finish(figure, panels, f"{_heading(result)}: zeros of each layer, ranked {ranked}", "layer, in order")
    if len(names) <= 8:
        for axes in panels[0]:
            axes.set_xticks(range(len(names)), names, rotation=45, fontsize=7)
    panels[0, 0].set_ylabel("zeros, %", fontsize=8)
    return figure


FIGURES: Mapping[str, Callable[[Mapping[str, Any]], Figure]] = {
    plot.__name__: plot for plot in (fine_tuning, before_and_after, flops, sparsity)
}


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 2.2 * columns, 1 + 1.8 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")


def _band(axes: Axes, epochs: Sequence[int], curves: Sequence[Sequence[float]], color: str, label: str | None) -> None:
    means, spread = zip(*(moments([100 * value for value in values]) for values in zip(*curves, strict=True)))
    axes.plot(epochs, means, color=color, linewidth=1.2, label=label)
    if len(curves) > 1:
        low, high = ([mean + sign * around for mean, around in zip(means, spread)] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)


def _finish(figure: Figure, panels: Any, title: str, xlabel: str) -> None:
    figure.suptitle(title, fontsize=10)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[-1]:
        axes.set_xlabel(xlabel, fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy, %", fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def _arms(grid: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Colour and name of the base and of every arm."""
    return [("black", "base"), *((f"C{number % 10}", arm) for number, arm in enumerate(grid["arms"]))]


def _cells(result: Mapping[str, Any], arm: str, ratio: float, amount: float) -> list[Mapping[str, Any]]:
    return [cell for cell in _of_arm(result["cells"], arm, ratio) if cell["amount"] == amount]


def _of_arm(lines: Sequence[Mapping[str, Any]], arm: str, ratio: float) -> list[Mapping[str, Any]]:
    """Lines of an arm at a ratio; the base was trained on all the data, whatever the ratio."""
    return [line for line in lines if line["arm"] == arm and (arm == "base" or line["ratio"] == ratio)]


def _heading(result: Mapping[str, Any]) -> str:
    seeds = len(result["grid"]["seeds"])
    return f"{setting(result)}, {seeds} seed{'s' if seeds != 1 else ''}"
