"""The table and the figure of a paper's experiment, measured beside published."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from . import plots
from .document import by_position, pipe_table
from .formatting import counted, last_parts, percent
from .significance import moments

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
Point = tuple[float, float, float]  # keep, value, deviation

_COLOURS = (*(f"C{number}" for number in range(10)), "black", "gold", "navy", "lime", "maroon", "cyan", "indigo")
_SERIES: dict[str, tuple[dict[str, str], str, str]] = {  # columns of `kept` with their labels; the x axis, its column
    "selections": ({"samples": "samples"}, "epochs in which a sample was selected", ""),
    "loss": ({"loss": "training loss", "accuracy": "training accuracy, %"}, "epoch", ""),
    "interpolation": (
        {"loss": "training loss", "accuracy": "test accuracy, %"},
        "ε, from initial to final weights",
        "epsilon",
    ),
}


def table(result: Result) -> str:
    """Markdown of what `result.json` holds: a table for each panel, a line for each arm, a column for each keep.

    What the paper prints stands in brackets; a run that has not been made yet is a gap.
    """
    source = ". ".join(filter(None, (result["source"], result["claim"])))
    measured = " ".join(filter(None, (f"Measured: {_scale(result)}.", result["note"])))
    text = [f"# {result['name']}", "", source, "", measured]
    summary = {(line["panel"], line["keep"], line["arm"]): line for line in result.get("summary", [])}
    for panel in result["panels"]:
        published = result["published"].get(panel, {})
        spread = "mean ± standard deviation" if result["seeds"] > 1 else "one seed"
        spread += "; in brackets the paper's" if published else ""
        rows = []
        for arm in result["arms"]:
            lines = [summary.get((panel, keep, arm)) for keep in result["keep"]]
            printed = [*published.get(arm, []), *[None] * len(lines)]
            row = {"": arm.replace("|", "\\|")}
            row |= {
                f"keep {keep:g}": _cell(line, paper) + _reached(result, panel, keep, arm)
                for keep, line, paper in zip(result["keep"], lines, printed)
            }
            rows.append(row | {"steps": ", ".join(f"{line['steps']:,.0f}" for line in lines if line)})
        text += ["", f"## {panel}", "", f"Accuracy in percent, {spread}.", "", pipe_table(*by_position(rows))]
    if _uneven(result):
        text += ["", "Not all arms but `full` take as many steps: such accuracies are not of equal compute."]
    return "\n".join([*text, *deviations(result)]) + "\n"


def deviations(result: Result) -> list[str]:
    """Lines of Markdown: which settings are not the paper's, and why."""
    lines = [f"- {name}: {reason}" for name, reason in result.get("differs", {}).items()]
    return ["", "Not as in the paper:", "", *lines] if lines else []


def _reached(result: Result, panel: str, keep: float, arm: str) -> str:
    """The share of the data that was kept in pruned epochs, of a method that does not reach `keep`."""
    rows = [row for row in result.get("rows", []) if (row["panel"], row["keep"], row["arm"]) == (panel, keep, arm)]
    kept = fmean(row["reached_keep"] for row in rows) if rows else keep
    return f", kept {kept:.2f}" if abs(kept - keep) > 0.005 and kept < 1 else ""


def _cell(line: Mapping[str, Any] | None, published: float | None) -> str:
    paper = f" ({published:g})" if published is not None else ""
    if line is None:
        return "–" + paper
    names = {"accuracy": "", "finetuned_accuracy": "; fine-tuned "}
    shown = [
        prefix + percent(line[f"{name}_mean"], line[f"{name}_std"], line["seeds"])
        for name, prefix in names.items()
        if f"{name}_mean" in line
    ]
    return "".join(shown) + paper


def _uneven(result: Result) -> bool:
    """Whether arms but `full` differ in steps by more than what rounds off."""
    methods = {row["arm"]: row["method"] for row in result.get("rows", [])}
    steps: dict[tuple[str, float], list[float]] = defaultdict(list)
    for line in result.get("summary", []):
        if methods.get(line["arm"]) != "full":
            steps[line["panel"], line["keep"]].append(line["steps"])
    return any(max(every) > 1.02 * min(every) for every in steps.values())


