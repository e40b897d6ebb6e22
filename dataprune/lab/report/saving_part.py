"""How savings at equal accuracy are shown: in sentences, tables, a figure, and as a part of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import plots
from .document import Chart, Part, Table
from .formatting import counted, metric, percent, points, setting, share
from .saving import NOT_TOLD, SHORT, seeds_needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .document import Block

Line = Mapping[str, Any]
_NAMES = {SHORT: "all the data for fewer steps", "rs2": "a random subset in every epoch (`rs2`)"}
_INK = "#101418"


def sentence(result: Line) -> str:
    """What each method saves, the best first, `short` and `rs2` last."""
    lines = sorted(result["saving"], key=lambda line: (line["method"] in _NAMES, -(line["saved"] or 0.0)))
    told = [line for line in lines if line["saved"] is not None]
    texts = [f"{name(line['method'])} {_saves(result, line)}" for line in told]
    text = f"On this data {', '.join(texts)}." if told else ""
    untold = [name(line["method"]) for line in lines if line["saved"] is None]
    if untold:
        text += f" Not told for {', '.join(untold)}: {_needed(result)}."
    return text.strip()


def power(
    deviation: float, margin: float, samples: int, *, least: int = 2, seeds: str = "--max-seeds", what: str = "test"
) -> str:
    """Why something is not told, and what to do: `least` seeds or more, by the option `seeds`."""
    between = (
        f"on {samples:,} {what} samples the difference of two runs varies by {100 * deviation:.2f} points from seed to "
        "seed"
    )
    count = seeds_needed(deviation, margin / 100)
    if count is None:
        return f"{between}, too much for a margin of {margin:g}: more {what} samples, or a larger --margin"
    return f"{between}; try {seeds} {max(count, least)}, more {what} samples, or a larger --margin"


def remarks(result: Line) -> list[str]:
    """Sentences on what the savings mean: beyond `short`, and whether `full` has converged."""
    texts = []
    beyond = sorted(
        (line for line in result["saving"] if line.get("beyond_short")), key=lambda line: -line["beyond_short"]["saved"]
    )
    if beyond:
        parts = [f"`{line['method']}` {_percent(line['beyond_short'], signed=True)}" for line in beyond]
        texts.append(f"Beyond what all the data for fewer steps saves: {', '.join(parts)}.")
    elif SHORT not in {line["method"] for line in result["saving"]}:
        texts.append(
            "What a method saves beyond all the data for fewer steps is not known without runs of short: add it to "
            "--methods."
        )
    return [
        *texts,
        convergence(result),
        f"Level: surely (95 %) less than {_margin(result)} below full, paired by seed.",
    ]


def convergence(result: Line) -> str:
    """Whether more epochs help `full`."""
    line = result["converged"]
    if line is None:
        return "Whether full has converged was not tried (--longer): savings hold against full as it was trained."
    gain = f"{line['budget']:g} times the epochs give {points(line['gain'])} ± {100 * line['error']:.2f} points"
    seeds = counted(line["seeds"], "seed")
    return {
        "converged": f"full has converged: {gain} ({seeds}), less than the margin.",
        "not converged": f"full has not converged: {gain} ({seeds}), so savings are against a run that stopped early; "
        "raise --epochs.",
    }.get(line["state"], f"Whether full has converged is not told by {seeds}: {gain}.")


def table_rows(result: Line) -> list[dict[str, str]]:
    """A row for `full` and for each method: what it saves, and what it costs at its smallest level budget.

    A method that is level at no budget, or of which that is not told, has the numbers of its largest one.
    """
    full, what = result["full"], f"{metric(result)}, %"
    row = {"method": "full", "saves": "", "beyond short": "", "budget": "1", what: ""}
    rows = []
    if full is not None:
        row[what] = percent(full["accuracy_mean"], full["accuracy_std"], full["seeds"])
        rows.append({**row, "minus full": "", "seeds": str(full["seeds"]), **_costs(full)})
    for line in result["saving"]:
        cells = [cell for cell in result["cells"] if cell["method"] == line["method"]]
        budget = line["budget"] or max((cell["budget"] for cell in cells), default=None)
        cell = next((cell for cell in cells if cell["budget"] == budget), None)
        row = {"method": line["method"], "saves": _told(result, line)}
        row["beyond short"] = _percent(line["beyond_short"], signed=True) if line.get("beyond_short") else ""
        row["budget"] = "–" if cell is None else f"{budget:g}"
        if cell is not None:
            row[what] = f"{100 * cell['accuracy']:.2f}"
            row["minus full"] = f"{points(cell['difference'])} ± {100 * cell['error']:.2f}"
            row |= {"seeds": str(cell["seeds"]), **_costs(cell)}
        rows.append(row)
    return rows


def cell_rows(result: Line) -> list[dict[str, str]]:
    """A row for each method and budget."""
    return [
        {
            "method": cell["method"],
            "budget": f"{cell['budget']:g}",
            f"{metric(result)}, %": percent(cell["accuracy_mean"], cell["accuracy_std"], cell["seeds"]),
            "minus full, points": f"{points(cell['difference'])} ± {100 * cell['error']:.2f}",
            "monotone fit": points(cell["fitted"]),
            "within": f"± {100 * cell['half']:.2f}",
            "decision": cell["state"],
            "seeds": str(cell["seeds"]),
            **_costs(cell),
        }
        for cell in result["cells"]
    ]


def heading(result: Line) -> str:
    """Data and model, epochs and margin."""
    return f"{setting(result)}: {result['epochs']} epochs, level within {_margin(result)}"


def part(source: str, result: Line) -> Part:
    """The part of a report on what saving.json holds, from the folder or file `source`."""
    said, *more = (text.replace("`", "") for text in (sentence(result), *remarks(result)))
    described = f"Test {metric(result)} against compute. {said}"
    first: list[Block] = [[Chart("saving", described, figure(result))]] if result["cells"] else []
    first += [Table("Saved at the smallest level budget", table_rows(result)), " ".join(more)]
    every = Table("Every budget", cell_rows(result), folded=True)
    note = (
        "Decisions compare the monotone fit of the differences, and its one-sided 95 % intervals, with the margin. "
        "Errors are standard errors of the mean difference, paired by seed, by moderated t."
    )
    return Part(
        f"What is saved at equal accuracy – {heading(result)}", source, said, first, {"Decisions": [every, note]}
    )


@plots.styled()
def figure(result: Line, title: str | None = None) -> Figure:
    """Accuracy against compute, `full` as a band of the margin, and a ring where each method is level first."""
    drawn, margin = plots.panels(1, 1, (5.2, 3.6)), result["margin"]
    figure, axes = drawn[0], drawn[1][0, 0]
    full = 100 * result["full"]["accuracy_mean"]
    cells: dict[str, list[Line]] = {line["method"]: [] for line in result["saving"]}
    for cell in result["cells"]:
        cells[cell["method"]].append(cell)
    values = [100 * cell["accuracy"] for cell in result["cells"]]
    low = max(min(values) - margin, full - 12 * margin)
    high = max([full + margin, *(100 * (cell["accuracy"] + cell["error"]) for cell in result["cells"])]) + 0.5 * margin
    axes.set(ylim=(low, min(high, 100 + margin)))
    axes.axhspan(full - margin, full + margin, color=_INK, alpha=0.07, linewidth=0)
    axes.axhline(full, color=_INK, linewidth=1, label=f"full ± {_margin(result)}")
    for place, (method, own) in enumerate(cells.items()):
        color = plots.COLORS[place % len(plots.COLORS)]
        line = next(line for line in result["saving"] if line["method"] == method)
        across, mean = [100 * cell["flops"] for cell in own], [100 * cell["accuracy"] for cell in own]
        error = [100 * cell["error"] for cell in own]
        label = f"{method}: {_told(result, line)}"
        style: dict[str, Any] = {"color": color, "marker": plots.MARKERS[place % 12], "markersize": 4}
        axes.errorbar(across, mean, yerr=error, linewidth=1.2, elinewidth=0.8, capsize=2, label=label, **style)
        first = next((cell for cell in own if cell["budget"] == line["budget"]), None)
        if first is not None:
            x, y = 100 * first["flops"], 100 * first["accuracy"]
            axes.plot(x, y, "o", markersize=11, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.6)
            axes.plot([x, x], [low, y], color=color, linewidth=0.9, linestyle=":")
    axes.set(
        xlim=(0, max(102, axes.get_xlim()[1])),
        xlabel="FLOPs, % of full (scoring included)",
        ylabel=f"test {metric(result)}, %",
    )
    axes.set_title(title or heading(result))
    figure.legend(loc="outside lower center", ncols=2 if len(cells) > 1 else 1, handletextpad=0.4, columnspacing=1)
    return figure


def _margin(result: Line) -> str:
    return f"{result['margin']:g} point{'s' * (result['margin'] != 1)}"


def name(method: str) -> str:
    """A method in a sentence."""
    return _NAMES.get(method, f"`{method}`")


def _cells(result: Line, method: str) -> list[Line]:
    return [cell for cell in result["cells"] if cell["method"] == method]


def _saves(result: Line, line: Line) -> str:
    """What follows the method's name in the sentence."""
    cells = _cells(result, line["method"])
    if line["budget"] is None:
        return f"saves {_told(result, line)} (at {cells[-1]['budget']:g} of the steps it is surely below)"
    if line["saved"] < 0:
        return f"costs {_percent({name: -line[name] for name in ('saved', 'low', 'high')})} more than full"
    return f"saves {_told(result, line)}"


