"""Tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # figures take `percent` from here, and need no rich
    from rich.table import Table


def comparison(result: Mapping[str, Any]) -> Table:
    """What `compare.json` holds, a line for each method."""
    keep, seeds = result["keep"], len({row["seed"] for row in result["runs"]})
    from rich.table import Table

    table = Table(
        title=f"{setting(result)}: {result['epochs']} epochs, keep {keep:.3g} (pruned {1 - keep:.0%})"
        f", {seeds} seed{'s' if seeds != 1 else ''}"
    )
    table.add_column("method", no_wrap=True)
    headings = [f"{result.get('metric', 'accuracy')} %", "samples", "steps", "seconds", "speed-up", "reached keep"]
    more = {"knn_accuracy_mean": "kNN %", "finetuned_accuracy_mean": "fine-tuned %", "val_accuracy_mean": "val. %"}
    more = {name: heading for name, heading in more.items() if name in result["summary"][0]}
    headings[1:1] = more.values()
    if "knn_accuracy_mean" in more:
        headings[0] = "linear probe %"
    scored = any("scoring_seconds" in line for line in result["summary"])
    if scored:
        headings += ["samples*", "seconds*", "speed-up*"]
        table.caption = "* scoring and selecting included: one run on all the data serves all static methods of a seed"
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in result["summary"]:
        rows = [row for row in result["runs"] if row["method"] == line["method"]]
        cells = [
            percent(line["accuracy_mean"], line["accuracy_std"], len(rows), 2),
            f"{line['samples']:,}",
            f"{line['steps']:,}",
            f"{line['seconds']:.2f}",
            "-" if line["speedup"] is None else f"{line['speedup']:.2f}x",
            f"{sum(row['reached_keep'] for row in rows) / len(rows):.3f}",
        ]
        spreads = [line.get(name.removesuffix("_mean") + "_std") for name in more]
        cells[1:1] = [_with_spread(line[name], spread, len(rows)) for name, spread in zip(more, spreads)]
        if scored:
            total = line.get("total_speedup", line["speedup"])
            cells += [
                f"{line['samples'] + line.get('scoring_samples', 0):,}",
                f"{line['seconds'] + line.get('scoring_seconds', 0.0):.2f}",
                "-" if total is None else f"{total:.2f}x",
            ]
        table.add_row(line["method"], *cells)
    if untrained := result.get("untrained"):
        columns = ("accuracy", "knn_accuracy", "finetuned_accuracy")
        values = [[row[name] for row in untrained] for name in columns if name in untrained[0]]
        shown = [
            percent(fmean(numbers), stdev(numbers) if len(numbers) > 1 else 0.0, len(numbers), 2) for numbers in values
        ]
        table.add_row("untrained", *shown, end_section=True)
    return table


def joint(result: Mapping[str, Any]) -> Table:
    """What `joint.json` holds, a line for each ratio and amount, a column for each arm's difference from the base.

    Raises:
        UsageError: if a cell of the grid is missing.
    """
    from rich.table import Table

    from .joint import check_whole
    from .significance import detectable

    check_whole(result)
    grid, seeds = result["grid"], len(result["grid"]["seeds"])
    at = {(line["arm"], line["ratio"], line["amount"]): line for line in result["summary"]}
    table = Table(
        title=f"{setting(result)}: {result['epochs']} epochs, pruned, {result['finetune_epochs']} "
        f"epochs, {seeds} seed{'s' if seeds != 1 else ''}"
    )
    table.add_column("ratio", no_wrap=True)
    for heading in ("amount", "base %", *(f"{arm} − base" for arm in grid["arms"])):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in grid["arms"]:
        table.add_column(f"FLOPs, {arm}", justify="right", no_wrap=True)
    for ratio in grid["ratios"]:
        for amount in grid["amounts"]:
            lines = [at[arm, ratio, amount] for arm in grid["arms"]]
            table.add_row(
                f"{ratio:g}",
                f"{amount:g}",
                percent(lines[0]["base_mean"], lines[0]["base_std"], seeds, 2),
                *(_difference(line, seeds) for line in lines),
                *(f"{line['flops'] / line['base_flops']:.2f}x" for line in lines),
                end_section=amount == grid["amounts"][-1],
            )
    table.caption = (
        "accuracy in points; FLOPs of all stages, against the base of the same amount, zeros counted as free"
    )
    if seeds > 1:
        tests = len(result["summary"])
        table.caption += (
            f"\nin brackets p of a paired t-test over {seeds} seeds: a mean difference must be {detectable(seeds):.2g} "
            f"times its s.d. for p < 0.05; of {tests} such tests about {0.05 * tests:.1f} come out so by chance"
        )
    return table


def advice(result: Mapping[str, Any]) -> Table:
    """What `advice.json` holds, a line for each method tried."""
    from rich.table import Table

    plan = result["plan"]
    table = Table(title=f"{setting(plan)}, budget {plan['budget']:g}: the pilots")
    table.add_column("method", no_wrap=True)
    for heading in ("accuracy %", "− short", "better", "− rs2", "better", "sure"):
        table.add_column(heading, justify="right", no_wrap=True)
    first = result["lines"][0]
    table.add_row("short", f"{100 * (first['accuracy'] - first['short']['mean']):.2f}")
    for line in result["lines"]:
        cells = []
        for difference in (line["short"], line["rs2"]):
            cells += ["", ""] if difference is None else _with_error(difference)
        table.add_row(line["method"], f"{100 * line['accuracy']:.2f}", *cells, "yes" if line["sure"] else "no")
    if result["annealed"]:
        name = f"{result['advice']['method']}, last epochs full − without"
        table.add_row(name, "", *_with_error(result["annealed"]), "", "", "")
    return table


def pilots(result: Mapping[str, Any]) -> str:
    """What `advice.json` says of the pilots, in two sentences."""
    plan, pilot, cost = result["plan"], result["pilot"], result["cost"]
    untried = result["annealed"] is None and result["advice"]["method"] != "short"
    return (
        f"Means of {len(pilot['seeds'])} seeds ± standard errors, in points, and the probability of being better, on "
        f"{pilot['held_out']:,} samples held out of the training set.\nThe pilots: {pilot['samples']:,} of "
        f"{pilot['of']:,} samples, {pilot['epochs']} of {plan['epochs']} epochs, {pilot['steps']:,} of "
        f"{result['advice']['steps']:,} steps each; {cost['samples']:,} samples trained in "
        f"{cost['seconds']:.1f} s, {cost['relative']:.2g} times those of the planned run."
        + "\nFull epochs at the end were not tried: there are too few epochs."
        * untried
    )


def methods(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `dataprune methods` lists."""
    from rich.table import Table

    table = Table(title="Pruning methods", show_lines=True)
    for heading in ("method", "kind", "keeps", "reads", "defaults", "source"):
        table.add_column(heading, no_wrap=heading == "method")
    for row in rows:
        defaults = ", ".join(f"{key}={value}" for key, value in row["defaults"].items())
        table.add_row(row["method"], row["kind"], row["keeps"], row["reads"], defaults, row["source"])
    return table


