"""How settings, numbers and names are written in titles, tables and sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .significance import moments


def setting(result: Mapping[str, Any]) -> str:
    """Data and model; of a path the last two parts."""
    return ", ".join(last_parts(str(result[name])) for name in ("data", "model"))


def last_parts(path: str) -> str:
    """The last two parts of a path or name: bert/checkpoint-50 of /models/bert/checkpoint-50."""
    return "/".join(re.split(r"[/\\]+", path.rstrip("/\\"))[-2:])


def heading(result: Mapping[str, Any]) -> str:
    """Data and model, epochs, keep and seeds: "digits, mlp: 20 epochs, keep 0.05, 1 seed"."""
    keep = f", keep {result['keep']:.3g}" if "keep" in result else ""
    return f"{setting(result)}: {result['epochs']} epochs{keep}, {counted(count_seeds(result), 'seed')}"


def count_seeds(result: Mapping[str, Any]) -> int:
    """How many seeds a comparison has."""
    return len({row["seed"] for row in result["runs"]})


def metric(result: Mapping[str, Any]) -> str:
    """What `accuracy` is in this result."""
    return "linear probe" if result.get("task") == "contrastive" else result.get("metric", "accuracy")


def percent(mean: float, deviation: float | None, runs: int, digits: int = 2) -> str:
    """A mean and its standard deviation, which a single run has not: "91.12 ± 0.61" or "91.12"."""
    text = f"{100 * mean:.{digits}f}"
    return text if deviation is None or runs < 2 else f"{text} ± {100 * deviation:.{digits}f}"


def mean_score(result: Mapping[str, Any], line: Mapping[str, Any], score: str = "accuracy", digits: int = 2) -> str:
    """A score of a line of the summary in percent."""
    runs = sum(row["method"] == line["method"] for row in result["runs"])
    return percent(line[f"{score}_mean"], line.get(f"{score}_std"), runs, digits)


def mean_percent(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Mean and sample standard deviation of a column of runs in percent, "–" where no run has it."""
    values = [row[name] for row in rows if name in row]
    return percent(*moments(values), len(values)) if values else "–"


def points(mean: float, deviation: float | None = None) -> str:
    """A difference of accuracies in percentage points, with a true minus sign, and with none before zero."""
    text = f"{round(100 * mean, 2) + 0.0:+.2f}".replace("-", "−")
    return text if deviation is None else f"{text} ± {100 * deviation:.2f}"


def share(value: float | None) -> str:
    """A share in percent, with three digits; "–" where it is not known."""
    return "–" if value is None else f"{100 * value:#.3g} %".replace(". ", " ")


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 seed", "1,200 seeds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "full, short and emp"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"
