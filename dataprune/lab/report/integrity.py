"""Whether the runs are what they are taken for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ...errors import UsageError
from ..training.build import build_pruner
from ..training.settings import Settings
from .records import VARIED, Group, Run, computed

_NAMED = 4  # exceptions that are spelled out


class Check(NamedTuple):
    """One check.

    Attributes:
        what: it looks at.
        state: "passed", "failed", "note" for what a reader should know, "not checked" where the record is missing.
        detail: a sentence.
    """

    what: str
    state: str
    detail: str


def checks(group: Group) -> list[Check]:
    """All checks of a group of runs."""
    return [_equal_steps(group), _seeds(group)] + [check(group) for check in _OF_FOLDERS]


def _equal_steps(group: Group) -> Check:
    what = "Equal steps, all but full"
    steps: dict[int, list[str]] = {}
    for row in group.result["runs"]:
        if row["method"] != "full":
            steps.setdefault(row["steps"], []).append(f"{row['method']} seed {row['seed']}")
    if not steps:
        return Check(what, "not checked", "there is no run but full.")
    most = max(steps, key=lambda count: len(steps[count]))
    other = [f"{name} took {count:,}" for count, names in steps.items() if count != most for name in names]
    if other:
        state = "failed" if group.compared else "note"
        return Check(what, state, f"Most runs took {most:,} optimizer steps, but {_some(other)}.")
    return Check(what, "passed", f"Every run but full took {most:,} optimizer steps.")


def _seeds(group: Group) -> Check:
    what = "Seeds complete"
    rows = group.result["runs"]
    seeds = sorted({row["seed"] for row in rows})
    have = {(row["method"], row["seed"]) for row in rows}
    methods = [line["method"] for line in group.result["summary"]]
    gaps = [f"{method} seed {seed}" for method in methods for seed in seeds if (method, seed) not in have]
    if gaps:
        return Check(what, "failed" if group.compared else "note", f"Missing: {_some(gaps)}.")
    number = f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
    if len(seeds) == 1:
        return Check(what, "note", f"Every method has {number}: there is no spread to judge differences by.")
    return Check(what, "passed", f"Every method has {number}: {', '.join(map(str, seeds))}.")


def _finished(group: Group) -> Check:
    what = "Runs finished"
    if not group.runs:
        return Check(what, "not checked", "The folder has no records of its single runs.")
    have = {(run.method, run.seed) for run in group.runs if run.metrics}
    open_ = [_name(run) for run in group.runs if run.metrics is None]
    lost = [
        f"{row['method']} seed {row['seed']}"
        for row in group.result["runs"]
        if (row["method"], row["seed"]) not in have
    ]
    if open_ or lost:
        parts = [f"not finished: {_some(open_)}"] * bool(open_) + [f"without a record: {_some(lost)}"] * bool(lost)
        return Check(what, "failed", "; ".join(parts).capitalize() + ".")
    return Check(what, "passed", f"All {len(group.runs)} runs have ended and left their record.")


def _budgets(group: Group) -> Check:
    what = "Budgets reached"
    done = [run for run in group.runs if run.metrics and run.pruned]
    if not done:
        return Check(what, "not checked", "No run that pruned has left its history.")
    wrong, free = [], []
    for run in done:
        planned = _planned(run)
        if planned is None:
            free.append(run.method)
            continue
        off = [line for line in run.history if line["selected"] != planned[line["epoch"]]]
        if off:
            line = off[0]
            wrong.append(
                f"{_name(run)} kept {line['selected']:,} of {planned[line['epoch']]:,} in epoch {line['epoch']}"
            )
    if wrong:
        return Check(what, "failed", f"{_some(wrong).capitalize()}.")
    if free:
        names = ", ".join(dict.fromkeys(free))
        return Check(
            what, "note", f"All others kept exactly what was planned; {names} decides itself how many it keeps."
        )
    return Check(what, "passed", "Every epoch selected exactly as many samples as its schedule says.")


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


def _settings(group: Group) -> Check:
    what = "Same data and settings"
    stored = [(run, run.settings) for run in group.runs if run.settings]
    if len(stored) < 2:
        return Check(what, "not checked", "Fewer than two runs have kept their settings.")
    first, other = computed(stored[0][1]), []
    for run, settings in stored[1:]:
        names = [name for name, value in computed(settings).items() if name not in VARIED and value != first[name]]
        other += [f"{_name(run)} ({', '.join(names)})"] * bool(names)
    if other:
        return Check(what, "failed", f"Unlike {_name(stored[0][0])}: {_some(other)}.")
    sizes = {(run.metrics["train_samples"], run.metrics["test_samples"]) for run in group.runs if run.metrics}
    if len(sizes) > 1:
        return Check(what, "failed", f"Runs read different numbers of samples: {sorted(sizes)}.")
    return Check(
        what, "passed", "All runs share data, model, optimizer and augmentation; seed, method and budget differ."
    )


def _records(group: Group) -> Check:
    what = "Records agree"
    done = [run for run in group.runs if run.metrics and run.history]
    if not done:
        return Check(what, "not checked", "No run has left its history.")
    rows = {(row["method"], row["seed"]): row for row in group.result["runs"]}
    wrong = []
    for run in done:
        assert run.metrics is not None
        row = rows.get((run.method, run.seed), run.metrics)
        if any(row[name] != run.metrics[name] for name in ("accuracy", "samples", "steps")):
            wrong.append(f"{_name(run)}: its record is not that of the comparison")
        elif sum(line["samples"] for line in run.history) != run.metrics["samples"]:
            wrong.append(f"{_name(run)}: its epochs' samples do not add up")
        elif run.counts and int(run.counts["selected"].sum()) != sum(line["selected"] for line in run.history):
            wrong.append(f"{_name(run)}: its selection counts do not add up to its epochs' selections")
    if wrong:
        return Check(what, "failed", f"{_some(wrong)}.")
    return Check(what, "passed", "Comparison, records, histories and selection counts say the same.")


def _versions(group: Group) -> Check:
    what = "Same versions and machine"
    machines = [run.metrics["machine"] for run in group.runs if run.metrics and "machine" in run.metrics]
    if not machines:
        return Check(what, "not checked", "No run has named its machine.")
    names = {"dataprune": "dataprune", "torch": "torch", "python": "Python", "device": "device", "hardware": "hardware"}
    versions = {shown: _different(machine.get(name) for machine in machines) for name, shown in names.items()}
    several = [f"{shown} {', '.join(values)}" for shown, values in versions.items() if len(values) > 1]
    if several:
        return Check(what, "note", f"Runs differ: {'; '.join(several)}. Their seconds cannot be compared.")
    return Check(what, "passed", f"All on {', '.join(f'{shown} {values[0]}' for shown, values in versions.items())}.")


_OF_FOLDERS: tuple[Callable[[Group], Check], ...] = (_finished, _budgets, _settings, _records, _versions)


def _different(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys("unknown" if value is None else str(value) for value in values))


def _name(run: Run) -> str:
    return f"{run.method} seed {run.seed}"


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:_NAMED]) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")
