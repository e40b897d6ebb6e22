"""Student's t: whether differences between seeds may be chance, and which differences so many seeds can show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05  # p below which a difference counts as detected


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the deviation of a single value is 0.

    Example:
        >>> moments([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def tail(t: float, freedom: float) -> float:
    """P(T >= t) of Student's distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtr  # scipy.stats holds the same function and takes half a second to import

    return float(stdtr(freedom, -t))


def critical(probability: float, freedom: float) -> float:
    """The t that Student's distribution stays below with this probability.

    Example:
        >>> round(critical(0.975, 4), 3)
        2.776
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def paired(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired t-test.

    It assumes normally distributed differences, which a few seeds cannot show, and does not correct for other tests.

    Args:
        differences: one for each pair.
    Returns:
        p; 0.0 where all differences are the same number other than 0, 1.0 where all are 0; None for a single pair.
    Example:
        >>> round(paired([1.0, 2.0, 3.0]), 4)
        0.0742
    """
    if len(differences) < 2:
        return None
    mean, deviation = moments(differences)
    return _two_sided(mean, deviation / math.sqrt(len(differences)), len(differences) - 1)


def welch(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Two-sided p of Welch's t-test: two independent samples with variances of their own.

    Returns:
        p, with the special cases of `paired`; None where a sample has a single value.
    Source: Welch 1947, doi:10.1093/biomet/34.1-2.28. Differs: nothing.
    Example:
        >>> round(welch([1.0, 2.0, 3.0], [2.0, 4.0, 9.0]), 4)
        0.2838
    """
    if min(len(values), len(others)) < 2:
        return None
    parts = [statistics.variance(sample) / len(sample) for sample in (values, others)]
    variance = sum(parts)
    scale = sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (values, others)))
    freedom = variance**2 / scale if scale else 1.0
    return _two_sided(statistics.fmean(values) - statistics.fmean(others), math.sqrt(variance), freedom)


def confidence(values: Sequence[float], level: float = 0.95) -> float | None:
    """Half the width of the confidence interval of the mean; None for a single value.

    Example:
        >>> round(confidence([1.0, 2.0, 3.0]), 3)
        2.484
    """
    if len(values) < 2:
        return None
    return critical((1 + level) / 2, len(values) - 1) * moments(values)[1] / math.sqrt(len(values))


def detectable(count: int, level: float = LEVEL) -> float | None:
    """How many standard deviations the mean of `count` paired differences must be from 0 for p < `level`.

    Example:
        >>> round(detectable(3), 2), round(detectable(10), 2)
        (2.48, 0.72)
    """
    return critical(1 - level / 2, count - 1) / math.sqrt(count) if count > 1 else None


def probability_positive(mean: float, error: float, freedom: float) -> float:
    """Probability that the true mean is above 0, with a flat prior.

    Args:
        mean: of the sample.
        error: standard error of the mean; at 0 the answer is 0, 0.5 or 1.
        freedom: degrees of freedom.
    Example:
        >>> round(probability_positive(1.0, 0.5, 4), 3)
        0.942
    """
    if _vanishes(error, mean):
        return 0.5 if abs(mean) <= 1e-12 else float(mean > 0)
    return tail(-mean / error, freedom)


def _two_sided(mean: float, error: float, freedom: float) -> float:
    if _vanishes(error, mean):
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return 2 * tail(abs(mean) / error, freedom)


def _vanishes(error: float, mean: float) -> bool:
    """Whether a standard error is only what rounding leaves of equal numbers."""
    return error <= 1e-12 * max(abs(mean), 1.0)