def figure(result: Result, path: Path) -> list[Path]:
    """Write what the experiment shows as `path` with the suffixes .svg and .png: a column for each panel.

    Accuracies that the paper prints are below those that were measured.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # names of panels and arms are text, whatever is in them
        return plots.write(_figure(result), path)


def _figure(result: Result) -> Figure:
    names, rows = list(result["panels"]), _rows(result)
    columns = len(names) if len(rows) > 1 or len(names) <= 4 else -(-len(names) // 2)
    lines = -(-len(rows) * len(names) // columns)
    drawn, panels = plots.panels(lines, columns, (2.2 + 3.6 * columns, 0.8 + 2.9 * lines))
    for (row, panel), axes in zip([(row, panel) for row in rows for panel in names], panels.flat):
        rows[row](result, panel, axes)
        axes.set_title(f"{panel}: {row}" if row else panel, fontsize=9)
        axes.tick_params(labelsize=8)
    plots.finish(drawn, panels, f"{result['name']}, {_scale(result)}", 8)
    for axes in panels.flat:
        axes.set_visible(axes.has_data())  # of some panels the paper prints nothing
    return drawn


def _rows(result: Result) -> dict[str, Callable[[Result, str, Axes], None]]:
    """What draws a panel in each row of the figure, by the row's title."""
    show = result["show"]
    if show in _SERIES:
        drawn = next(iter(result["kept"].values()))[0]
        return {column: partial(_draw_series, column=column) for column in _SERIES[show][0] if column in drawn}
    tuned = any("finetuned_accuracy_mean" in line for line in result["summary"])
    points: dict[str, Callable[..., list[Point]]] = {"measured": _measured}
    if show == "difference":
        points = {"": _above_short}
    elif tuned:  # what papers print is of the whole classifier, fine-tuned
        points = {"linear probe": _measured, "fine-tuned": partial(_measured, metric="finetuned_accuracy")}
    if show == "accuracy" and any(result["published"].values()):
        points["published, fine-tuned" if tuned else "published"] = _published
    return {row: partial(_draw_arms, points_of=points_of) for row, points_of in points.items()}


def _draw_arms(result: Result, panel: str, axes: Axes, points_of: Callable[..., list[Point]]) -> None:
    """Values against the share of the data that is kept, arms close beside one another; at a single one arm by arm."""
    arms, keeps = result["arms"], sorted(result["keep"])
    single = len(keeps) == 1
    if points_of is _above_short:
        arms, single = [arm for arm in arms if arm not in ("short", "full")], False
        axes.axhline(0, color="black", linewidth=1, label="short: all data, as many steps")
    for number, arm in enumerate(arms):
        points = sorted(points_of(result, panel, arm))
        if not points:
            continue
        at, values, spread = zip(*points)
        x = [number] if single else [keeps.index(keep) + 0.03 * (number - (len(arms) - 1) / 2) for keep in at]
        marker = {"marker": plots.MARKERS[number % 12], "markersize": 4, "capsize": 2, "linewidth": 1}
        yerr = spread if any(spread) else None
        axes.errorbar(
            x, values, yerr=yerr, color=_COLOURS[number % len(_COLOURS)], label=None if single else arm, **marker
        )
    if single:
        axes.set_xticks(range(len(arms)), arms, rotation=40, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(len(keeps)), [f"{keep:g}" for keep in keeps])
    axes.set_xlabel(f"at keep {keeps[0]:g}" if single else "keep", fontsize=8)
    axes.set_ylabel("points above short" if points_of is _above_short else "test accuracy, %", fontsize=8)


def _measured(result: Result, panel: str, arm: str, metric: str = "accuracy") -> list[Point]:
    lines = [line for line in result["summary"] if (line["panel"], line["arm"]) == (panel, arm)]
    return [(line["keep"], 100 * line[f"{metric}_mean"], 100 * line[f"{metric}_std"]) for line in lines]


def _published(result: Result, panel: str, arm: str) -> list[Point]:
    values = zip(result["keep"], result["published"].get(panel, {}).get(arm, []))
    return [(keep, value, 0.0) for keep, value in values if value is not None]


def _above_short(result: Result, panel: str, arm: str) -> list[Point]:
    """Accuracy minus that of `short`, seed by seed."""
    at = {(row["keep"], row["seed"], row["arm"]): row["accuracy"] for row in result["rows"] if row["panel"] == panel}
    differences: dict[float, list[float]] = defaultdict(list)
    for (keep, seed, name), value in at.items():
        if name == arm and (keep, seed, "short") in at:
            differences[keep].append(100 * (value - at[keep, seed, "short"]))
    return [(keep, *moments(values)) for keep, values in differences.items()]


def _draw_series(result: Result, panel: str, axes: Axes, column: str) -> None:
    """Lines out of `kept`: a column of numbers against another, or against their position."""
    columns, xlabel, along = _SERIES[result["show"]]
    for line in result["kept"][panel]:
        name = line["arm"] if len(result["keep"]) == 1 else f"{line['arm']}, keep {line['keep']:g}"
        values = [100 * value for value in line[column]] if column == "accuracy" else line[column]
        style = ("-", "--", ":", "-.")[result["keep"].index(line["keep"]) % 4]
        color = _COLOURS[result["arms"].index(line["arm"]) % len(_COLOURS)]
        x = line[along] if along else range(len(values))
        axes.plot(x, values, linestyle=style, color=color, linewidth=1.2, label=name)
    if not along:
        axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(columns[column], fontsize=8)


def _scale(result: Result) -> str:
    plan = result.get("plan", {})
    parts = [plan.get("settings", {}), *plan.get("panels", {}).values()]
    models = dict.fromkeys(last_parts(part["model"]) for part in parts if "model" in part)
    return ", ".join([f"scale {result['scale']}", counted(result["seeds"], "seed"), *models])
