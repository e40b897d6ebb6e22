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

from ...errors import CheckpointError, UsageError
from ..training import run_folder
from ..training.settings import Settings
from . import formatting, pack
from .pack import Run
from .summary import summarize_methods

# settings in which runs of one group may differ
VARIED = ("method", "seed", "steps", "epochs", "option", "selected", "keep", "budget", "lr", "statistics")

_LINE_FIELDS = ("method", "accuracy_mean", "accuracy_std", "samples", "steps", "seconds")
_ROW_FIELDS = ("method", "seed", "accuracy", "samples", "steps", "seconds", "reached_keep")
_EPOCH_FIELDS = ("epoch", "samples", "steps", "lr", "selected")


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other."""

    folder: Path  # of the comparison or packed entry, or the common parent of single runs
    result: Mapping[str, Any]  # what compare.json holds; for single runs the same, without `keep`
    runs: Sequence[Run]  # those whose records are there
    compared: bool  # whether there is a compare.json

    @property
    def name(self) -> str:
        """A short title."""
        return formatting.setting(self.result)

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
    """What folders, folders above such and packed files hold; raises as `read` does."""
    unique = dict.fromkeys(paths)
    return [entry for path in unique for entry in (pack.read if path.suffix == ".json" else pack.collect)(path)]


def read(paths: Sequence[Path]) -> list[Group]:
    """Comparisons, and single runs in groups that differ in nothing but `VARIED`.

    Paths are folders of `dataprune compare`, `train` or `pretrain`, folders with such folders below them, and packed
    files. Raises UsageError if a path is none of these, or nothing in it is finished, CheckpointError if it is damaged.
    """
    return groups(entries(paths))[0]


def groups(read_entries: Sequence[pack.Entry]) -> tuple[list[Group], list[Path]]:
    """The groups of what `entries` read, and the folders left out since nothing in them is finished; as `read`."""
    comparisons: list[Group] = []
    single: list[Run] = []
    for entry in read_entries:
        for run in entry.runs:
            _check_run(run)
        if entry.command == "compare":
            comparisons.append(_comparison(entry))
        elif entry.command == "train":
            single += _first_stages(entry.runs)
    tested = [run for run in single if run.metrics and run.metrics["accuracy"] is not None]
    finished = [group for group in comparisons if group.result["summary"]]
    left_out = [group.folder for group in comparisons if group not in finished]
    left_out += [run.folder for run in single if run not in tested]
    if not tested and not finished and not any(entry.command == "joint" for entry in read_entries):
        if not left_out:
            commands, folder = ", ".join(sorted({entry.command for entry in read_entries})), read_entries[0].folder
            raise UsageError(
                f"{folder} holds no comparison and no run, but {commands} results: no report is made of them"
            )
        if single and single[0].metrics:
            raise UsageError(
                f"{left_out[0]} scored samples and was not tested: a report is of runs of `dataprune train`"
            )
        raise UsageError(f"{left_out[0]} is not finished: repeat the command that began it, it resumes there")
    return finished + _by_settings(tested), left_out


def _check_run(run: Run) -> None:
    """Raise CheckpointError if a field that a report reads is missing."""
    if run.metrics is not None and (missing := run_folder.RECORDED - run.metrics.keys()):
        raise CheckpointError(f"{run.folder / 'metrics.json'} is damaged (no {min(missing)}): delete it, and run again")
    try:
        _ = [line[name] for line in run.history for name in _EPOCH_FIELDS]
    except (KeyError, TypeError) as error:
        path = run.folder / "history.jsonl"
        raise CheckpointError(f"{path} is damaged ({error!r}): delete it, and run again") from error


def _first_stages(runs: Sequence[Run]) -> list[Run]:
    """Runs without those in folders of others, whose second stage they are."""
    paths = {run.path for run in runs}
    return [run for run in runs if not any(parent.as_posix() in paths for parent in Path(run.path).parents)]


def _comparison(entry: pack.Entry) -> Group:
    """A comparison with its runs, which are named as in it: by their folders."""
    result = entry.result or {}
    try:
        names = {line["method"] for line in result["summary"] for name in _LINE_FIELDS if line[name] is not None}
        names |= {row["method"] for row in result["runs"] for name in _ROW_FIELDS if row[name] is not None}
        numbers = [line[name] for line in result["summary"] for name in ("accuracy_mean", "samples")]
        if not all(map(math.isfinite, [*numbers, *(row["accuracy"] for row in result["runs"])])):
            raise ValueError("an accuracy or a number of samples that is no number")
        _ = result["data"], result["model"], result["epochs"]
    except (KeyError, TypeError, ValueError) as error:
        path = entry.folder / "compare.json"
        raise CheckpointError(f"{path} is damaged ({error!r}): delete it, and run again") from error
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
    return [_group(_with_differences(alike)) for alike in shared.values()]


def _group(runs: Sequence[Run]) -> Group:
    settings = [Settings.of(dict(run.settings or {})) for run in runs]
    records = [run.metrics or {} for run in runs]
    rows = [
        {"method": run.method} | {name: record[name] for name in run_folder.RECORDED - {"method", "val_accuracy"}}
        for run, record in zip(runs, records)
    ]
    result = {
        "data": settings[0].data,
        "model": settings[0].model,
        "epochs": max(of_run.epochs for of_run in settings),
        "runs": rows,
        "summary": summarize_methods(rows, list(dict.fromkeys(run.method for run in runs))),
    }
    if settings[0].task != "classification":
        result["task"] = settings[0].task
    if metrics := [record["metric"] for record in records if "metric" in record]:
        result["metric"] = metrics[0]
    folders = [run.folder for run in runs]
    if any(folder.is_absolute() for folder in folders):
        folders = [folder.absolute() for folder in folders]
    return Group(Path(os.path.commonpath(folders)), result, runs, False)


def _with_differences(runs: Sequence[Run]) -> list[Run]:
    """Runs with the settings in which runs of one method differ, the seed apart, behind the method's name."""
    named = []
    for run in runs:
        alike = [computed(other.settings) for other in runs if other.method == run.method]
        differences = [
            f"{name.replace('_', '-')} {_short(computed(run.settings)[name])}"
            for name in VARIED
            if name not in ("method", "seed") and len({str(settings[name]) for settings in alike}) > 1
        ]
        named.append(replace(run, method=", ".join([run.method, *differences])))
    return named


def _short(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, list | tuple) else str(value)
