"""What a comparison found: differences between methods seed by seed, the result in a sentence, and what was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .compute import reached
from .formatting import metric
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
    """Accuracy of a method minus that of another, seed by seed."""

    mean: float  # over the seeds that both have
    std: float  # of the sample; 0 for a single seed
    seeds: int
    p: float | None  # of a paired t-test; None for a single seed
    equal_steps: bool  # whether both took equally many steps
    equal_flops: bool = False  # whether both took the compute of a comparison at equal FLOPs

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
    """What a method saved against `full`, scoring and selecting included."""

    samples: float  # share
    time: float  # share of the seconds
    seconds: float  # of training and selecting
    watt_hours: float  # an estimate
    scored: bool  # whether a scoring run is included


def difference(result: Mapping[str, Any], method: str, reference: str) -> Difference | None:
    """A method against a reference; None where no seed has both, or for a method and itself."""
    rows, others = (
        {row["seed"]: row for row in result["runs"] if row["method"] == name} for name in (method, reference)
    )
    pairs = [(row, others[seed]) for seed, row in sorted(rows.items()) if seed in others]
    if method == reference or not pairs:
        return None
    values = [row["accuracy"] - other["accuracy"] for row, other in pairs]
    equal = all(row["steps"] == other["steps"] for row, other in pairs)
    flops = all(reached(result, row) for pair in pairs for row in pair)
    return Difference(*moments(values), len(values), paired(values), equal, flops)


def sentence(result: Mapping[str, Any]) -> str:
    """The result of a comparison in a sentence or two: the best pruned method against random choice and `full`."""
    lines = {line["method"]: line for line in result["summary"]}
    scored = [line for name, line in lines.items() if name not in UNSCORED]
    baselines = [line for name, line in lines.items() if name in UNSCORED and name != "full"]
    best = max(scored or baselines or list(lines.values()), key=lambda line: line["accuracy_mean"])
    name, full = best["method"], lines.get("full")
    text = f"{name} reaches {100 * best['accuracy_mean']:.1f} % test {metric(result)}"
    if full is not None and full is not best:
        samples = best["samples"] + best.get("scoring_samples", 0)
        share = 100 * samples / full["samples"]
        text += f" with {share:{'.0f' if share > 9.5 else '.2g'}} % of the samples of full training"
        text += " (scoring included)" if "scoring_samples" in best else ""
    if baselines:
        text += _against_baseline(result, name, max(baselines, key=lambda line: line["accuracy_mean"])["method"])
    if full is not None and full is not best:
        above, compared = full["accuracy_mean"] - best["accuracy_mean"], difference(result, "full", name)
        text += f". Full training is {100 * abs(above):.1f} points {'higher' if above >= 0 else 'lower'}"
        if compared and compared.verdict == "no difference detected":
            text += ", which may be chance"
    return text + "."


def _against_baseline(result: Mapping[str, Any], method: str, baseline: str) -> str:
    gain = difference(result, method, baseline)
    if gain is None:
        return ""
    other = f"{baseline} ({_BASELINE[baseline]})"
    if gain.verdict == "no difference detected":
        return f"; no difference from {other} is detected over {gain.seeds} seeds"
    few = {1: "; one seed cannot show whether that is chance", 2: "; two seeds are too few to test it"}
    above = "above" if gain.mean > 0 else "below"
    return f", {100 * abs(gain.mean):.1f} points {above} {other}{few.get(gain.seeds, '')}"


def saving(group: Group, method: str, watts: float | None = None) -> Saving | None:
    """None of `full`, and where there is no `full` to compare with."""
    full, line = group.lines.get("full"), group.lines[method]
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
