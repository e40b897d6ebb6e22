"""What pilots come to: paired differences with their uncertainty, and the rule that makes advice of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .comparison import SHORT
from .joint.summary import two_sided

RS2 = "rs2"  # what any score has to beat: a random choice
SURE = 0.95  # probability of being better from which advice is called sure
FREEDOM = 4  # degrees of freedom that the spread of all methods together counts for in each one's own

Accuracies = Mapping[str, Mapping[int, float]]  # of a method, by seed


class Difference(NamedTuple):
    """A method's accuracy minus a reference's, seed by seed.

    Attributes:
        mean: over seeds.
        error: standard error of that mean.
        probability: that the method is better, of Student's distribution around the mean, with nothing believed before.
    """

    mean: float
    error: float
    probability: float


class Spread(NamedTuple):
    """How much paired differences vary from seed to seed, over all methods: what each one's own is drawn towards.

    Two or three seeds give a variance that is easily tenfold too small or too large, so it is averaged with this one,
    which counts for `FREEDOM` degrees of freedom. It is that of the method in the middle, for one that falls apart is
    no measure of the others, made larger by what the median of a chi-squared distribution is below its mean; and at
    least what the choice of the samples that judge is worth, for two models whose mistakes are correlated by a half.

    Source: Smyth 2004, doi:10.2202/1544-6115.1027 (moderated t). Differs: the prior's degrees of freedom are fixed,
        since a handful of methods cannot tell them; its variance is the median, with a lower bound.
    """

    variance: float

    @classmethod
    def of(cls, accuracies: Accuracies, held: int) -> Spread:
        """From all methods' differences to `short`, judged by so many samples."""
        every = [paired(accuracies, method, SHORT) for method in accuracies if method != SHORT]
        middle = statistics.median(statistics.variance(one) for one in every)
        right = statistics.fmean(accuracies[SHORT].values())
        return cls(max(middle / (1 - 2 / (9 * (len(every[0]) - 1))) ** 3, right * (1 - right) / held))

    def difference(self, values: Sequence[float]) -> Difference:
        """Of one method."""
        own = len(values) - 1
        variance = (FREEDOM * self.variance + own * statistics.variance(values)) / (FREEDOM + own)
        mean, error = statistics.fmean(values), math.sqrt(variance / len(values))
        return Difference(mean, error, _above_zero(mean, error, FREEDOM + own))


def judge(accuracies: Accuracies, held: int) -> list[dict[str, Any]]:
    """A line for each method but `short`.

    Args:
        accuracies: of `short`, `rs2` and the candidates, each with the same two seeds or more.
        held: samples that each seed's models were judged by.
    Returns:
        Lines with `method`, `accuracy`, `short` and `rs2`: what `Difference` holds, None for `rs2` against itself; and
        whether it is `sure`: better than all it is compared with, with a probability of `SURE` for each.
    """
    spread = Spread.of(accuracies, held)
    lines = []
    for method in accuracies:
        if method == SHORT:
            continue
        against = {
            reference: spread.difference(paired(accuracies, method, reference))
            for reference in (SHORT, RS2)
            if reference != method
        }
        lines.append(
            {
                "method": method,
                "accuracy": statistics.fmean(accuracies[method].values()),
                SHORT: against[SHORT]._asdict(),
                RS2: against[RS2]._asdict() if RS2 in against else None,
                "sure": all(found.probability >= SURE for found in against.values()),
            }
        )
    return lines


def advised(lines: Sequence[Mapping[str, Any]]) -> str:
    """The method of the highest mean, if that is above `short`'s; else `short`.

    With nothing believed before, that is the choice of the least expected regret: waiting until a method is sure only
    adds what `short` loses to it.
    """
    best = max(lines, key=lambda line: line[SHORT]["mean"])
    return best["method"] if best[SHORT]["mean"] > 1e-9 else SHORT  # what rounding leaves of a tie is none


def telling(lines: Sequence[Mapping[str, Any]], seeds: int) -> float:
    """The difference to `short` from which these pilots would be sure: of the method in the middle.

    Args:
        lines: what `judge` gave.
        seeds: of the pilots.
    """
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _above_zero(middle, 1.0, FREEDOM + seeds - 1) < SURE else (low, middle)
    return high * statistics.median(line[SHORT]["error"] for line in lines)


def paired(accuracies: Accuracies, method: str, reference: str) -> list[float]:
    """Differences by seed, in the order of the seeds."""
    mine, other = accuracies[method], accuracies[reference]
    if mine.keys() != other.keys() or len(mine) < 2:
        raise ValueError(f"{method} and {reference} need the same seeds, at least two: {sorted(mine)}, {sorted(other)}")
    return [mine[seed] - other[seed] for seed in sorted(mine)]


def _above_zero(mean: float, error: float, freedom: int) -> float:
    if error <= 1e-12:
        return 0.5 if abs(mean) <= 1e-12 else float(mean > 0)
    tail = two_sided(mean / error, freedom) / 2
    return 1 - tail if mean > 0 else tail
