"""Student's t: whether differences between seeds may be chance, and which differences so many seeds can show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05  # p below which a difference counts as detected
FREEDOM = 4  # degrees of freedom of the prior variance of `moderated`


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the deviation of a single value is 0."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def tail(t: float, freedom: float) -> float:
    """P(T >= t) of Student's distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtr  # scipy.stats holds the same function and takes half a second to import

    return float(stdtr(freedom, -t))


def critical(probability: float, freedom: float) -> float:
    """The t that Student's distribution stays below with this probability: 2.776 at 0.975 and 4 degrees."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def paired(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired t-test of one difference a pair; None for a single pair.

    It assumes normally distributed differences, which a few seeds cannot show, and does not correct for other tests.
    Where all differences are the same number p is 0.0, or 1.0 where all are 0.
    """
    if len(differences) < 2:
        return None
    mean, deviation = moments(differences)
    error = deviation / math.sqrt(len(differences))
    if _vanishes(error, mean):
        return 1.0 if abs(mean) <= 1e-12 else 0.0
    return 2 * tail(abs(mean) / error, len(differences) - 1)


def detectable(count: int, level: float = LEVEL) -> float | None:
    """How many standard deviations the mean of `count` paired differences must be from 0 for p < `level`."""
    return critical(1 - level / 2, count - 1) / math.sqrt(count) if count > 1 else None


def probability_positive(mean: float, error: float, freedom: float) -> float:
    """Probability that the true mean is above 0, with a flat prior; 0, 0.5 or 1 where the standard error is 0."""
    if _vanishes(error, mean):
        return 0.5 if abs(mean) <= 1e-12 else float(mean > 0)
    return tail(-mean / error, freedom)


def prior_variance(differences: Sequence[Sequence[float]], least: float) -> float:
    """Variance that all lists of paired differences share, each of two values or more; see `moderated`.

    It is the median over lists (robust to a method that diverges), corrected for the chi-squared median, and not below
    `least`: the variance of a few seeds can be near 0 by chance.
    """
    corrected = [statistics.variance(values) / (1 - 2 / (9 * (len(values) - 1))) ** 3 for values in differences]
    return max(statistics.median(corrected), least)


def binomial_variance(accuracy: float, samples: int) -> float:
    """Variance of the difference of two models' accuracies on so many samples, errors correlated by one half."""
    return accuracy * (1 - accuracy) / samples


def moderated(values: Sequence[float], prior: float) -> tuple[float, float, int]:
    """Mean of paired differences, its standard error, and their degrees of freedom, for Student's t.

    The variance of two or three seeds is easily tenfold too small or too large, so it is averaged with the
    `prior_variance`, which counts as `FREEDOM` degrees of freedom.

    Source: Smyth 2004, doi:10.2202/1544-6115.1027 (moderated t). Differs: the prior's degrees of freedom are fixed,
        since a handful of methods cannot estimate them; its variance is the median, with a lower bound.
    """
    own = len(values) - 1
    variance = (FREEDOM * prior + own * statistics.variance(values)) / (FREEDOM + own)
    return statistics.fmean(values), math.sqrt(variance / len(values)), FREEDOM + own


def _vanishes(error: float, mean: float) -> bool:
    """Whether a standard error is only what rounding leaves of equal numbers."""
    return error <= 1e-12 * max(abs(mean), 1.0)
