"""The smallest budget at which a method is level with `full`: the test, the monotone fit and the interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ...errors import DataError
from .compute import compute_share
from .significance import binomial_variance, critical, moderated, moments, prior_variance

FULL = "full"  # all the data; its budget is 1
LONGER = "longer"  # the same for more epochs; its budget is above 1
SHORT = "short"  # the same for fewer steps
SURE = 0.95  # one-sided confidence of a decision
SETTLED = 0.999  # confidence from which a level cell gets no further seeds
LEVEL, BELOW, NOT_TOLD = "level", "below", "not told"
REPLICATES = 2000  # of the bootstrap

Row = Mapping[str, Any]  # of a run: its `method`, `budget`, `seed`, `accuracy`, `samples`, `steps`, `seconds` ...
Place = tuple[str, float]  # method and budget


@dataclass(frozen=True)
class Curve:
    """Paired differences of a method to `full`, at B budgets in ascending order."""

    budgets: Sequence[float]
    mean: Float[np.ndarray, " b"]
    error: Float[np.ndarray, " b"]  # standard error of the mean, by moderated t
    half: Float[np.ndarray, " b"]  # of the interval whose lower end has confidence `SURE`
    far: Float[np.ndarray, " b"]  # the same with confidence `SETTLED`

    @classmethod
    def of(cls, differences: Mapping[float, Sequence[float]], prior: float) -> Curve:
        """From two differences or more at every budget."""
        budgets = sorted(differences)
        tests = [moderated(differences[budget], prior) for budget in budgets]
        mean, error, freedom = (np.array(column, dtype=float) for column in zip(*tests))
        half, far = (error * [critical(sure, count) for count in freedom] for sure in (SURE, SETTLED))
        return cls(budgets, mean, error, half, far)

    def fit(self, mean: Float[np.ndarray, "*r b"]) -> tuple[Float[np.ndarray, "*r b"], Float[np.ndarray, "*r b b"]]:
        """Monotone fit of means at the budgets, weighted by the precision of this curve; see `monotone`."""
        return monotone(mean, 1 / np.maximum(self.error, 1e-12) ** 2)

    def level(self, mean: Float[np.ndarray, "*r b"], margin: float) -> Bool[np.ndarray, "*r b"]:
        """Whether `full` − margin is exceeded at a budget and at all larger ones, with confidence `SURE` each."""
        fit, pools = self.fit(mean)
        passed = fit - pools @ self.half > -margin
        return np.logical_and.accumulate(passed[..., ::-1], axis=-1)[..., ::-1]


def monotone(
    values: Float[np.ndarray, "*r b"], weight: Float[np.ndarray, " b"]
) -> tuple[Float[np.ndarray, "*r b"], Float[np.ndarray, "*r b b"]]:
    """Least-squares fit that does not decrease, and the pools of neighbours that it averages.

    A fitted value is the largest, over starts at or before its place, of the smallest weighted mean up to an end at or
    after it. Row b of the pools has the weights, of sum 1, with which the values enter fit b.

    Source: Barlow et al. 1972, "Statistical inference under order restrictions" (max-min formula, which gives what
        pooling of adjacent violators does). Differs: nothing.
    """
    count = values.shape[-1]
    zero = np.zeros((*values.shape[:-1], 1))
    sums = np.concatenate([zero, np.cumsum(values * weight, axis=-1)], axis=-1)[..., None, :]
    weights = np.concatenate([[0.0], np.cumsum(weight)])
    start, end = np.arange(count)[:, None], np.arange(count)
    inside = start <= end
    means = (sums[..., end + 1] - np.swapaxes(sums, -1, -2)[..., :-1, :]) / np.where(
        inside, weights[end + 1] - weights[start], 1.0
    )
    # smallest over ends at or after each place, of starts at or before it
    least = np.minimum.accumulate(np.where(inside, means, np.inf)[..., ::-1], axis=-1)[..., ::-1]
    fit = np.where(inside, least, -np.inf).max(axis=-2)
    alike = np.abs(fit[..., :, None] - fit[..., None, :]) <= 1e-12
    return fit, alike * weight / (alike * weight).sum(axis=-1, keepdims=True)


def resampled(table: Float[np.ndarray, "s c"], draws: int, seed: int = 0) -> Float[np.ndarray, "r c"]:
    """Bootstrap means over seeds, of a table of a row for each seed with NaN where a seed has no run.

    Seeds are drawn among those that have the same runs, so that every column keeps its count, and deviations from
    their mean are scaled by √(n / (n − 1)): without it the means of three seeds vary by a fifth too little.

    Source: Rao and Wu 1988, doi:10.1080/01621459.1988.10478591 (rescaled bootstrap, as many draws as values). Differs:
        nothing.
    """
    generator = np.random.default_rng(seed)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for place, present in enumerate(~np.isnan(table)):
        groups[present.tobytes()].append(place)
    total, count = np.zeros((draws, table.shape[1])), np.zeros(table.shape[1])
    for places in groups.values():
        group, n = table[places], len(places)
        present = ~np.isnan(group[0])
        values = np.where(present, group, 0.0)
        center = values.mean(axis=0)
        scaled = center + (values - center) * np.sqrt(n / max(n - 1, 1))
        picked: Int[np.ndarray, "r n"] = generator.integers(n, size=(draws, n))
        total += scaled[picked].sum(axis=1)
        count += n * present
    return total / count


def summarize(
    rows: Sequence[Row],
    *,
    margin: float,
    held_out: int,
    planned: Mapping[str, Sequence[float]] | None = None,
    replicates: int = REPLICATES,
) -> dict[str, Any]:
    """What the runs of a folder say: `saving` by method, `cells` by method and budget, `full`, and `converged`.

    A method saves what `full` computes beyond it at the smallest budget from which on all are level; nothing where the
    largest budget is below; and it is not told (None) where the largest budget is neither, or planned runs are missing.
    The interval has the percentiles between which are 95 % of bootstrap replicates, and where nothing is saved all that
    the largest budget leaves. `beyond_short` is the same for the difference to what `short` saves, replicate by
    replicate.

    Args:
        rows: runs of `full` (budget 1), of `longer`, and of methods at budgets.
        margin: largest accuracy, as a share, that a method may lose and be level.
        held_out: test samples.
        planned: budgets by method without which nothing is said of it.
    """
    full = {row["seed"]: row for row in rows if row["method"] == FULL}
    cells: dict[Place, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        if row["method"] != FULL and row["seed"] in full:
            cells[row["method"], row["budget"]][row["seed"]] = row
    planned = planned or {}
    named = [*planned, *(row["method"] for row in rows if row["method"] not in (FULL, LONGER))]
    methods: list[str] = list(dict.fromkeys(named))
    content: dict[str, Any] = {"margin": 100 * margin, "full": _means(list(full.values())) if full else None}
    content |= {"deviation": None, "converged": None, "saving": [_untold(method) for method in methods], "cells": []}
    paired = {place: runs for place, runs in cells.items() if len(runs) > 1}
    if not paired:
        return content
    evidence = Evidence.of(full, paired, margin, held_out, replicates)
    content |= {"deviation": float(np.sqrt(evidence.prior)), "converged": evidence.converged(), "saving": []}
    claims: dict[str, Float[np.ndarray, " r"]] = {}
    for method in methods:
        budgets = sorted(budget for name, budget in paired if name == method)
        lines = evidence.cells(method, budgets) if budgets else []
        content["cells"] += lines
        if lines and lines[-1]["state"] != NOT_TOLD and not {*planned.get(method, ())} - {*budgets}:
            line, claims[method] = evidence.saving(method, budgets)
        else:
            line = _untold(method)
        content["saving"].append(line)
    for line in content["saving"]:
        method = line["method"]
        if method != SHORT:
            both = method in claims and SHORT in claims
            line["beyond_short"] = None
            if both:
                short = next(other["saved"] for other in content["saving"] if other["method"] == SHORT)
                line["beyond_short"] = _interval(line["saved"] - short, claims[method] - claims[SHORT])
    return content


@dataclass(frozen=True)
class Evidence:
    """Runs paired with those of `full`, two or more at each place."""

    full: Mapping[int, Row]  # by seed
    runs: Mapping[Place, Mapping[int, Row]]
    margin: float
    prior: float  # variance of differences
    replicates: Mapping[Place, Float[np.ndarray, " r"]]  # bootstrap means of differences

    @classmethod
    def of(
        cls,
        full: Mapping[int, Row],
        runs: Mapping[Place, Mapping[int, Row]],
        margin: float,
        held_out: int,
        replicates: int,
    ) -> Evidence:
        """With the prior variance, and replicates that draw the same seeds for all methods."""
        differences = {
            place: {seed: row["accuracy"] - full[seed]["accuracy"] for seed, row in own.items()}
            for place, own in runs.items()
        }
        least = binomial_variance(fmean(row["accuracy"] for row in full.values()), held_out)
        prior = prior_variance([list(values.values()) for values in differences.values()], least)
        table = np.array([[values.get(seed, np.nan) for values in differences.values()] for seed in sorted(full)])
        return cls(full, runs, margin, prior, dict(zip(runs, resampled(table, replicates).T)))

    def differences(self, place: Place) -> list[float]:
        """Accuracy minus that of `full`, by seed."""
        return [row["accuracy"] - self.full[seed]["accuracy"] for seed, row in self.runs[place].items()]

    def curve(self, method: str, budgets: Sequence[float]) -> Curve:
        """Of a method at some budgets."""
        return Curve.of({budget: self.differences((method, budget)) for budget in budgets}, self.prior)

    def share(self, method: str, budgets: Sequence[float]) -> Float[np.ndarray, " b"]:
        """Compute at the budgets, as a share of that of `full`."""
        return np.array([_share(list(self.runs[method, at].values()), list(self.full.values())) for at in budgets])

    def cells(self, method: str, budgets: Sequence[float]) -> list[dict[str, Any]]:
        """A line for each budget of a method."""
        curve, share = self.curve(method, budgets), self.share(method, budgets)
        fit, pools = curve.fit(curve.mean)
        half, far = pools @ curve.half, pools @ curve.far
        accuracy = fmean(row["accuracy"] for row in self.full.values())
        lines = []
        for place, budget in enumerate(budgets):
            state, settled = _decided(fit[place], half[place], far[place], self.margin)
            line = {
                "method": method,
                "budget": budget,
                "accuracy": accuracy + curve.mean[place],  # of `full` over all of its seeds, plus the difference
                "difference": curve.mean[place],
                "error": curve.error[place],
                "fitted": fit[place],
                "half": half[place],  # the lower end of the interval is fitted − half
                "flops": share[place],  # a share of those of `full`
            }
            line = {name: value.item() if isinstance(value, np.generic) else value for name, value in line.items()}
            lines.append(
                {**line, "state": state, "settled": settled, **_means(list(self.runs[method, budget].values()))}
            )
        return lines

    def saving(self, method: str, budgets: Sequence[float]) -> tuple[dict[str, Any], Float[np.ndarray, " r"]]:
        """What a method saves, with its interval and budget, and what each replicate of the bootstrap claims."""
        curve, share = self.curve(method, budgets), self.share(method, budgets)
        level = curve.level(curve.mean, self.margin)
        means = np.stack([self.replicates[method, budget] for budget in budgets], axis=-1)
        claims = _saved(curve.level(means, self.margin), share)
        line = {"method": method, **_interval(float(_saved(level, share)), claims), "budget": None}
        if level.any():
            return {**line, "budget": budgets[int(np.argmax(level))]}, claims
        return {**line, "high": max(line["high"], float(1 - share[-1]))}, claims  # the grid goes no further

    def converged(self) -> dict[str, Any] | None:
        """Whether longer training gains less than the margin, by the test of the other cells with signs exchanged."""
        longest = max((budget for method, budget in self.runs if method == LONGER), default=None)
        if longest is None:
            return None
        gains = self.differences((LONGER, longest))
        loss = Curve.of({longest: [-gain for gain in gains]}, self.prior)
        state, settled = _decided(loss.mean[0], loss.half[0], loss.far[0], self.margin)
        state = {LEVEL: "converged", BELOW: "not converged"}.get(state, NOT_TOLD)
        gain, error = -loss.mean[0].item(), loss.error[0].item()
        line = {"budget": longest, "seeds": len(gains), "gain": gain, "error": error, "half": loss.half[0].item()}
        return {**line, "state": state, "settled": settled}


def unsettled(content: Mapping[str, Any]) -> list[Place]:
    """Cells that more seeds could decide, by method and budget, those on either side of each method's crossing.

    These are the smallest level budget (unless it is level with confidence `SETTLED`: looking again and again until a
    test passes would make it pass too often) and the one below it, or the largest where none is level, unless it is
    surely below; and the longer training of `full`, by the same rule.

    Source: Haybittle 1971, doi:10.1259/0007-1285-44-526-793 (interim tests at p < 0.001). Differs: only cells beside
        the crossing get to their largest number of seeds.
    """
    lines: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for cell in content["cells"]:
        lines[cell["method"]].append(cell)
    places = []
    for method, cells in lines.items():
        from_top = 0
        while from_top < len(cells) and cells[-1 - from_top]["state"] == LEVEL:
            from_top += 1
        first = len(cells) - from_top
        beside = [place for place in (first - 1, first) if 0 <= place < len(cells)]
        places += [(method, cells[place]["budget"]) for place in beside if not cells[place]["settled"]]
    longer = content["converged"]
    if longer and not longer["settled"]:
        places.append((LONGER, longer["budget"]))
    return places


def seeds_needed(deviation: float, margin: float, most: int = 100) -> int | None:
    """Seeds with which a method equal to `full` would be level at every second attempt; None if more than `most`."""
    values = [deviation, -deviation]
    for count in range(2, most + 1):
        _, error, freedom = moderated((values * count)[:count], deviation**2)
        if critical(SURE, freedom) * error < margin:
            return count
    return None


def _decided(mean: float, half: float, far: float, margin: float) -> tuple[str, bool]:
    """The decision on a cell, and whether it gets no further seeds."""
    if mean - half > -margin:
        return LEVEL, bool(mean - far > -margin)
    return (BELOW, True) if mean + half < -margin else (NOT_TOLD, False)


def _saved(level: Bool[np.ndarray, "*r b"], share: Float[np.ndarray, " b"]) -> Float[np.ndarray, "*r"]:
    """What is saved at the first level budget; nothing where none is."""
    return np.where(level.any(axis=-1), 1 - share[np.argmax(level, axis=-1)], 0.0)


def _interval(value: float, replicates: Float[np.ndarray, " r"]) -> dict[str, float]:
    low, high = np.quantile(replicates, [0.025, 0.975], method="inverted_cdf")
    return {"saved": value, "low": min(float(low), value), "high": max(float(high), value)}


def _untold(method: str) -> dict[str, Any]:
    return {"method": method, "saved": None, "low": None, "high": None, "budget": None}


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    """Costs of runs, scoring included, and the accuracy that was measured."""
    mean, deviation = moments([row["accuracy"] for row in rows])
    return {
        "seeds": len(rows),
        "accuracy_mean": mean,
        "accuracy_std": deviation,
        "samples": fmean(row["samples"] + row.get("scoring_samples", 0) for row in rows),
        "steps": fmean(row["steps"] for row in rows),
        "seconds": fmean(row["seconds"] + row.get("scoring_seconds", 0.0) for row in rows),
    }


def _share(rows: Sequence[Row], full: Sequence[Row]) -> float:
    """Compute of runs, scoring included, as a share of that of `full`."""
    reference = {"samples": fmean(row["samples"] for row in full)}
    shares = [share for row in rows if (share := compute_share(row, reference)) is not None]
    if len(shares) < len(rows):
        raise DataError(
            f"what the scores of {rows[0]['method']} cost was not recorded: delete its coresets, and repeat"
        )
    return fmean(shares)
