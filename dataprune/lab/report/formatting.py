"""How settings, numbers and names are written in titles, tables and sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .significance import moments


def setting(result: Mapping[str, Any]) -> str:
    """Data and model; of a path the last two parts.

    Example:
        >>> setting({"data": "glue/rte", "model": "/home/me/models/bert/checkpoint-50"})
        'glue/rte, bert/checkpoint-50'
    """
    return ", ".join(last_parts(str(result[name])) for name in ("data", "model"))


def last_parts(path: str) -> str:
    """The last two parts of a path or name."""
    return "/".join(re.split(r"[/\\]+", path.rstrip("/\\"))[-2:])


def heading(result: Mapping[str, Any]) -> str:
    """Data and model, epochs, keep and seeds.

    Example:
        >>> heading({"data": "digits", "model": "mlp", "epochs": 20, "keep": 0.05, "runs": [{"seed": 0}]})
        'digits, mlp: 20 epochs, keep 0.05, 1 seed'
    """
    keep = f", keep {result['keep']:.3g}" if "keep" in result else ""
    return f"{setting(result)}: {result['epochs']} epochs{keep}, {counted(count_seeds(result), 'seed')}"


def count_seeds(result: Mapping[str, Any]) -> int:
    """How many seeds a comparison has."""
    return len({row["seed"] for row in result["runs"]})


def metric(result: Mapping[str, Any]) -> str:
    """What `accuracy` is in this result."""
    return "linear probe" if result.get("task") == "contrastive" else result.get("metric", "accuracy")


def percent(mean: float, deviation: float | None, runs: int, digits: int = 2) -> str:
    """A mean and its standard deviation, which a single run has not.

    Example:
        >>> percent(0.9112, 0.0061, 3, 1), percent(0.9112, 0.0, 1, 1)
        ('91.1 ± 0.6', '91.1')
    """
    text = f"{100 * mean:.{digits}f}"
    return text if deviation is None or runs < 2 else f"{text} ± {100 * deviation:.{digits}f}"


def mean_score(result: Mapping[str, Any], line: Mapping[str, Any], score: str = "accuracy", digits: int = 2) -> str:
    """A score of a line of the summary, with the deviation where its method has several runs."""
    runs = sum(row["method"] == line["method"] for row in result["runs"])
    return percent(line[f"{score}_mean"], line.get(f"{score}_std"), runs, digits)


def mean_percent(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Mean and sample standard deviation of a column of runs in percent, "–" where no run has it."""
    values = [row[name] for row in rows if name in row]
    return percent(*moments(values), len(values)) if values else "–"


def points(mean: float, deviation: float | None = None) -> str:
    """A difference of accuracies in percentage points, with a true minus sign and none before zero.

    Example:
        >>> points(-0.0112), points(0.0112, 0.005), points(-1e-9)
        ('−1.12', '+1.12 ± 0.50', '+0.00')
    """
    text = f"{round(100 * mean, 2) + 0.0:+.2f}".replace("-", "−")
    return text if deviation is None else f"{text} ± {100 * deviation:.2f}"


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "seed"), counted(1200, "sample")
        ('1 seed', '1,200 samples')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> listed(["full", "short", "emp"]), listed([])
        ('full, short and emp', 'none')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"
