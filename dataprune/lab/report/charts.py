"""The report's charts: small enough for a phone, with colours that a page can exchange for a dark theme's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec
from xml.sax.saxutils import escape

import numpy as np

from .records import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

# of methods, in this order and then again; each at least 3:1 against white. page.html has the same for both themes
COLORS = ("#0067a5", "#c75000", "#00755a", "#a03a7e", "#7a6200", "#4d5a66", "#c2185b", "#5e35b2")
_INK, _GRID = "#101418", "#d5d9de"
_MARKERS = "osD^v<>Ph*Xp"
_WIDTH = 4.4  # inches: a phone shows it at its size
_STYLE: Any = {
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8.5,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,  # a $ in a name is a $
    "xtick.color": _INK,
    "ytick.color": _INK,
}

Curve = tuple[str, str, Sequence[float]]  # label, colour, values


def colors(group: Group) -> dict[str, str]:
    """A colour for each method, the same in all charts of a group."""
    return {line["method"]: COLORS[place % len(COLORS)] for place, line in enumerate(group.result["summary"])}


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **more: P.kwargs) -> Figure:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return draw(*args, **more)

    return styled


@_styled
def accuracy(group: Group) -> Figure:
    """Accuracy against samples trained: every seed a dot, the mean with its standard deviation, scoring dotted."""
    summary = sorted(group.result["summary"], key=lambda line: line["accuracy_mean"], reverse=True)
    columns = 2 if max(len(line["method"]) for line in summary) > 14 else 3
    figure, axes = _axes(2.7 + 0.17 * -(-len(summary) // columns))
    most, color = max(line["samples"] for line in summary), colors(group)
    spots = [round(line["samples"] / most, 2) for line in summary]
    for number, (line, spot) in enumerate(zip(summary, spots)):
        # methods of one budget stand side by side around it
        place = spots[:number].count(spot) - (spots.count(spot) - 1) / 2
        x = line["samples"] + 0.015 * most * place
        values = [100 * row["accuracy"] for row in group.result["runs"] if row["method"] == line["method"]]
        shade = color[line["method"]]
        axes.plot([x] * len(values), values, ".", color=shade, markersize=3, alpha=0.6)
        axes.errorbar(
            x,
            100 * line["accuracy_mean"],
            yerr=100 * line["accuracy_std"] if len(values) > 1 else None,
            fmt=_MARKERS[number % 12],
            color=shade,
            markersize=5,
            capsize=3,
            linewidth=1,
            label=line["method"],
        )
        if scoring := line.get("scoring_samples"):
            axes.plot([x, x + scoring], [100 * line["accuracy_mean"]] * 2, ":|", color=shade, linewidth=0.8)
    axes.set_xlim(0, 1.06 * axes.dataLim.x1)
    axes.set_xlabel("samples trained")
    axes.set_ylabel(f"test {group.metric}, %")
    _thousands(axes.xaxis)
    figure.legend(loc="outside lower center", ncols=columns, columnspacing=1, handletextpad=0.2)
    return figure


@_styled
def over_epochs(curves: Sequence[Curve], ylabel: str, x: Sequence[Sequence[float]] | None = None) -> Figure:
    """A line for each; against the epoch, or what `x` says."""
    figure, axes = _axes(2.4 + 0.17 * len(curves))
    for place, (label, color, values) in enumerate(curves):
        across = range(len(values)) if x is None else x[place]
        marker = _MARKERS[place % 12]
        every = max(1, len(values) // 8)
        axes.plot(
            across, values, color=color, linewidth=1.3, marker=marker, markersize=3.5, markevery=every, label=label
        )
    axes.set_xlabel("epoch" if x is None else "samples trained")
    axes.set_ylabel(ylabel)
    _thousands(axes.xaxis)
    if max((abs(value) for _, _, values in curves for value in values), default=0) >= 1000:
        _thousands(axes.yaxis)
    figure.legend(loc="outside lower center", ncols=1, handletextpad=0.4)
    return figure


@_styled
def histogram(counts: np.ndarray, color: str) -> Figure:
    """Samples by the number of pruned epochs that selected them; those that none did are hatched."""
    figure, axes = _axes(1.9)
    bars = axes.bar(range(len(counts)), counts, width=0.85 if len(counts) < 60 else 1.0, color=color)
    bars[0].set(hatch="////", facecolor="none", edgecolor=color)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("pruned epochs that selected a sample")
    axes.set_ylabel("samples")
    _thousands(axes.xaxis)
    _thousands(axes.yaxis)
    return figure


@_styled
def bands(quantiles: np.ndarray, color: str, ylabel: str) -> Figure:
    """Quantiles (T, 5) of every epoch: the median, half of the samples around it, and nine tenths."""
    figure, axes = _axes(2.1)
    epochs = np.arange(len(quantiles))
    for low, high, alpha in ((0, 4, 0.18), (1, 3, 0.3)):
        axes.fill_between(epochs, quantiles[:, low], quantiles[:, high], color=color, alpha=alpha, linewidth=0)
    axes.plot(epochs, quantiles[:, 2], color=color, linewidth=1.6)
    return _against_epochs(figure, axes, ylabel)


@_styled
def singles(values: np.ndarray, color: str, ylabel: str) -> Figure:
    """Scores (T, F) of single samples."""
    figure, axes = _axes(2.1)
    axes.plot(np.arange(len(values)), values, color=color, linewidth=0.7, alpha=0.65)
    return _against_epochs(figure, axes, ylabel)


def png(figure: Figure) -> bytes:
    """As a file, on white."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def svg(figure: Figure, name: str, told: str) -> str:
    """As an element of a page: no background, colours from the page, its text the page's font.

    Args:
        figure: of this module.
        name: unique in the page.
        told: what it shows, for who cannot see it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(_STYLE | {"svg.hashsalt": name}):  # ids follow from the salt: two charts must not share one
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = text.replace("xlink:href", "href")
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(told, {chr(34): "&quot;"})}">'
    text = head + f"<title>{escape(told)}</title>" + text[text.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    exchanged: Mapping[str, str] = {
        _INK: "currentColor",
        _GRID: "var(--grid)",
        **{color: f"var(--c{place})" for place, color in enumerate(COLORS)},
    }
    for color, variable in exchanged.items():
        text = text.replace(color, variable)
    return re.sub(r"\n\s*", "\n", text)


def _axes(height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _against_epochs(figure: Figure, axes: Any, ylabel: str) -> Figure:
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    _thousands(axes.xaxis)
    return figure


def _thousands(axis: Any) -> None:
    """Whole numbers, few enough for a phone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter("{x:,.0f}")
