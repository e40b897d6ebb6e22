"""What the records come to: differences, savings, how often samples were kept."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..sweeps.joint.summary import paired
from .records import Group, Run

REFERENCES = ("full", "short", "rs2")
WATTS = {"cpu": 65.0, "cuda": 400.0}  # assumed draw of one processor under load; no measurement
STARVED = 0.5  # of the classes' mean share
LEVEL = 0.05  # of p, from which a difference counts as more than chance


@dataclass(frozen=True)
class Difference:
    """Accuracy of a method minus that of another, seed by seed.

    Attributes:
        mean: over the seeds that both have.
        std: sample standard deviation; 0 of a single seed.
        seeds: how many.
        p: of a paired t-test, None where it cannot be said.
        steps: whether both took equally many steps.
    """

    mean: float
    std: float
    seeds: int
    p: float | None
    steps: bool

    @property
    def told(self) -> str:
        """What may be said: "more" or "less" where chance alone seldom gives as much, else "not told apart".

        A difference that is the same in every seed cannot be tested: there is no spread to hold it against.
        """
        if self.seeds < 2:
            return "one seed"
        if self.p is None and self.mean:
            return "not testable"
        chance = self.p is None or self.p >= LEVEL or abs(self.mean) <= self.std
        return "not told apart" if chance else "more" if self.mean > 0 else "less"


@dataclass(frozen=True)
class Saving:
    """What a method saved against `full`, scoring and selecting included, as shares and in seconds and watt-hours."""

    samples: float
    time: float
    seconds: float
    watt_hours: float
    scored: bool


def difference(result: Mapping[str, Any], method: str, reference: str) -> Difference | None:
    """None where a seed does not have both, or for a method and itself."""
    if method == reference:
        return None
    mine, other = (_by_seed(result, name) for name in (method, reference))
    seeds = sorted(mine.keys() & other.keys())
    if not seeds:
        return None
    values = [mine[seed]["accuracy"] - other[seed]["accuracy"] for seed in seeds]
    equal = all(mine[seed]["steps"] == other[seed]["steps"] for seed in seeds)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Difference(statistics.fmean(values), deviation, len(values), paired(values), equal)


def saving(group: Group, method: str, watts: float | None = None) -> Saving | None:
    """None of `full`, and where there is no `full` to compare with."""
    lines = {line["method"]: line for line in group.result["summary"]}
    full, mine = lines.get("full"), lines[method]
    if full is None or method == "full":
        return None
    samples = mine["samples"] + mine.get("scoring_samples", 0)
    seconds = full["seconds"] - mine["seconds"] - mine.get("scoring_seconds", 0.0)
    energy = seconds * power(group, watts)[0] / 3600
    return Saving(1 - samples / full["samples"], seconds / full["seconds"], seconds, energy, "scoring_seconds" in mine)


def power(group: Group, watts: float | None = None) -> tuple[float, str]:
    """Watts of all processors of a run, and where the number is from."""
    record = next((run.metrics for run in group.runs if run.metrics), {})
    kind = str(record.get("machine", {}).get("device", "cpu")).split(":")[0]
    ranks = int(record.get("world_size", 1))
    each = WATTS.get(kind, WATTS["cuda"]) if watts is None else watts
    of = f"{ranks} processes at {each:g} W each" if ranks > 1 else f"{each:g} W"
    name = {"cpu": "a CPU", "cuda": "a GPU"}.get(kind, kind)
    return each * ranks, f"{of} ({'an assumption about ' + name if watts is None else 'given with --watts'})"


def pruning(group: Group) -> list[str]:
    """Methods whose runs left samples out, and noted how often each was selected."""
    names = [line["method"] for line in group.result["summary"]]
    return [name for name in names if any(run.pruned and run.kept is not None for run in group.of(name))]


def histogram(mine: Sequence[Run]) -> tuple[np.ndarray, int]:
    """Samples by the number of pruned epochs they were selected for, and the most pruned epochs of a run.

    Args:
        mine: runs of one method.
    Returns:
        (E + 1,) mean over runs of how many samples were selected in 0, 1 ... E pruned epochs; and E.
    """
    counted = [(run.kept, len(run.pruned)) for run in mine]
    most = max(epochs for _, epochs in counted)
    every = [np.bincount(kept, minlength=most + 1) for kept, _ in counted if kept is not None]
    return np.mean(every, axis=0), most


def retention(mine: Sequence[Run], labels: np.ndarray, classes: int) -> np.ndarray:
    """(C,) share of a class's samples that a pruned epoch selects, mean over runs; NaN of a class without samples."""
    sizes = np.bincount(labels, minlength=classes).astype(float)
    sizes[sizes == 0] = np.nan
    shares = []
    for run in mine:
        if run.kept is not None:
            shares.append(np.bincount(labels, weights=run.kept, minlength=classes) / sizes / len(run.pruned))
    return np.mean(shares, axis=0)


def starved(shares: np.ndarray) -> list[int]:
    """Classes of which less than half as much is kept as of a class on average."""
    mean = np.nanmean(shares)
    return [place for place, share in enumerate(shares) if share < STARVED * mean]


def kinds(run: Run, count: int) -> dict[str, list[int]]:
    """Positions of the samples kept most, kept least and, where that is recorded, changing most often.

    Only samples that reach the extreme are called so: always kept, always left out. Among equals a fixed random order
    decides, so that a gallery is not the beginning of the file.
    """
    kept, epochs = run.kept, len(run.pruned)
    assert kept is not None
    order = np.random.default_rng(0).permutation(len(kept))
    found = {
        "always kept": order[kept[order] == epochs][:count].tolist(),
        "always pruned": order[kept[order] == 0][:count].tolist(),
    }
    if "switches" in run.counts:
        switches = run.counts["switches"].astype(np.int64)
        most = order[np.argsort(-switches[order], kind="stable")][:count]
        found["most oscillating"] = [int(one) for one in most if switches[one] > 0]
    return found


def curves(group: Group, name: str) -> list[tuple[list[str], list[float]]]:
    """A column of the histories, mean over seeds, methods with the same curve together."""
    together: dict[tuple[float, ...], list[str]] = {}
    for method in (line["method"] for line in group.result["summary"]):
        mine = [run.history for run in group.of(method) if run.history]
        if not mine:
            continue
        values = tuple(
            float(f"{statistics.fmean(line[name] for line in lines):.4g}") for lines in zip(*mine, strict=False)
        )
        together.setdefault(values, []).append(method)
    return [(methods, list(values)) for values, methods in together.items()]


def _by_seed(result: Mapping[str, Any], method: str) -> dict[int, Mapping[str, Any]]:
    return {row["seed"]: row for row in result["runs"] if row["method"] == method}
