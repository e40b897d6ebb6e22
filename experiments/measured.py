"""Reads experiments/results and writes numbers as pages print them: what tables.py and sentences.py share."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dataprune.lab.report import pack

ROOT = Path(__file__).parents[1]
Rows = list[Mapping[str, Any]]


@cache
def results(file: str) -> dict[str, Any]:
    """Results of a packed file by the name of their entry."""
    return {entry.name: entry.result for entry in pack.read(ROOT / f"experiments/results/{file}.json")}


def compared(file: str, entry: str, method: str) -> Rows:
    """Rows of a method in a comparison, [] where it was not run."""
    return [row for row in results(file)[entry]["runs"] if row["method"] == method]


def reproduced(name: str, panel: str, keep: float, arm: str) -> Rows:
    """Rows of an arm in what `dataprune reproduce` made."""
    rows = results(name)[name]["rows"]
    return [row for row in rows if (row["panel"], row["keep"], row["arm"]) == (panel, keep, arm)]


def accuracy(rows: Rows, digits: int = 2, metric: str = "accuracy") -> str:
    """Mean ± sample standard deviation over seeds in percent, "" without runs."""
    return moments([row[metric] for row in rows], digits, scale=100)


def moments(values: Sequence[float], digits: int, scale: float = 1) -> str:
    """Mean ± sample standard deviation."""
    if not values:
        return ""
    mean = number(scale * statistics.fmean(values), digits)
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def number(value: float, digits: int, sign: str = "") -> str:
    """A number with a true minus sign, and without one before zero."""
    text = f"{value:{sign}.{digits}f}".replace("-", "−")
    return text if float(text.replace("−", "-")) else text.lstrip("−")


def differences(rows: Rows, short: Rows, digits: int = 2) -> str:
    """Points above `short`, seed by seed."""
    base = {row["seed"]: row["accuracy"] for row in short}
    return moments([row["accuracy"] - base[row["seed"]] for row in rows], digits, scale=100)


def published(table: str, panel: str) -> dict[str, list[float]]:
    """What a paper prints, by method, for each share kept."""
    return yaml.safe_load((ROOT / f"experiments/papers/{table}.yaml").read_text(encoding="utf-8"))["published"][panel]


def mean(rows: Rows) -> float:
    """Mean accuracy over seeds in percent."""
    return 100 * statistics.fmean(row["accuracy"] for row in rows)


def percent(rows: Rows, digits: int = 1, metric: str = "accuracy") -> str:
    """Mean accuracy over seeds."""
    return number(100 * statistics.fmean(row[metric] for row in rows), digits)


def deviation(rows: Rows, digits: int = 1) -> str:
    """Sample standard deviation of the accuracy over seeds, in points."""
    return f"{100 * statistics.stdev(row['accuracy'] for row in rows):.{digits}f}"


def gap(rows: Rows, base: Rows, metric: str = "accuracy") -> float:
    """Points above the base, mean over seeds."""
    return 100 * (statistics.fmean(row[metric] for row in rows) - statistics.fmean(row[metric] for row in base))


def seedwise(rows: Rows, base: Rows) -> list[float]:
    """Points above the base, seed by seed."""
    levels = {row["seed"]: row["accuracy"] for row in base}
    return [100 * (row["accuracy"] - levels[row["seed"]]) for row in rows]


def sizes(gaps: Iterable[float], digits: int = 1) -> str:
    """Gaps without their signs, as `1.0, 2.0 and 3.0`."""
    *first, last = (number(abs(value), digits) for value in gaps)
    return f"{', '.join(first)} and {last}" if first else last


def span(gaps: Iterable[float], digits: int = 1) -> str:
    """Smallest to largest gap without their signs, as `1.0 to 3.0`; one number where they print alike."""
    values = sorted(abs(value) for value in gaps)
    low, high = number(values[0], digits), number(values[-1], digits)
    return low if low == high else f"{low} to {high}"


def listed(values: Iterable[Any]) -> str:
    """Counts as `1,000, 200 and 30`."""
    *first, last = (f"{value:,}" for value in values)
    return f"{', '.join(first)} and {last}" if first else last


def listed_text(texts: Iterable[str]) -> str:
    """Texts as `a, b and c`."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