def _told(result: Line, line: Line) -> str:
    """A saving in a table: "31 % (25 to 38)"."""
    if line["saved"] is None:
        return NOT_TOLD
    if line["budget"] is None:
        return f"less than {100 * line['high']:.0f} %" if line["high"] > 0 else "nothing"
    if line["budget"] == _cells(result, line["method"])[0]["budget"]:  # the grid goes no further
        return f"{100 * line['saved']:.0f} % or more (at least {100 * line['low']:.0f})".replace("-", "−")
    return _percent(line)


def _percent(line: Line, signed: bool = False) -> str:
    value, low, high = (
        f"{100 * line[name]:+.0f}" if signed else f"{100 * line[name]:.0f}" for name in ("saved", "low", "high")
    )
    low, high = sorted((low, high), key=float)
    return f"{value} % ({low} to {high})".replace("-", "−")


def _needed(result: Line) -> str:
    """Why something is not told, and what to do."""
    if not result["full"] or result["deviation"] is None:
        return "runs are missing, repeat the command to continue"
    largest = {
        line["method"]: _cells(result, line["method"])[-1:] for line in result["saving"] if line["saved"] is None
    }
    if not all(cells and cells[0]["state"] == NOT_TOLD for cells in largest.values()):
        return "runs are missing, repeat the command to continue"
    least = 2 * max(cells[0]["seeds"] for cells in largest.values())
    return power(result["deviation"], result["margin"], result["test_samples"], least=least)


def _costs(line: Line) -> dict[str, str]:
    return {
        "samples": f"{line['samples']:,.0f}",
        "steps": f"{line['steps']:,.0f}",
        "FLOPs": share(line.get("flops", 1.0)),  # of full's
        "seconds": f"{line['seconds']:,.1f}",
    }
