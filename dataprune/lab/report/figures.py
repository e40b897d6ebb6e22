"""Figures, each as SVG and PNG."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..training import run_folder
from .tables import percent, setting

MARKERS = "osD^v<>Ph*Xp"


def accuracy_against_samples(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Mean accuracy of each method, with its standard deviation, against the samples it back-propagated.

    Args:
        result: what `compare.json` holds.
        path: without suffix; `.svg` and `.png` are written, the same bytes for the same result.
    Returns:
        The two files.
    Raises:
        OSError: if they cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, max(4.2, 0.24 * len(result["summary"]))), layout="constrained")
    axes = figure.add_subplot()
    summary = sorted(result["summary"], key=lambda line: line["accuracy_mean"], reverse=True)
    most = max(line["samples"] for line in summary)
    # methods of one budget stand on one spot: spread them a little, in the order of their accuracy
    shift = _spread([line["samples"] for line in summary], most)
    end = max(line["samples"] + moved + line.get("scoring_samples", 0) for line, moved in zip(summary, shift))
    for number, (line, moved) in enumerate(zip(summary, shift, strict=True)):
        count = sum(row["method"] == line["method"] for row in result["runs"])
        value = percent(line["accuracy_mean"], line["accuracy_std"], count, 1)
        axes.errorbar(
            line["samples"] + moved,
            100 * line["accuracy_mean"],
            yerr=100 * line["accuracy_std"] if count > 1 else None,
            fmt=MARKERS[number % 12],
            color=f"C{number % 10}",
            capsize=3,
            label=f"{line['method']}  {value}",
        )
        if line.get("scoring_samples"):
            axes.plot(
                [line["samples"] + moved, line["samples"] + moved + line["scoring_samples"]],
                [100 * line["accuracy_mean"]] * 2,
                color=f"C{number % 10}",
                linewidth=0.8,
                linestyle=":",
                marker="|",
                markevery=[1],
            )
    if untrained := [row["accuracy"] for row in result.get("untrained", [])]:
        value = statistics.fmean(untrained)
        axes.axhline(100 * value, color="grey", linestyle="--", linewidth=0.8, label=f"untrained  {100 * value:.1f}")
    axes.set_xlim(0, max(1.08 * most, 1.02 * end))
    scored = any(line.get("scoring_samples") for line in summary)
    axes.set_xlabel(
        "samples back-propagated (methods with the same budget stand side by side)"
        + ("\ndotted: with the run that scores for static methods" if scored else "")
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel(f"test {result.get('metric', 'accuracy')}, %")
    seeds = len({row["seed"] for row in result["runs"]})
    axes.set_title(
        f"{setting(result)}: {result['epochs']} epochs, keep {result['keep']:.3g}, "
        f"{seeds} seed{'s' if seeds != 1 else ''}",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return write(figure, path)


def joint_fine_tuning(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Test accuracy after pruning and after every epoch of fine-tuning, with and without data selection.

    A panel for each ratio and amount; means over seeds, and a standard deviation to either side. Figure 1 of "Drop it
    like it's hot".

    Args:
        result: what `joint.json` holds.
        path: without suffix, as for `accuracy_against_samples`.
    Returns:
        The two files.
    """
    grid = result["grid"]
    figure, panels = _panels(len(grid["ratios"]), len(grid["amounts"]))
    for row, ratio in zip(panels, grid["ratios"], strict=True):
        for axes, amount in zip(row, grid["amounts"], strict=True):
            for color, arm in _arms(grid):
                curves = [one["curve"] for one in _cells(result, arm, ratio, amount)]
                # where nothing has been fine-tuned yet accuracies are so low that the rest could not be told apart
                _band(axes, range(1, len(curves[0])), [curve[1:] for curve in curves], color, arm)
            axes.set_title(f"{ratio:.0%} of the data, {amount:.0%} pruned", fontsize=8)
    _finish(figure, panels, f"{_what(result)}: fine-tuning after pruning", "epoch of fine-tuning")
    return write(figure, path)


