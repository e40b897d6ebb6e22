"""The table and the figure of a paper's experiment, measured beside published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from .plots import MARKERS, write
from .significance import moments
from .tables import last_parts, percent


def table(result: Mapping[str, Any]) -> str:
    """Markdown of what `result.json` holds: a table for each panel, a line for each arm, a column for each keep.

    What the paper prints stands in brackets; a run that has not been made yet is a gap.
    """
    text = [
        f"# {result['name']}",
        "",
        ". ".join(filter(None, (result["source"], result["claim"]))),
        "",
        f"Measured: {_scale(result)}.",
    ]
    if result["note"]:
        text[-1] += f" {result['note']}"
    summary = {(line["panel"], line["keep"], line["arm"]): line for line in result.get("summary", [])}
    for panel in result["panels"]:
        head = [f"keep {keep:g}" for keep in result["keep"]]
        spread = "mean ± standard deviation" if result["seeds"] > 1 else "one seed"
        spread += "; in brackets the paper's" if result["published"].get(panel) else ""
        text += ["", f"## {panel}", "", f"Accuracy in percent, {spread}.", ""]
        text += [_row(["", *head, "steps"]), _row(["---"] * (len(head) + 2))]
        for arm in result["arms"]:
            lines = [summary.get((panel, keep, arm)) for keep in result["keep"]]
            published = result["published"].get(panel, {}).get(arm, [])
            cells = [
                _cell(line, published[place] if place < len(published) else None) for place, line in enumerate(lines)
            ]
            steps = ", ".join(f"{line['steps']:,.0f}" for line in lines if line)
            text.append(_row([arm, *cells, steps]))
    if _uneven(result):
        text += ["", "Not all arms but `full` take as many steps: such accuracies are not of equal compute."]
    return "\n".join(text) + "\n"


def _uneven(result: Mapping[str, Any]) -> bool:
    """Whether arms but `full` differ in steps by more than what rounds off."""
    methods = {row["arm"]: row["method"] for row in result.get("rows", [])}
    steps: dict[tuple[str, float], list[float]] = {}
    for line in result.get("summary", []):
        if methods.get(line["arm"]) != "full":
            steps.setdefault((line["panel"], line["keep"]), []).append(line["steps"])
    return any(max(every) > 1.02 * min(every) for every in steps.values())


def figure(result: Mapping[str, Any], path: Path) -> list[Path]:
    """What the experiment shows, a column for each panel; the paper's accuracies below ours.

    Args:
        result: what `result.json` holds.
        path: without suffix; `.svg` and `.png` are written.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # names of panels and arms are text, whatever is in them
        return write(_drawn(result), path)