def plain(table: Table) -> str:
    """A table as text, as wide as it is."""
    import io

    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def setting(result: Mapping[str, Any]) -> str:
    """What a title calls data and model: of a path the last two parts.

    Example:
        >>> setting({"data": "glue/rte", "model": "/home/me/models/bert/checkpoint-50"})
        'glue/rte, bert/checkpoint-50'
    """
    return ", ".join(last_parts(str(result[name])) for name in ("data", "model"))


def last_parts(path: str) -> str:
    """The last two parts of a path or name."""
    return "/".join(re.split(r"[/\\]+", path.rstrip("/\\"))[-2:])


def percent(mean: float, deviation: float, runs: int, digits: int) -> str:
    """A mean and its standard deviation, which a single run has not.

    Example:
        >>> percent(0.9112, 0.0061, 3, 1), percent(0.9112, 0.0, 1, 1)
        ('91.1 ± 0.6', '91.1')
    """
    text = f"{100 * mean:.{digits}f}"
    return f"{text} ± {100 * deviation:.{digits}f}" if runs > 1 else text


def _with_spread(mean: float, deviation: float | None, runs: int) -> str:
    return f"{100 * mean:.2f}" if deviation is None else percent(mean, deviation, runs, 2)


def _with_error(difference: Mapping[str, float]) -> list[str]:
    return [f"{100 * difference['mean']:+.2f} ± {100 * difference['error']:.2f}", f"{difference['probability']:.2f}"]


def _difference(line: Mapping[str, Any], seeds: int) -> str:
    text = f"{100 * line['difference_mean']:+.2f}"
    if seeds == 1:
        return text
    p = "-" if line["p"] is None else "<0.01" if line["p"] < 0.005 else f"{line['p']:.2f}"
    return f"{text} ± {100 * line['difference_std']:.2f} ({p})"
