"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from . import saving_part
from .compute import short_of_plan
from .document import by_position
from .formatting import count_seeds, counted, listed, mean_percent, mean_score, metric, percent, setting, share
from .joint import check_whole
from .significance import detectable

if TYPE_CHECKING:
    from rich.table import Table

_SCORES = {"knn_accuracy": "kNN %", "finetuned_accuracy": "fine-tuned %", "val_accuracy": "val. %"}


def comparison(result: Mapping[str, Any]) -> Table:
    """What `compare.json` holds, a line for each method."""
    scores = {"accuracy": f"{metric(result)} %"} | {
        name: heading for name, heading in _SCORES.items() if f"{name}_mean" in result["summary"][0]
    }
    known = any("flops" in line for line in result["summary"])
    head = ["method", *scores.values(), "samples", "steps", *["FLOPs"] * known, "seconds", "speed-up", "reached keep"]
    scored = any("scoring_seconds" in line for line in result["summary"])
    rows = []
    for line in result["summary"]:
        reached = fmean(row["reached_keep"] for row in result["runs"] if row["method"] == line["method"])
        cells = [mean_score(result, line, name) for name in scores]
        cells += [f"{line['samples']:,}", f"{line['steps']:,}", *[share(line.get("flops"))] * known]
        cells += [f"{line['seconds']:.2f}", _speedup(line["speedup"]), f"{reached:.3f}"]
        if scored:
            cells.append(f"{line['samples'] + line.get('scoring_samples', 0):,}")
            cells.append(f"{line['seconds'] + line.get('scoring_seconds', 0.0):.2f}")
            cells.append(_speedup(line.get("total_speedup", line["speedup"])))
        rows.append([line["method"], *cells])
    if untrained := result.get("untrained"):
        rows.append(["untrained", *(mean_percent(untrained, name) for name in scores if name in untrained[0])])
    keep, seeds = result["keep"], counted(count_seeds(result), "seed")
    title = f"{setting(result)}: {result['epochs']} epochs, keep {keep:.3g} (pruned {1 - keep:.0%}), {seeds}"
    notes = [
        "FLOPs: share of full's, scoring included; a sample that is only forwarded is a third of a trained one"
    ] * known
    notes += ["* scoring and selecting included: one run on all the data serves all static methods of a seed"] * scored
    if result.get("equal") == "flops":
        notes.append(equal_flops(result))
    return _table(title, [*head, *["samples*", "seconds*", "speed-up*"] * scored], rows, "\n".join(notes) or None)


def equal_flops(result: Mapping[str, Any]) -> str:
    """What a comparison at equal FLOPs planned, and what it did not reach, in a sentence or two."""
    text = f"Every run but full was given {share(result['planned_flops'])} of full's FLOPs, scoring included."
    others = short_of_plan(result)
    return text + (f" Another share was reached by {listed(others)}." if others else "")


def joint(result: Mapping[str, Any]) -> Table:
    """What a finished `joint.json` holds: by ratio and amount, each arm's difference from the base."""
    check_whole(result)
    grid, seeds = result["grid"], len(result["grid"]["seeds"])
    at = {(line["arm"], line["ratio"], line["amount"]): line for line in result["summary"]}
    rows: list[list[str] | None] = []
    for ratio in grid["ratios"]:
        for amount in grid["amounts"]:
            lines = [at[arm, ratio, amount] for arm in grid["arms"]]
            base = percent(lines[0]["base_mean"], lines[0]["base_std"], seeds)
            flops = [f"{line['flops'] / line['base_flops']:.2f}x" for line in lines]
            rows.append([f"{ratio:g}", f"{amount:g}", base, *(_difference(line, seeds) for line in lines), *flops])
        rows.append(None)
    head = ["ratio", "amount", "base %", *(f"{arm} − base" for arm in grid["arms"])]
    head += [f"FLOPs, {arm}" for arm in grid["arms"]]
    plan = f"{result['epochs']} epochs, pruned, {result['finetune_epochs']} epochs"
    note = "accuracy in points; FLOPs of all stages, against the base of the same amount, zeros counted as free"
    if seeds > 1:
        tests = len(result["summary"])
        note += (
            f"\nin brackets p of a paired t-test over {seeds} seeds: a mean difference must be {detectable(seeds):.2g} "
            f"times its s.d. for p < 0.05; of {tests} such tests about {0.05 * tests:.1f} come out so by chance"
        )
    return _table(f"{setting(result)}: {plan}, {counted(seeds, 'seed')}", head, rows, note)


