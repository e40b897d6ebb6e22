"""Rows of runs summarized over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .significance import moments

SCORES = ("accuracy", "knn_accuracy", "finetuned_accuracy", "val_accuracy")  # summarized with their deviation


def summarize(rows: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """One line for each combination of the columns `by`, in the order in which their first rows come.

    Lines have these columns, how many `seeds`, `SCORE_mean` and `SCORE_std` (of the sample, 0 for one row) of each of
    `SCORES` that all their rows have, and mean `samples`, `steps` and `seconds`.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in by)].append(row)
    lines = []
    for key, group in groups.items():
        line: dict[str, Any] = dict(zip(by, key)) | {"seeds": len(group)}
        for name in SCORES:
            if all(row.get(name) is not None for row in group):
                line[f"{name}_mean"], line[f"{name}_std"] = moments([row[name] for row in group])
        line |= {name: round(fmean(row[name] for row in group)) for name in ("samples", "steps")}
        lines.append(line | {"seconds": fmean(row["seconds"] for row in group)})
    return lines


def summarize_methods(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The `summary` of compare.json: `summarize` by method, in the order of `methods`.

    Lines have `speedup` too, against the mean seconds of `full` (None without it), the mean of `flops` where rows have
    it (None where one is not known), and where a static method was scored first the means of `scoring_samples` and
    `scoring_seconds`, and `total_speedup`.
    """
    ordered = [row for method in methods for row in rows if row["method"] == method]
    full = [row["seconds"] for row in rows if row["method"] == "full"]
    lines = summarize(ordered, ("method",))
    for line in lines:
        group = [row for row in ordered if row["method"] == line["method"]]
        line["speedup"] = fmean(full) / line["seconds"] if full else None
        shares = [row["flops"] for row in group if "flops" in row]
        if shares:
            line["flops"] = None if None in shares else fmean(shares)
        if scoring := fmean(row.get("scoring_seconds", 0.0) for row in group):
            line["scoring_samples"] = round(fmean(row.get("scoring_samples", 0) for row in group))
            line["scoring_seconds"] = scoring
            line["total_speedup"] = fmean(full) / (line["seconds"] + scoring) if full else None
    return lines
