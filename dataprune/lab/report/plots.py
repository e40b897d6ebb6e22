"""The report's figures: readable on a phone, with colours that a page can exchange for a dark theme's."""

from __future__ import annotations

import io
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

from ...files import write_bytes
from .formatting import heading, mean_score, metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of methods, in this order and then again; each at least 3:1 against white. page.css has the same for both themes
COLORS = ("#0067a5", "#c75000", "#00755a", "#a03a7e", "#7a6200", "#4d5a66", "#c2185b", "#5e35b2")
MARKERS = "osD^v<>Ph*Xp"
_INK, _GRID = "#101418", "#d5d9de"
_WIDTH = 4.4  # inches: a phone shows it at its size
_STYLE = Path(__file__).with_name("report.mplstyle")

Curve = tuple[str, str, Sequence[float]]  # label, colour, values


def colors(result: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each method, the same in all figures of a comparison."""
    return {line["method"]: COLORS[place % len(COLORS)] for place, line in enumerate(result["summary"])}


@contextmanager
def styled(**settings: Any) -> Iterator[None]:
    """Draw in the report's style, with other settings of matplotlib by name, as a context or decorator."""
    from matplotlib import style

    with style.context([_STYLE, settings]):
        yield


@styled()
def accuracy(result: Mapping[str, Any], title: str | None = None) -> Figure:
    """Mean accuracy against samples trained, with standard deviations; `full` as a line across.

    Every point stands at its own number of samples; labels beside them are joined to them. A method far below the
    others is drawn at the lower edge, so that it does not flatten the rest. The title is by default the `heading`.
    """
    summary = sorted(result["summary"], key=lambda line: -line["accuracy_mean"])
    runs, color = Counter(row["method"] for row in result["runs"]), colors(result)
    names = {line["method"]: f"{line['method']}  {mean_score(result, line, digits=1)}" for line in summary}
    height = max(3.4, 0.16 * len(summary) + 1.2)
    figure, axes = _axes(height, 5.2 + 0.07 * max(max(map(len, color)) - 20, 0))
    most = max(line["samples"] + line.get("scoring_samples", 0) for line in summary)
    low, high = _limits(summary)
    axes.set(xlim=(0, 1.05 * most), ylim=(low, high))
    labels, inside = [], True
    for line in summary:
        value, spread, samples = 100 * line["accuracy_mean"], 100 * line["accuracy_std"], line["samples"]
        method, scoring = line["method"], line.get("scoring_samples")
        if method == "full":
            axes.axhline(value, color=_INK, linewidth=1)
            axes.axhspan(value - spread, value + spread, color=_INK, alpha=0.08, linewidth=0)
            axes.plot(samples, value, "o", color=_INK, markersize=5)
            end: Any = {"textcoords": "offset points", "ha": "right", "va": "bottom"}
            axes.annotate(names[method], (1.05 * most, value), (0, 3), **end)
            continue
        below, shown = value < low, max(value, low)
        yerr = spread if runs[method] > 1 and not below else None
        marker = {"fmt": "v" if below else MARKERS[len(labels) % 12], "markersize": 5, "capsize": 3}
        axes.errorbar(samples, shown, yerr=yerr, color=color[method], linewidth=1, clip_on=not below, **marker)
        if scoring:
            axes.plot([samples, samples + scoring], [shown] * 2, ":|", color=color[method], linewidth=0.8)
        labels.append((samples, shown, names[method] + " (below the axis)" * below, color[method]))
        inside = inside and not scoring and samples < 0.6 * most
    untrained = [100 * row["accuracy"] for row in result.get("untrained", [])]
    if untrained and (value := statistics.fmean(untrained)) >= low:
        axes.axhline(value, color=_INK, linestyle="--", linewidth=0.8)
        axes.annotate(f"untrained  {value:.1f}", (1.05 * most, value), ha="right", va="bottom")
    _label(axes, labels, height, inside=inside and "full" in names)
    xlabel = "samples trained, in all epochs together"
    return _finished(figure, axes, title or heading(result), xlabel, f"test {metric(result)}, %")


@styled()
def over_epochs(title: str, curves: Sequence[Curve], ylabel: str, x: Sequence[Sequence[float]] | None = None) -> Figure:
    """A line for each curve; against the epoch, or against the samples that `x` gives."""
    labels = [textwrap.fill(label, 56) for label, _, _ in curves]
    columns = 1 if max(map(len, labels)) > 14 else 4
    figure, axes = _axes(2.5 + 0.17 * sum(1 + label.count("\n") for label in labels) / columns)
    for place, (label, (_, color, values)) in enumerate(zip(labels, curves)):
        across = range(len(values)) if x is None else x[place]
        marker = {"marker": MARKERS[place % 12], "markersize": 3.5, "markevery": max(1, len(values) // 8)}
        axes.plot(across, values, color=color, linewidth=1.3, label=label, **marker)
    if max((abs(value) for _, _, values in curves for value in values), default=0) >= 1000:
        _thousands(axes.yaxis)
    figure.legend(loc="outside lower center", ncols=columns, handletextpad=0.4, columnspacing=1)
    return _finished(figure, axes, title, "epoch" if x is None else "samples trained", ylabel)


@styled()
def histogram(title: str, counts: np.ndarray, color: str) -> Figure:
    """Samples by the number of pruned epochs that selected them; the bar of samples never selected is hatched."""
    figure, axes = _axes(2.1)
    bars = axes.bar(range(len(counts)), counts, width=0.85 if len(counts) < 60 else 1.0, color=color)
    bars[0].set(hatch="////", facecolor="none", edgecolor=color)
    axes.grid(axis="x", visible=False)
    _thousands(axes.yaxis)
    return _finished(figure, axes, title, "pruned epochs that selected a sample", "samples")


@styled()
def bands(title: str, quantiles: np.ndarray, color: str, ylabel: str) -> Figure:
    """Quantiles (T, 5) of every epoch: the median, half of the samples around it, and nine tenths."""
    figure, axes = _axes(2.3)
    epochs = np.arange(len(quantiles))
    for low, high, alpha in ((0, 4, 0.18), (1, 3, 0.3)):
        axes.fill_between(epochs, quantiles[:, low], quantiles[:, high], color=color, alpha=alpha, linewidth=0)
    axes.plot(epochs, quantiles[:, 2], color=color, linewidth=1.6)
    return _finished(figure, axes, title, "epoch", ylabel)


@styled()
def singles(title: str, values: np.ndarray, color: str, ylabel: str) -> Figure:
    """Scores (T, F) of single samples."""
    figure, axes = _axes(2.3)
    axes.plot(np.arange(len(values)), values, color=color, linewidth=0.7, alpha=0.65)
    return _finished(figure, axes, title, "epoch", ylabel)


@styled()
def gallery(title: str, images: Sequence[np.ndarray], captions: Sequence[str]) -> Figure:
    """Images (H, W) or (H, W, 3) side by side, six in a row, each with a caption below."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // 6)
    figure = Figure(figsize=(_WIDTH, _WIDTH / 6 * (1.4 * rows + 0.4)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(0.04, 0.35, title, fontsize=9, fontweight="bold", va="top")
    for place, (image, caption) in enumerate(zip(images, captions)):
        left, top = place % 6 + 0.04, -1.4 * (place // 6)
        extent = (left, left + 0.92, top - 0.92, top)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="none", extent=extent, aspect="auto")
        lines = [line if len(line) <= 16 else line[:15] + "…" for line in caption.split("\n")]
        axes.text(left + 0.46, top - 0.95, "\n".join(lines), ha="center", va="top", fontsize=6)
    axes.set(xlim=(0, 6), ylim=(-1.4 * rows, 0.4))  # a unit is the width of an image and its margin
    return figure


def panels(rows: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, Any]:
    """A figure and its (rows, columns) axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def finish(figure: Figure, panels: Any, title: str | None, fontsize: int) -> None:
    """Add a title, grids, and one legend of all panels beside them."""
    labels: dict[str, Any] = {}
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        labels |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    if labels:
        figure.legend(labels.values(), labels.keys(), loc="outside right center", frameon=False, fontsize=fontsize)
    if title:
        figure.suptitle(title, fontsize=10)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file, on white."""
    return _saved(figure, "dataprune", format="png", dpi=150, facecolor="white")


def write(figure: Figure, path: Path) -> list[Path]:
    """Write `path` with the suffixes .svg and .png, the same bytes for the same figure."""
    files = [path.with_name(path.name + suffix) for suffix in (".svg", ".png")]
    write_bytes(files[0], _saved(figure, "dataprune", format="svg", facecolor="white", metadata={"Date": None}))
    write_bytes(files[1], png(figure))
    return files


def svg(figure: Figure, name: str, description: str) -> str:
    """A figure as an element of a page, where `name` is unique: no background, colours and font of the page."""
    # ids follow from the salt: two figures must not share one
    text = _saved(figure, name, format="svg", transparent=True, metadata={"Date": None}).decode()
    text = text[text.index("<svg") :].replace("xlink:href", "href")
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>|<!--.*?-->\s*", "", text, flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    size = f"max-width: {1.9 * float(box[1].split()[2]):.0f}px"  # letters of the page's size in all figures
    label = escape(description, {'"': "&quot;"})
    head = f'<svg viewBox="{box[1]}" style="{size}" role="img" aria-label="{label}">'
    text = head + f"<title>{label}</title>" + text[text.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font: (?:(\d+|bold) )?([\d.]+px)[^;\"]*", r"font-size: \2", text)
    variables = {color: f"var(--c{place})" for place, color in enumerate(COLORS)}
    for color, variable in ({_INK: "currentColor", _GRID: "var(--grid)"} | variables).items():
        text = text.replace(color, variable)
    return re.sub(r"\n\s*", "\n", text)


def _saved(figure: Figure, salt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with styled(**{"svg.hashsalt": salt}):
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _axes(height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    figure, axes = panels(1, 1, (width, height))
    return figure, axes[0, 0]


def _finished(figure: Figure, axes: Axes, title: str, xlabel: str, ylabel: str) -> Figure:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    _thousands(axes.xaxis)
    return figure


def _limits(summary: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Limits of the y axis in percent: all methods but those far below the others."""
    means, spreads = (100 * np.array([line[f"accuracy_{name}"] for line in summary]) for name in ("mean", "std"))
    inside = means >= np.median(means) - 3 * max(means.max() - np.median(means), 1.0)
    least, most = (means - spreads)[inside].min(), (means + spreads)[inside].max()
    margin = max(0.08 * (most - least), 0.2)
    return float(least - margin), float(min(most + 1.6 * margin, 100.5))


def _label(axes: Axes, labels: Sequence[tuple[float, float, str, str]], height: float, *, inside: bool) -> None:
    """Write texts (x, y, text, colour), highest first, right of the points (`inside`) or the axes, joined by lines."""
    low, high = axes.get_ylim()
    _, end = axes.get_xlim()
    column = max(x for x, *_ in labels) + 0.07 * end if inside and labels else 1.03 * end
    gap = (high - low) * 0.16 / (height - 1.0)  # of a line of text
    places: list[float] = []
    for _, y, *_ in labels:
        places.append(min([y, *(place - gap for place in places[-1:])]))
    if places and places[-1] < low + gap / 2:  # the column starts at the lower edge, and pushes up what is above
        places[-1] = low + gap / 2
        for at in reversed(range(len(places) - 1)):
            places[at] = max(places[at], places[at + 1] + gap)
    for (x, y, text, color), place in zip(labels, places):
        axes.plot([x, column - 0.01 * end], [y, place], color=color, linewidth=0.5, alpha=0.6, clip_on=False)
        axes.text(column, place, text, color=color, va="center", ha="left")


def _thousands(axis: Any) -> None:
    """Whole numbers, few enough for a phone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter("{x:,.0f}")