def _drawn(result: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    panels, draw = list(result["panels"]), _DRAWN[result["show"]]
    rows = draw.rows(result)
    columns = len(panels) if len(rows) > 1 or len(panels) <= 4 else -(-len(panels) // 2)
    lines = -(-len(rows) * len(panels) // columns)
    drawn = Figure(figsize=(2.2 + 3.6 * columns, 0.8 + 2.9 * lines), layout="constrained")
    every = drawn.subplots(lines, columns, squeeze=False)
    for axes in every.flat[len(rows) * len(panels) :]:
        axes.set_axis_off()
    for (row, panel), axes in zip([(row, panel) for row in rows for panel in panels], every.flat):
        draw(result, panel, row, axes)
        if not axes.has_data():  # of this panel the paper prints nothing
            axes.set_axis_off()
            continue
        axes.set_title(f"{panel}: {row}" if row else panel, fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    names: dict[str, Any] = {}
    for axes in every.flat:
        names |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    if names:
        drawn.legend(names.values(), names.keys(), loc="outside right center", frameon=False, fontsize=8)
    drawn.suptitle(f"{result['name']}, {_scale(result)}", fontsize=10)
    return drawn


class _Accuracy:
    """Accuracy against the share of the data that is kept, at a single one arm by arm; below it that of the paper."""

    def rows(self, result: Mapping[str, Any]) -> list[str]:
        return ["measured"] + ["published"] * any(result["published"].values())

    def __call__(self, result: Mapping[str, Any], panel: str, row: str, axes: Any) -> None:
        single = len(result["keep"]) == 1
        for number, arm in enumerate(result["arms"]):
            if row == "published":
                values = result["published"].get(panel, {}).get(arm, [])
                points = [(keep, value, 0.0) for keep, value in zip(result["keep"], values) if value is not None]
            else:
                lines = [line for line in result["summary"] if (line["panel"], line["arm"]) == (panel, arm)]
                points = [(line["keep"], 100 * line["accuracy_mean"], 100 * line["accuracy_std"]) for line in lines]
            if not points:
                continue
            keeps, means, spread = zip(*sorted(points))
            axes.errorbar(
                [number] if single else _beside(result, keeps, number, len(result["arms"])), means,
                yerr=spread if row == "measured" and result["seeds"] > 1 else None,
                color=_colour(number), marker=_marker(number), markersize=4, capsize=2, linewidth=1,
                label=None if single else arm,
            )  # fmt: skip
        if single:
            axes.set_xticks(range(len(result["arms"])), result["arms"], rotation=40, ha="right", rotation_mode="anchor")
            axes.set_xlabel(f"at keep {result['keep'][0]:g}", fontsize=8)
        else:
            _name_keeps(result, axes)
        axes.set_ylabel("test accuracy, %", fontsize=8)


class _Difference:
    """Accuracy minus that of `short`, seed by seed, against the share of the data that is kept."""

    def rows(self, result: Mapping[str, Any]) -> list[str]:
        return [""]

    def __call__(self, result: Mapping[str, Any], panel: str, row: str, axes: Any) -> None:
        at = {(r["keep"], r["arm"], r["seed"]): r["accuracy"] for r in result["rows"] if r["panel"] == panel}
        axes.axhline(0, color="black", linewidth=1, label="short: all data, as many steps")
        others = [arm for arm in result["arms"] if arm not in ("short", "full")]
        for number, arm in enumerate(others):
            points = []
            for keep in sorted(result["keep"]):
                seeds = [seed for k, a, seed in at if (k, a) == (keep, arm) and (keep, "short", seed) in at]
                values = [100 * (at[keep, arm, seed] - at[keep, "short", seed]) for seed in seeds]
                if values:
                    points.append((keep, *moments(values)))
            if points:
                keeps, y, spread = zip(*points)
                x = _beside(result, keeps, number, len(others))
                axes.errorbar(x, y, yerr=spread, color=_colour(number), marker=_marker(number), markersize=4,
                              capsize=2, linewidth=1, label=arm)  # fmt: skip
        _name_keeps(result, axes)
        axes.set_ylabel("points above short", fontsize=8)


def _beside(result: Mapping[str, Any], keeps: Sequence[float], number: int, arms: int) -> list[float]:
    """Where an arm's points stand: each keep is a place, and arms stand close beside one another there."""
    order = sorted(result["keep"])
    return [order.index(keep) + 0.03 * (number - (arms - 1) / 2) for keep in keeps]


def _name_keeps(result: Mapping[str, Any], axes: Any) -> None:
    axes.set_xticks(range(len(result["keep"])), [f"{keep:g}" for keep in sorted(result["keep"])])
    axes.set_xlabel("keep", fontsize=8)


class _Series:
    """Lines out of `kept`: a column of numbers against another, or against their position."""

    def __init__(self, columns: Mapping[str, str], below: str, along: str | None = None):
        self.columns, self.below, self.along = columns, below, along

    def rows(self, result: Mapping[str, Any]) -> list[str]:
        return list(self.columns)

    def __call__(self, result: Mapping[str, Any], panel: str, row: str, axes: Any) -> None:
        for line in result["kept"][panel]:
            number = result["arms"].index(line["arm"])
            name = line["arm"] if len(result["keep"]) == 1 else f"{line['arm']}, keep {line['keep']:g}"
            values = [100 * value for value in line[row]] if row == "accuracy" else line[row]
            along = line[self.along] if self.along else range(len(values))
            style = ("-", "--", ":", "-.")[result["keep"].index(line["keep"]) % 4]
            axes.plot(along, values, linestyle=style, color=_colour(number), linewidth=1.2, label=name)
        if self.along is None:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(self.below, fontsize=8)
        axes.set_ylabel(self.columns[row], fontsize=8)


_DRAWN: dict[str, Any] = {
    "accuracy": _Accuracy(),
    "difference": _Difference(),
    "selections": _Series({"samples": "samples"}, "epochs in which a sample was selected"),
    "loss": _Series({"loss": "training loss"}, "epoch"),
    "interpolation": _Series(
        {"loss": "training loss", "accuracy": "test accuracy, %"}, "ε, from initial to final weights", "epsilon"
    ),
}


def _scale(result: Mapping[str, Any]) -> str:
    plan = result.get("plan", {})
    parts = [plan.get("settings", {}), *plan.get("panels", {}).values()]
    models = dict.fromkeys(last_parts(part["model"]) for part in parts if "model" in part)
    seeds = f"{result['seeds']} seed{'s' if result['seeds'] != 1 else ''}"
    return ", ".join([f"scale {result['scale']}", seeds, *models])


def _cell(line: Mapping[str, Any] | None, published: float | None) -> str:
    paper = f" ({published:g})" if published is not None else ""
    if line is None:
        return "–" + paper
    text = percent(line["accuracy_mean"], line["accuracy_std"], line["seeds"], 2)
    if "finetuned_accuracy_mean" in line:
        tuned = percent(line["finetuned_accuracy_mean"], line["finetuned_accuracy_std"], line["seeds"], 2)
        text += f"; fine-tuned {tuned}"
    return text + paper


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_COLOURS = (*(f"C{number}" for number in range(10)), "black", "gold", "navy", "lime", "maroon", "cyan", "indigo")


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _marker(number: int) -> str:
    return MARKERS[number % 12]
