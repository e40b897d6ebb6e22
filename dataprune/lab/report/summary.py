"""Rows of runs summarized over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .significance import moments

SCORES = ("accuracy", "knn_accuracy", "finetuned_accuracy", "val_accuracy")  # summarized with their deviation
COSTS = ("samples", "steps", "seconds")  # summarized by their mean


def summarize(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Means and sample standard deviations, one line for each combination of what `by` names.

    Args:
        rows: a run each, with `COSTS` and some of `SCORES`.
        by: columns that distinguish the lines, such as `("panel", "keep", "arm")`.
    Returns:
        Lines in the order in which their first rows come: the columns of `by`, how many `seeds`, `SCORE_mean` and
        `SCORE_std` (0 for one row) of each score that all the line's rows have, and the costs.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    lines = []
    for key, group in groups.items():
        line: dict[str, Any] = dict(zip(by, key)) | {"seeds": len(group)}
        for name in SCORES:
            if all(row.get(name) is not None for row in group):
                line[f"{name}_mean"], line[f"{name}_std"] = moments([row[name] for row in group])
        line |= {name: statistics.fmean(row[name] for row in group) for name in COSTS}
        lines.append(line | {"samples": round(line["samples"]), "steps": round(line["steps"])})
    return lines


def summarize_methods(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The `summary` of compare.json: `summarize` by method, with speed-ups against the mean seconds of `full`.

    Args:
        rows: runs, with `scoring_samples` and `scoring_seconds` where a static method was scored first.
        methods: order of the lines; a method without a row has no line.
    Returns:
        Lines that have `speedup` too (None without `full`), and where scoring cost anything `scoring_samples`,
        `scoring_seconds` and `total_speedup`.
    """
    ordered = [row for method in methods for row in rows if row["method"] == method]
    full = [row["seconds"] for row in rows if row["method"] == "full"]
    lines = summarize(ordered, ("method",))
    for line in lines:
        group = [row for row in ordered if row["method"] == line["method"]]
        line["speedup"] = statistics.fmean(full) / line["seconds"] if full else None
        scoring = statistics.fmean(row.get("scoring_seconds", 0.0) for row in group)
        if scoring:
            line["scoring_samples"] = round(statistics.fmean(row.get("scoring_samples", 0) for row in group))
            line["scoring_seconds"] = scoring
            line["total_speedup"] = statistics.fmean(full) / (line["seconds"] + scoring) if full else None
    return lines