def advice_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each method tried, of what `advice.json` holds."""
    first = result["lines"][0]
    rows = [["short", f"{100 * (first['accuracy'] - first['short']['mean']):.2f}", *[""] * 5]]
    for line in result["lines"]:
        cells = [*_with_error(line["short"]), *_with_error(line["rs2"]), "yes" if line["sure"] else "no"]
        rows.append([line["method"], f"{100 * line['accuracy']:.2f}", *cells])
    if result["annealed"]:
        name = f"{result['advice']['method']}, last epochs full − without"
        rows.append([name, "", *_with_error(result["annealed"]), *[""] * 3])
    return ["method", "accuracy %", "− short", "better", "− rs2", "better", "sure"], rows


def advice(result: Mapping[str, Any]) -> Table:
    """What `advice.json` holds, a line for each method tried."""
    plan = result["plan"]
    return _table(f"{setting(plan)}, budget {plan['budget']:g}: the pilots", *advice_rows(result))


def pilots(result: Mapping[str, Any]) -> str:
    """What `advice.json` says of the pilots, in two sentences."""
    plan, pilot, cost = result["plan"], result["pilot"], result["cost"]
    untried = result["annealed"] is None and result["advice"]["method"] != "short"
    note = "\nFull epochs at the end were not tried: there are too few epochs." if untried else ""
    return (
        f"Means of {len(pilot['seeds'])} seeds ± standard errors, in points, and the probability of being better, on "
        f"{pilot['held_out']:,} samples held out of the training set.\nThe pilots: {pilot['samples']:,} of "
        f"{pilot['of']:,} samples, {pilot['epochs']} of {plan['epochs']} epochs, {pilot['steps']:,} of "
        f"{result['advice']['steps']:,} steps each; {cost['samples']:,} samples trained in "
        f"{cost['seconds']:.1f} s, {cost['relative']:.2g} times those of the planned run.{note}"
    )


def saving(result: Mapping[str, Any]) -> Table:
    """What `saving.json` holds, a line for each method."""
    head, rows = by_position(saving_part.table_rows(result))
    note = (
        "costs at the smallest level budget, or the largest where none is, scoring included; FLOPs as a share of full's"
    )
    return _table(saving_part.heading(result), head, rows, note)


def methods(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `dataprune methods` lists."""
    from rich.table import Column, Table

    head = (Column("method", no_wrap=True), "kind", "keeps", "reads", "defaults", "source")
    table = Table(*head, title="Pruning methods", show_lines=True)
    for row in rows:
        defaults = ", ".join(f"{key}={value}" for key, value in row["defaults"].items())
        table.add_row(row["method"], row["kind"], row["keeps"], row["reads"], defaults, row["source"])
    return table


def claims(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """What `dataprune claims` prints, of its headings and cells."""
    from rich.table import Column, Table

    columns = [Column(head[0], no_wrap=True), *(Column(text, overflow="fold") for text in head[1:])]
    table = Table(*columns, title="Claims and measurements", show_lines=True)
    for row in rows:
        table.add_row(*row)
    return table


def plain(table: Table) -> str:
    """A table as text, as wide as it is."""
    import io

    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str] | None], note: str | None = None) -> Table:
    """A table of numbers behind a column of names; None in place of a row is a line across."""
    from rich.table import Column, Table

    columns = [Column(text, justify="right" if place else "left", no_wrap=True) for place, text in enumerate(head)]
    table = Table(*columns, title=title, caption=note)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    return table


def _speedup(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"


def _with_error(difference: Mapping[str, float] | None) -> list[str]:
    if difference is None:
        return ["", ""]
    return [f"{100 * difference['mean']:+.2f} ± {100 * difference['error']:.2f}", f"{difference['probability']:.2f}"]


def _difference(line: Mapping[str, Any], seeds: int) -> str:
    text = f"{100 * line['difference_mean']:+.2f}"
    p = "-" if line["p"] is None else "<0.01" if line["p"] < 0.005 else f"{line['p']:.2f}"
    return text if seeds == 1 else f"{text} ± {100 * line['difference_std']:.2f} ({p})"
