"""Consistency checks of the records of runs."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from ...errors import UsageError
from ..training.build import build_pruner
from ..training.settings import ONLINE, Settings
from . import tables
from .compute import short_of_plan
from .formatting import counted
from .pack import Run
from .records import VARIED, Group, computed

_NAMED = 4  # exceptions that are spelled out
_MACHINE = {
    "dataprune": "dataprune",
    "commit": "commit",
    "torch": "torch",
    "python": "Python",
    "device": "device",
    "hardware": "hardware",
}


class Check(NamedTuple):
    """One check."""

    what: str
    state: str  # "passed", "failed", "note" for what a reader should know, "not checked" where the record is missing
    detail: str  # a sentence


def checks(group: Group) -> list[Check]:
    """All checks of a group of runs."""
    flops = group.result.get("equal") == "flops"
    first = {"Equal FLOPs, all but full": _equal_flops} if flops else {"Equal steps, all but full": _equal_steps}
    return [Check(what, *check(group)) for what, check in {**first, **_CHECKS}.items()]


def _equal_steps(group: Group) -> tuple[str, str]:
    steps = {_name(row): row["steps"] for row in group.result["runs"] if row["method"] != "full"}
    if not steps:
        return "not checked", "there is no run but full."
    ((usual, _),) = Counter(steps.values()).most_common(1)
    others = [f"{name} took {count:,}" for name, count in steps.items() if count != usual]
    if others:
        return _wrong(group), f"Most runs took {usual:,} optimizer steps, but {_some(others)}."
    return "passed", f"Every run but full took {usual:,} optimizer steps."


def _equal_flops(group: Group) -> tuple[str, str]:
    return ("note" if short_of_plan(group.result) else "passed"), tables.equal_flops(group.result)


def _seeds(group: Group) -> tuple[str, str]:
    names = {_name(row) for row in group.result["runs"]}
    seeds = sorted({row["seed"] for row in group.result["runs"]})
    planned = [f"{method} seed {seed}" for method in group.methods for seed in seeds]
    gaps = [name for name in planned if name not in names]
    if gaps:
        return _wrong(group), f"Missing: {_some(gaps)}."
    text = f"Every method has {counted(len(seeds), 'seed')}: "
    if len(seeds) == 1:
        return "note", text + "there is no spread to judge differences by."
    return "passed", f"{text}{', '.join(map(str, seeds))}."


def _finished(group: Group) -> tuple[str, str]:
    if not group.runs:
        return "not checked", "The folder has no records of its single runs."
    recorded = {run.name for run in group.runs if run.metrics}
    unfinished = [run.name for run in group.runs if run.metrics is None]
    lost = [_name(row) for row in group.result["runs"] if _name(row) not in recorded]
    gaps = {"not finished": unfinished, "without a record": lost}
    parts = [f"{what}: {_some(names)}" for what, names in gaps.items() if names]
    if parts:
        return "failed", "; ".join(parts).capitalize() + "."
    return "passed", f"All {len(group.runs)} runs have ended and left their record."


def _budgets(group: Group) -> tuple[str, str]:
    runs = [run for run in group.runs if run.metrics and run.pruned and not run.method.startswith(ONLINE)]
    if not runs:
        return "not checked", "No run that pruned has left its history."
    wrong, free = [], []
    for run in runs:
        planned = _planned(run)
        if planned is None:
            free.append(run.method)
            continue
        off = [line for line in run.history if line["selected"] != planned[line["epoch"]]]
        wrong += [
            f"{run.name} kept {line['selected']:,} of {planned[line['epoch']]:,} in epoch {line['epoch']}"
            for line in off[:1]
        ]
    if wrong:
        return "failed", f"{_some(wrong).capitalize()}."
    if free:
        names = ", ".join(dict.fromkeys(free))
        return "note", f"All others kept exactly what was planned; {names} decides itself how many it keeps."
    return "passed", "Every epoch selected exactly as many samples as its schedule says."


def _planned(run: Run) -> list[int] | None:
    """Samples of every epoch; None of a method that decides by scores how many it keeps, or whose plan is unknown."""
    if run.settings is None:
        return None
    settings = Settings.of(dict(run.settings))
    if settings.method == "fixed":
        return [run.history[0]["selected"]] * settings.epochs
    try:
        pruner = build_pruner(settings, run.size)
    except (UsageError, ValueError):  # of a version with other options, or with balance=true, which needs labels
        return None
    return pruner.counts if pruner.policy.exact else None


def _settings(group: Group) -> tuple[str, str]:
    stored = [(run.name, computed(run.settings)) for run in group.runs if run.settings]
    if len(stored) < 2:
        return "not checked", "Fewer than two runs have kept their settings."
    (reference, first), *others = stored
    unlike = []
    for name, settings in others:
        different = [key for key, value in settings.items() if key not in VARIED and value != first[key]]
        unlike += [f"{name} ({', '.join(different)})"] * bool(different)
    if unlike:
        return "failed", f"Unlike {reference}: {_some(unlike)}."
    sizes = {(run.metrics["train_samples"], run.metrics["test_samples"]) for run in group.runs if run.metrics}
    if len(sizes) > 1:
        return "failed", f"Runs read different numbers of samples: {sorted(sizes)}."
    return "passed", "All runs share data, model, optimizer and augmentation; seed, method and budget differ."


def _records(group: Group) -> tuple[str, str]:
    rows = {_name(row): row for row in group.result["runs"]}
    runs = [run for run in group.runs if run.metrics and run.history]
    if not runs:
        return "not checked", "No run has left its history."
    wrong = [f"{run.name}: {text}" for run in runs if (text := _disagreement(run, rows.get(run.name)))]
    if wrong:
        return "failed", f"{_some(wrong)}."
    return "passed", "Comparison, records, histories and selection counts say the same."


def _disagreement(run: Run, row: dict[str, Any] | None) -> str | None:
    metrics = run.metrics or {}
    if row and any(row[name] != metrics[name] for name in ("accuracy", "samples", "steps")):
        return "its record is not that of the comparison"
    if sum(line["samples"] for line in run.history) != metrics["samples"]:
        return "its epochs' samples do not add up"
    if run.counts and int(run.counts["selected"].sum()) != sum(line["selected"] for line in run.history):
        return "its selection counts do not add up to its epochs' selections"
    return None


def _versions(group: Group) -> tuple[str, str]:
    machines = [run.metrics["machine"] for run in group.runs if run.metrics and "machine" in run.metrics]
    if not machines:
        return "not checked", "No run has named its machine."
    columns = ((shown, [machine.get(name) or "unknown" for machine in machines]) for name, shown in _MACHINE.items())
    values = {shown: list(dict.fromkeys(map(str, column))) for shown, column in columns if {*column} != {"unknown"}}
    several = [f"{shown} {', '.join(different)}" for shown, different in values.items() if len(different) > 1]
    if several:
        return "note", f"Runs differ: {'; '.join(several)}. Their seconds cannot be compared."
    return "passed", f"All on {', '.join(f'{shown} {value}' for shown, (value, *_) in values.items())}."


_CHECKS = {
    "Seeds complete": _seeds,
    "Runs finished": _finished,
    "Budgets reached": _budgets,
    "Same data and settings": _settings,
    "Records agree": _records,
    "Same versions and machine": _versions,
}


def _wrong(group: Group) -> str:
    """The state of what must agree in a comparison, and may differ between single runs."""
    return "failed" if group.compared else "note"


def _name(row: dict[str, Any]) -> str:
    return f"{row['method']} seed {row['seed']}"


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:_NAMED]) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")