def joint_stages(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Test accuracy over training and then, pruned, over fine-tuning, at the smallest ratio; a panel for each amount.

    Figure 2 of "Drop it like it's hot".

    Args:
        result: what `joint.json` holds.
        path: without suffix, as for `accuracy_against_samples`.
    Returns:
        The two files.
    """
    grid = result["grid"]
    ratio = min(grid["ratios"])
    figure, panels = _panels(1, len(grid["amounts"]))
    for axes, amount in zip(panels[0], grid["amounts"], strict=True):
        for color, arm in _arms(grid):
            trained = [one["curve"] for one in _of_arm(result["training"], arm, ratio)]
            tuned = [one["curve"] for one in _cells(result, arm, ratio, amount)]
            epochs = len(trained[0])
            _band(axes, range(1, epochs + 1), trained, color, arm)
            _band(axes, range(epochs, epochs + len(tuned[0])), tuned, color, None)
        axes.axvline(result["epochs"], color="grey", linewidth=0.8, linestyle=":")
        axes.set_title(f"{amount:.0%} pruned", fontsize=8)
    title = f"{_what(result)}\ntrained on {ratio:.0%} of the data, pruned (dotted line), fine-tuned"
    _finish(figure, panels, title, "epoch")
    return write(figure, path)


def joint_flops(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Final accuracy against the FLOPs of all stages, scoring included; a line joins the amounts of an arm and ratio.

    Args:
        result: what `joint.json` holds.
        path: without suffix, as for `accuracy_against_samples`.
    Returns:
        The two files.
    """
    from matplotlib.figure import Figure

    grid, summary = result["grid"], result["summary"]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    one_arm = [line for line in summary if (line["arm"], line["ratio"]) == (grid["arms"][0], grid["ratios"][0])]
    base = [{"flops": x["base_flops"], "accuracy_mean": x["base_mean"], "accuracy_std": x["base_std"]} for x in one_arm]
    drawn = {"base": base} | {
        f"{arm}, {ratio:.0%}": [line for line in summary if (line["arm"], line["ratio"]) == (arm, ratio)]
        for arm in grid["arms"]
        for ratio in grid["ratios"]
    }
    colors = {arm: color for color, arm in _arms(grid)}
    for number, (label, lines) in enumerate(drawn.items()):
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
    axes.set_title(
        f"{_what(result)}; along a line: {', '.join(f'{one:.0%}' for one in grid['amounts'])} pruned", fontsize=10
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return write(figure, path)


def joint_sparsity(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Share of zeros of every layer, a panel for the base and for each arm at the smallest ratio, mean over seeds.

    Ranked layer by layer all layers lose the same share; with a global ranking this shows which ones pay.

    Args:
        result: what `joint.json` holds.
        path: without suffix, as for `accuracy_against_samples`.
    Returns:
        The two files.
    """
    grid = result["grid"]
    arms, ratio = [arm for _, arm in _arms(grid)], min(grid["ratios"])
    figure, panels = _panels(1, len(arms))
    names: list[str] = []
    for axes, arm in zip(panels[0], arms, strict=True):
        for number, amount in enumerate(grid["amounts"]):
            cells = [cell["layers"] for cell in _cells(result, arm, ratio, amount)]
            names = list(cells[0])
            means = [100 * statistics.fmean(layers[name] for layers in cells) for name in names]
            axes.plot(range(len(names)), means, marker="o", markersize=3, color=f"C{number % 10}",
                      linewidth=1, label=f"{amount:.0%} pruned")  # fmt: skip
        axes.set_title(arm if arm == "base" else f"{arm}, {ratio:.0%} of the data", fontsize=8)
    title = f"{_what(result)}: zeros of each layer, ranked {_RANKED[result['scope']]}"
    _finish(figure, panels, title, "layer, in order")
    if len(names) <= 8:
        for axes in panels[0]:
            axes.set_xticks(range(len(names)), names, rotation=45, fontsize=7)
    panels[0, 0].set_ylabel("zeros, %", fontsize=8)
    return write(figure, path)


def _panels(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 2.2 * columns, 1 + 1.8 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")


def _band(axes: Any, epochs: Sequence[int], curves: Sequence[Sequence[float]], color: str, label: str | None) -> None:
    means = [100 * statistics.fmean(values) for values in zip(*curves, strict=True)]
    axes.plot(epochs, means, color=color, linewidth=1.2, label=label)
    if len(curves) > 1:
        around = [100 * statistics.stdev(values) for values in zip(*curves, strict=True)]
        low, high = ([mean + sign * one for mean, one in zip(means, around, strict=True)] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)


def _finish(figure: Any, panels: Any, title: str, below: str) -> None:
    figure.suptitle(title, fontsize=10)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[-1]:
        axes.set_xlabel(below, fontsize=8)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy, %", fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def _arms(grid: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Colour and name of the base and of every arm."""
    return [("black", "base"), *((f"C{number % 10}", arm) for number, arm in enumerate(grid["arms"]))]


def _cells(result: Mapping[str, Any], arm: str, ratio: float, amount: float) -> list[Mapping[str, Any]]:
    return [one for one in _of_arm(result["cells"], arm, ratio) if one["amount"] == amount]


def _of_arm(lines: Sequence[Mapping[str, Any]], arm: str, ratio: float) -> list[Mapping[str, Any]]:
    """The base was trained on all the data, whatever the ratio."""
    return [one for one in lines if one["arm"] == arm and (arm == "base" or one["ratio"] == ratio)]


def _what(result: Mapping[str, Any]) -> str:
    seeds = len(result["grid"]["seeds"])
    return f"{setting(result)}, {seeds} seed{'s' if seeds != 1 else ''}"


def write(figure: Any, path: Path) -> list[Path]:
    """As SVG and PNG, the same bytes for the same figure."""
    from matplotlib import rc_context

    files = [path.with_name(path.name + suffix) for suffix in (".svg", ".png")]
    for file in files:
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "dataprune"}):
            form = file.suffix[1:]
            figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
        run_folder.write(file, buffer.getvalue())
    return files


_RANKED = {"layer": "layer by layer", "global": "all together"}


def _spread(samples: Sequence[float], most: float) -> list[float]:
    """A shift for each, so that equal ones stand side by side."""
    shifts = []
    for number, value in enumerate(samples):
        alike = [place for place, other in enumerate(samples) if abs(other - value) < 0.01 * most]
        shifts.append(0.012 * most * (alike.index(number) - (len(alike) - 1) / 2))
    return shifts
