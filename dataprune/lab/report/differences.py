"""What a comparison found: differences between methods seed by seed, the result in a sentence, and what was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .records import Group
from .significance import LEVEL, moments, paired

REFERENCES = ("full", "short", "rs2")
UNSCORED = (*REFERENCES, "random", "static_random")  # methods that a result is compared with
WATTS = {"cpu": 65.0, "cuda": 400.0}  # assumed draw of one processor under load; no measurement
_BASELINE = {
    "rs2": "a random subset in every epoch",
    "random": "a random subset in every epoch",
    "static_random": "a fixed random subset",
    "short": "all data for as many steps",
}


@dataclass(frozen=True)
class Difference:
    """Accuracy of a method minus that of another, seed by seed.

    Attributes:
        mean: over the seeds that both have.
        std: sample standard deviation; 0 for a single seed.
        seeds: how many.
        p: of a paired t-test; None for a single seed.
        equal_steps: whether both took equally many steps.
    """

    mean: float
    std: float
    seeds: int
    p: float | None
    equal_steps: bool

    @property
    def verdict(self) -> str:
        """`higher` or `lower` where p < 0.05 and the mean exceeds the deviation; two seeds are too few to say."""
        if self.seeds < 3 or self.p is None:
            return "one seed" if self.seeds < 2 else "too few seeds"
        if self.p >= LEVEL or abs(self.mean) <= self.std:
            return "no difference detected"
        return "higher" if self.mean > 0 else "lower"


@dataclass(frozen=True)
class Saving:
    """What a method saved against `full`, scoring and selecting included.

    Attributes:
        samples: share of the samples.
        time: share of the seconds.
        seconds: of training and selecting.
        watt_hours: an estimate.
        scored: whether a scoring run is included.
    """

    samples: float
    time: float
    seconds: float
    watt_hours: float
    scored: bool


def difference(result: Mapping[str, Any], method: str, reference: str) -> Difference | None:
    """A method against a reference; None where no seed has both, or for a method and itself."""
    if method == reference:
        return None
    rows, others = (_by_seed(result, name) for name in (method, reference))
    seeds = sorted(rows.keys() & others.keys())
    if not seeds:
        return None
    values = [rows[seed]["accuracy"] - others[seed]["accuracy"] for seed in seeds]
    equal = all(rows[seed]["steps"] == others[seed]["steps"] for seed in seeds)
    return Difference(*moments(values), len(seeds), paired(values), equal)


def sentence(result: Mapping[str, Any], metric: str = "accuracy") -> str:
    """The result in a sentence or two: the best pruned method against random choice and full training.

    Args:
        result: what `compare.json` holds.
        metric: what its accuracies are.
    """
    lines = {line["method"]: line for line in result["summary"]}
    scored = [line for name, line in lines.items() if name not in UNSCORED]
    baselines = [line for name, line in lines.items() if name in UNSCORED and name != "full"]
    candidates = scored or baselines or list(lines.values())
    best = max(candidates, key=lambda line: line["accuracy_mean"])
    name, full = best["method"], lines.get("full")
    text = f"{name} reaches {100 * best['accuracy_mean']:.1f} % test {metric}"
    if full is not None and full is not best:
        samples = best["samples"] + best.get("scoring_samples", 0)
        text += f" with {_percent(samples / full['samples'])} of the samples of full training"
        text += " (scoring included)" if "scoring_samples" in best else ""
    baseline = max(baselines, key=lambda line: line["accuracy_mean"], default=None)
    gain = baseline and difference(result, name, baseline["method"])
    if baseline and gain:
        other = f"{baseline['method']} ({_BASELINE[baseline['method']]})"
        points = f"{100 * abs(gain.mean):.1f} points {'above' if gain.mean > 0 else 'below'} {other}"
        text += {
            "higher": f", {points}",
            "lower": f", {points}",
            "no difference detected": f"; no difference from {other} is detected over {gain.seeds} seeds",
        }.get(gain.verdict, f", {points}; {_too_few(gain.seeds)}")
    if full is not None and full is not best:
        above, compared = full["accuracy_mean"] - best["accuracy_mean"], difference(result, "full", name)
        text += f". Full training is {100 * abs(above):.1f} points {'higher' if above >= 0 else 'lower'}"
        if compared and compared.verdict == "no difference detected":
            text += ", which may be chance"
    return text + "."


def saving(group: Group, method: str, watts: float | None = None) -> Saving | None:
    """None of `full`, and where there is no `full` to compare with."""
    lines = {line["method"]: line for line in group.result["summary"]}
    full, line = lines.get("full"), lines[method]
    if full is None or method == "full":
        return None
    samples = line["samples"] + line.get("scoring_samples", 0)
    seconds = full["seconds"] - line["seconds"] - line.get("scoring_seconds", 0.0)
    energy = seconds * power(group, watts)[0] / 3600
    return Saving(1 - samples / full["samples"], seconds / full["seconds"], seconds, energy, "scoring_seconds" in line)


def power(group: Group, watts: float | None = None) -> tuple[float, str]:
    """Watts of all processors of a run, and where the number is from."""
    record = next((run.metrics for run in group.runs if run.metrics), {})
    kind = str(record.get("machine", {}).get("device", "cpu")).split(":")[0]
    ranks = int(record.get("world_size", 1))
    each = WATTS.get(kind, WATTS["cuda"]) if watts is None else watts
    text = f"{ranks} processes at {each:g} W each" if ranks > 1 else f"{each:g} W"
    name = {"cpu": "a CPU", "cuda": "a GPU"}.get(kind, kind)
    return each * ranks, f"{text} ({'an assumption about ' + name if watts is None else 'given with --watts'})"


def _too_few(seeds: int) -> str:
    return "one seed cannot show whether that is chance" if seeds < 2 else "two seeds are too few to test it"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share > 0.095 else f"{100 * share:.2g} %"


def _by_seed(result: Mapping[str, Any], method: str) -> dict[int, Mapping[str, Any]]:
    return {row["seed"]: row for row in result["runs"] if row["method"] == method}
