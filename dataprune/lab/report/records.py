"""Runs in the groups that a report compares: comparisons, and single runs that share their settings."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import files
from ...errors import CheckpointError, UsageError
from ..training import run_folder
from ..training.settings import Settings
from . import formatting, pack
from .compute import compute_share
from .pack import Run
from .summary import summarize_methods

# settings in which runs of one group may differ
VARIED = (
    "method",
    "seed",
    "steps",
    "count_forwards",
    "epochs",
    "option",
    "selected",
    "keep",
    "budget",
    "warmup",
    "anneal",
    "lr",
    "statistics",
)

_LINE_FIELDS = ("accuracy_mean", "accuracy_std", "samples", "steps", "seconds")
_ROW_FIELDS = ("seed", "accuracy", "samples", "steps", "seconds", "reached_keep")
_EPOCH_FIELDS = ("epoch", "samples", "steps", "lr", "selected")


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other."""

    folder: Path  # of the comparison or packed entry, or the common parent of single runs
    result: Mapping[str, Any]  # what compare.json holds; for single runs the same, without `keep`
    runs: Sequence[Run]  # those whose records are there
    compared: bool  # whether there is a compare.json

    @property
    def metric(self) -> str:
        """What `accuracy` is."""
        return formatting.metric(self.result)

    @property
    def lines(self) -> dict[str, Mapping[str, Any]]:
        """The summary of each method."""
        return {line["method"]: line for line in self.result["summary"]}

    @property
    def methods(self) -> list[str]:
        """The methods in the order of the summary."""
        return list(self.lines)

    def of(self, method: str) -> list[Run]:
        """The finished runs of a method, by seed."""
        return sorted((run for run in self.runs if run.method == method and run.metrics), key=lambda run: run.seed)

    def settings(self) -> Settings | None:
        """Settings of the first run, None where no run has recorded them; all runs agree except in `VARIED`."""
        stored = next((run.settings for run in self.runs if run.settings), None)
        return None if stored is None else Settings.of(dict(stored))


def computed(stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings that decide the result, from a config.json of this or an older version."""
    return {name: (stored or {}).get(name, default) for name, default in Settings().computed().items()}


def entries(paths: Sequence[Path]) -> list[pack.Entry]:
    """What packed files, folders of results and folders above such hold; raises as `pack.read` and `pack.collect`."""
    unique = dict.fromkeys(paths)
    return [entry for path in unique for entry in (pack.read if path.suffix == ".json" else pack.collect)(path)]


def read(paths: Sequence[Path]) -> list[Group]:
    """The groups of what paths hold; raises as `entries` and `groups`."""
    return groups(entries(paths))[0]


def groups(read_entries: Sequence[pack.Entry]) -> tuple[list[Group], list[Path]]:
    """Comparisons, single runs in groups that differ in nothing but `VARIED`; and the folders that are not finished."""
    comparisons: list[Group] = []
    single: list[Run] = []
    for entry in read_entries:
        for run in entry.runs:
            _check_run(run)
        if entry.command == "compare":
            comparisons.append(_comparison(entry))
        elif entry.command == "train":
            paths = {Path(run.path) for run in entry.runs}  # a second stage is below its first, and part of it
            single += [run for run in entry.runs if paths.isdisjoint(Path(run.path).parents)]
    tested = [run for run in single if run.metrics and run.metrics["accuracy"] is not None]
    finished = [group for group in comparisons if group.result["summary"]]
    left_out = [group.folder for group in comparisons if group not in finished]
    left_out += [run.folder for run in single if run not in tested]
    commands = sorted({entry.command for entry in read_entries})
    if not tested and not finished and not {*commands} & {"joint", "saving"}:
        if left_out:
            scored = "scored samples and was not tested: a report is of runs of `dataprune train`"
            unfinished = "is not finished: repeat the command that began it, it resumes there"
            raise UsageError(f"{left_out[0]} {scored if single and single[0].metrics else unfinished}")
        text = f"holds no comparison and no run, but {', '.join(commands)} results: no report is made of them"
        raise UsageError(f"{read_entries[0].folder} {text}")
    return finished + _by_settings(tested), left_out


def _check_run(run: Run) -> None:
    """Raise CheckpointError if a field that a report reads is missing."""
    if run.metrics is not None and (missing := run_folder.RECORDED - run.metrics.keys()):
        raise CheckpointError(f"{run.folder / 'metrics.json'} is damaged (no {min(missing)}): delete it, and run again")
    with files.undamaged(run.folder / "history.jsonl"):
        _ = [line[name] for line in run.history for name in _EPOCH_FIELDS]


def _comparison(entry: pack.Entry) -> Group:
    """A comparison with its runs, which are named as in it: by their folders."""
    result = entry.result or {}
    with files.undamaged(entry.folder / "compare.json"):
        names = {row["method"] for row in (*result["summary"], *result["runs"])}
        numbers = [line[name] for line in result["summary"] for name in _LINE_FIELDS]
        numbers += [row[name] for row in result["runs"] for name in _ROW_FIELDS]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("an accuracy or a number of samples that is no number")
        _ = result["data"], result["model"], result["epochs"]
    runs = []
    for run in entry.runs:
        parent, _, name = run.path.rpartition("/")
        method, _, seed = name.rpartition("-seed")
        if parent == "runs" and method in names and seed.isdigit():  # others: "untrained", which is no method
            runs.append(replace(run, method=method, seed=int(seed)))
    return Group(entry.folder, result, runs, True)


def _by_settings(runs: Sequence[Run]) -> list[Group]:
    """Groups of runs without a comparison, by the settings they share."""
    shared: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        key = {name: value for name, value in computed(run.settings).items() if name not in VARIED}
        shared[json.dumps(key, sort_keys=True)].append(run)
    return [_group([replace(run, method=_with_differences(run, alike)) for run in alike]) for alike in shared.values()]


def _with_differences(run: Run, others: Sequence[Run]) -> str:
    """A run's method, with the settings other than the seed in which runs of the method differ."""
    settings, parts = computed(run.settings), [run.method]
    alike = [computed(other.settings) for other in others if other.method == run.method]
    for name in VARIED:
        value = settings[name]
        if name not in ("method", "seed") and any(other[name] != value for other in alike):
            shown = (" ".join(value) or "none") if isinstance(value, list | tuple) else value
            parts.append(f"{name.replace('_', '-')} {shown}")
    return ", ".join(parts)


def _group(runs: Sequence[Run]) -> Group:
    settings = [Settings.of(dict(run.settings or {})) for run in runs]
    records = [run.metrics or {} for run in runs]
    columns = run_folder.RECORDED - {"val_accuracy"}
    rows = [{name: record[name] for name in columns} | {"method": run.method} for run, record in zip(runs, records)]
    if full := [row for row in rows if row["method"] == "full"]:
        for row, record in zip(rows, records):
            row["flops"] = compute_share(record, full[0])
    result = {
        "data": settings[0].data,
        "model": settings[0].model,
        "task": settings[0].task,
        "metric": next((record["metric"] for record in records if "metric" in record), "accuracy"),
        "epochs": max(of_run.epochs for of_run in settings),
        "runs": rows,
        "summary": summarize_methods(rows, list(dict.fromkeys(run.method for run in runs))),
    }
    folders = [run.folder for run in runs]
    if any(folder.is_absolute() for folder in folders):
        folders = [folder.absolute() for folder in folders]
    return Group(Path(os.path.commonpath(folders)), result, runs, False)
