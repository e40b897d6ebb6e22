"""The rule that turns pilots into advice: paired differences, their uncertainty, and the choice of a method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..report import significance
from ..report.significance import FREEDOM, binomial_variance, critical, moderated, probability_positive
from .compare import SHORT

RS2 = "rs2"  # a random choice, which a score has to beat
SURE = 0.95  # probability of being better from which a method is called sure

Accuracies = Mapping[str, Mapping[int, float]]  # by method and seed


@dataclass(frozen=True)
class Difference:
    """A method's accuracy minus a reference's, paired by seed."""

    mean: float
    error: float  # standard error of the mean
    probability: float  # that the method is better, from Student's t with a flat prior on the mean


@dataclass(frozen=True)
class Verdict:
    """How a method compares with `short` and `rs2`."""

    method: str
    accuracy: float  # mean over seeds
    short: Difference
    rs2: Difference | None  # None for `rs2` itself
    sure: bool  # whether it is better than each of them with probability `SURE`


def prior_variance(accuracies: Accuracies, held_out: int) -> float:
    """Variance of paired differences that all methods share, each of them evaluated on `held_out` samples.

    It is at least the binomial variance of the held-out set for two models whose errors have a correlation of one half.
    """
    differences = [paired_differences(accuracies, method, SHORT) for method in accuracies if method != SHORT]
    least = binomial_variance(statistics.fmean(accuracies[SHORT].values()), held_out)
    return significance.prior_variance(differences, least)


def difference(values: Sequence[float], prior: float) -> Difference:
    """Mean, error and probability of one method's paired differences, with the `prior_variance`, by moderated t."""
    mean, error, freedom = moderated(values, prior)
    return Difference(mean, error, probability_positive(mean, error, freedom))


def judge(accuracies: Accuracies, held_out: int) -> list[Verdict]:
    """A verdict for each method but `short`, from accuracies on so many samples with the same two seeds or more."""
    prior, verdicts = prior_variance(accuracies, held_out), []
    for method in [method for method in accuracies if method != SHORT]:
        short = difference(paired_differences(accuracies, method, SHORT), prior)
        rs2 = None if method == RS2 else difference(paired_differences(accuracies, method, RS2), prior)
        sure = short.probability >= SURE and (rs2 is None or rs2.probability >= SURE)
        verdicts.append(Verdict(method, statistics.fmean(accuracies[method].values()), short, rs2, sure))
    return verdicts


def advised(verdicts: Sequence[Verdict]) -> str:
    """The method with the highest mean if it is above that of `short`, else `short`.

    With a flat prior this minimizes the expected regret: waiting until a method is sure only adds what `short` loses.
    """
    best = max(verdicts, key=lambda verdict: verdict.short.mean)
    return best.method if best.short.mean > 1e-9 else SHORT  # rounding can leave a tie slightly above 0


def resolution(verdicts: Sequence[Verdict], seeds: int) -> float:
    """The difference to `short` from which the median method would be sure, with pilots of so many seeds."""
    return critical(SURE, FREEDOM + seeds - 1) * statistics.median(verdict.short.error for verdict in verdicts)


def paired_differences(accuracies: Accuracies, method: str, reference: str) -> list[float]:
    """Differences by seed, in the order of the seeds."""
    values, others = accuracies[method], accuracies[reference]
    if values.keys() != others.keys() or len(values) < 2:
        raise ValueError(
            f"{method} and {reference} need the same seeds, at least two: {sorted(values)}, {sorted(others)}"
        )
    return [values[seed] - others[seed] for seed in sorted(values)]
