"""What a grid of joint pruning came to: differences from the base over seeds, and whether they may be chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ....errors import UsageError

BASE = "base"


def summarize(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each ratio, amount and arm of which every seed is there, and the base's.

    Differences are taken seed by seed: both models of a pair begin from the same weights. FLOPs are means over seeds,
    with masks counted as if zeros were free.

    Args:
        result: what `joint.json` holds.
    Returns:
        Lines with `difference_mean`, `difference_std` (of the sample, 0 for a single seed) and `p`, see `paired`.
    """
    seeds = result["grid"]["seeds"]
    at: dict[tuple[Any, ...], dict[str, Any]] = {
        (row["arm"], row["ratio"], row["amount"], row["seed"]): row for row in result["cells"]
    }
    lines = []
    for arm, ratio, amount in _places(result):
        mine = [at.get((arm, ratio, amount, seed)) for seed in seeds]
        base = [at.get((BASE, None, amount, seed)) for seed in seeds]
        pairs = [(one, other) for one, other in zip(mine, base) if one is not None and other is not None]
        if arm == BASE or len(pairs) < len(seeds):
            continue
        differences = [one["accuracy"] - other["accuracy"] for one, other in pairs]
        mean, deviation = _moments(differences)
        accuracy, accuracy_deviation = _moments([one["accuracy"] for one, _ in pairs])
        base_accuracy, base_deviation = _moments([other["accuracy"] for _, other in pairs])
        lines.append(
            {
                "arm": arm,
                "ratio": ratio,
                "amount": amount,
                "accuracy_mean": accuracy,
                "accuracy_std": accuracy_deviation,
                "base_mean": base_accuracy,
                "base_std": base_deviation,
                "difference_mean": mean,
                "difference_std": deviation,
                "p": paired(differences),
                "flops": statistics.fmean(one["flops"]["total"] for one, _ in pairs),
                "base_flops": statistics.fmean(other["flops"]["total"] for _, other in pairs),
            }
        )
    return lines


def missing(result: Mapping[str, Any]) -> list[str]:
    """Names of the cells that the grid asks for and that are not finished."""
    done = {(row["arm"], row["ratio"], row["amount"], row["seed"]) for row in result["cells"]}
    return [
        f"{arm}{'' if ratio is None else f' ratio {ratio:g}'} amount {amount:g} seed {seed}"
        for seed in result["grid"]["seeds"]
        for arm, ratio, amount in _places(result)
        if (arm, ratio, amount, seed) not in done
    ]


def check_whole(result: Mapping[str, Any]) -> None:
    """Raise UsageError unless every cell of the grid is finished."""
    gaps = missing(result)
    if gaps:
        total = len(gaps) + len(result["cells"])
        named = ", ".join(gaps[:3]) + (" ..." if len(gaps) > 3 else "")
        raise UsageError(
            f"{len(gaps)} of {total} cells are missing ({named}): give the command again without --table, it goes on"
        )


def paired(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired t-test: how often chance alone gives a mean difference as far from 0.

    None where it cannot be said: for a single pair, or where all differences are equal. It assumes differences that are
    normally distributed, which a few seeds cannot show, and knows nothing of the other tests in the same table.

    Example:
        >>> round(paired([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    mean, deviation = _moments(differences)
    if len(differences) < 2 or deviation <= 1e-12 * max(abs(mean), 1e-300):
        return None
    return two_sided(mean / deviation * math.sqrt(len(differences)), len(differences) - 1)


def detectable(count: int) -> float | None:
    """How many standard deviations the mean of so many paired differences must be from 0 for p < 0.05.

    Example:
        >>> round(detectable(3), 2), round(detectable(10), 2)
        (2.48, 0.72)
    """
    if count < 2:
        return None
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle * math.sqrt(count), count - 1) > 0.05 else (low, middle)
    return high


def two_sided(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's distribution: for whole degrees of freedom it is a finite sum.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4. Differs: nothing.
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = cosine if freedom % 2 else 1.0, 0.0
    for number in range(freedom % 2, freedom - 1, 2):
        total += term
        term *= (number + 1) / (number + 2) * cosine**2
    inside = 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total
    return max(1 - inside, 0.0)


def _places(result: Mapping[str, Any]) -> list[tuple[str, float | None, float]]:
    grid = result["grid"]
    base: list[tuple[str, float | None, float]] = [(BASE, None, amount) for amount in grid["amounts"]]
    return base + [
        (arm, ratio, amount) for arm in grid["arms"] for ratio in grid["ratios"] for amount in grid["amounts"]
    ]


def _moments(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
