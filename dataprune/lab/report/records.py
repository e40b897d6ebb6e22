"""Records of comparisons and runs, read from their folders or from packed files, for a report."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UsageError
from ..training import run_folder
from ..training.settings import Settings
from . import pack
from .summary import summarize_methods
from .tables import setting

# settings in which runs of one group may differ
VARIED = ("method", "seed", "steps", "epochs", "option", "selected", "keep", "budget", "lr", "statistics")

_LINE_FIELDS = ("method", "accuracy_mean", "accuracy_std", "samples", "steps", "seconds")
_ROW_FIELDS = ("method", "seed", "accuracy", "samples", "steps", "seconds", "reached_keep")
_EPOCH_FIELDS = ("epoch", "samples", "steps", "lr", "selected")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: its folder; of a packed run what its folder was called below the packed file.
        method: as the tables name it.
        seed: of the run.
        settings: what config.json holds, None where there is none.
        metrics: what metrics.json holds, None for a run that is not finished.
        history: its epochs.
    """

    folder: Path
    method: str
    seed: int
    settings: Mapping[str, Any] | None
    metrics: Mapping[str, Any] | None
    history: Sequence[Mapping[str, Any]]

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """Arrays (N,) `selected`, `drawn` and, of runs that recorded it, `switches`; empty where there is no file."""
        return pack.tensors(self.folder / "selection_counts.safetensors")

    @cached_property
    def trajectories(self) -> dict[str, np.ndarray]:
        """Tables of `Trajectories`; empty where there is no file."""
        return pack.tensors(self.folder / "trajectories.safetensors")

    @property
    def size(self) -> int:
        """Training samples, N."""
        return int((self.metrics or {}).get("train_samples", 0)) or len(self.counts.get("selected", ()))

    @property
    def pruned(self) -> list[int]:
        """Epochs that trained less than all the data."""
        return [line["epoch"] for line in self.history if line["selected"] < self.size]

    @property
    def kept(self) -> np.ndarray | None:
        """(N,) number of pruned epochs in which a sample was selected; None where that is not recorded."""
        if "selected" not in self.counts or not self.history:
            return None
        return self.counts["selected"].astype(np.int64) - (len(self.history) - len(self.pruned))


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other.

    Attributes:
        folder: of the comparison, or the common parent of its runs' folders; of a packed one the file, followed by the
            entry's name where the file has several.
        result: what compare.json holds; for single runs the same, without `keep` where they differ in it.
        runs: those whose records are there.
        compared: whether there is a compare.json.
    """

    folder: Path
    result: Mapping[str, Any]
    runs: Sequence[Run]
    compared: bool

    @property
    def name(self) -> str:
        """A short title."""
        return setting(self.result)

    @property
    def metric(self) -> str:
        """What `accuracy` is."""
        return "linear probe" if self.result.get("task") == "contrastive" else self.result.get("metric", "accuracy")

    def of(self, method: str) -> list[Run]:
        """The finished runs of a method, by seed."""
        return sorted((run for run in self.runs if run.method == method and run.metrics), key=lambda run: run.seed)

    def settings(self) -> Settings | None:
        """Settings of the first run, None where no run has recorded them; all runs agree except in `VARIED`."""
        stored = next((run.settings for run in self.runs if run.settings), None)
        return None if stored is None else Settings.of(dict(stored))


def computed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide the result, from a config.json of this or an older version."""
    return {name: stored.get(name, default) for name, default in Settings().computed().items()}


def entries(paths: Sequence[Path]) -> list[pack.Entry]:
    """What folders, folders above such and packed files hold.

    Raises:
        UsageError: if a path holds no results.
        CheckpointError: if a file is damaged.
    """
    return [
        entry
        for path in dict.fromkeys(paths)
        for entry in (pack.read(path) if path.suffix == ".json" else pack.collect(path))
    ]


def read(paths: Sequence[Path]) -> list[Group]:
    """Read comparisons, and single runs in groups that differ in nothing but method, seed and share kept.

    Args:
        paths: folders of `dataprune compare`, `train` or `pretrain`, folders with such folders below them, and files of
            `dataprune pack`.
    Raises:
        UsageError: if a path is none of these, or nothing in it is finished.
        CheckpointError: if a file is damaged.
    """
    return groups(entries(paths))[0]


def groups(found: Sequence[pack.Entry]) -> tuple[list[Group], list[Path]]:
    """The groups of what `entries` found, and the folders left out since nothing in them is finished; as `read`."""
    compared: list[Group] = []
    single: list[Run] = []
    for entry in found:
        runs = {record.path: _run(entry.folder / record.path, record) for record in entry.runs}
        if entry.command == "compare":
            compared.append(_group(entry.folder, entry.result or {}, runs))
        elif entry.command == "train":
            single += [run for name, run in runs.items() if not _nested(name, runs)]
    tested = [run for run in single if run.metrics and run.metrics["accuracy"] is not None]
    whole = [group for group in compared if group.result["summary"]]
    left = [group.folder for group in compared if group not in whole] + [
        run.folder for run in single if run not in tested
    ]
    if not tested and not whole and not any(entry.command == "joint" for entry in found):
        if not left:
            commands = ", ".join(sorted({entry.command for entry in found}))
            raise UsageError(
                f"{found[0].folder} holds no comparison and no run, but {commands} results: no report is made of them"
            )
        if single and single[0].metrics:
            raise UsageError(f"{left[0]} scored samples and was not tested: a report is of runs of `dataprune train`")
        raise UsageError(f"{left[0]} is not finished: repeat the command that began it, it resumes there")
    return whole + _grouped(tested), left


def _nested(name: str, runs: Mapping[str, Run]) -> bool:
    """Whether a run lies below another, whose second stage it is."""
    return any(parent.as_posix() in runs for parent in Path(name).parents if parent.as_posix() != name)


def _group(folder: Path, result: Mapping[str, Any], runs: Mapping[str, Run]) -> Group:
    """A comparison of what compare.json holds and its runs by path."""
    try:
        names = {line["method"] for line in result["summary"] for name in _LINE_FIELDS if line[name] is not None}
        names |= {row["method"] for row in result["runs"] for name in _ROW_FIELDS if row[name] is not None}
        numbers = [line[name] for line in result["summary"] for name in ("accuracy_mean", "samples")]
        numbers += [row["accuracy"] for row in result["runs"]]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("an accuracy or a number of samples that is no number")
        _ = result["data"], result["model"], result["epochs"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'compare.json'} is damaged ({error!r}): delete it, and run again") from error
    own = []
    for path, run in runs.items():
        parent, _, name = path.rpartition("/")
        method, _, seed = name.rpartition("-seed")
        if parent == "runs" and method in names and seed.isdigit():  # others: "untrained", which is no method
            own.append(replace(run, method=method, seed=int(seed)))
    return Group(folder, result, own, True)


def _run(folder: Path, record: pack.RunRecord) -> Run:
    settings, metrics = record.settings or {}, record.metrics
    if metrics is not None and (missing := run_folder.RECORDED - metrics.keys()):
        raise CheckpointError(f"{folder / 'metrics.json'} is damaged (no {min(missing)}): delete it, and run again")
    try:
        _ = [line[name] for line in record.history for name in _EPOCH_FIELDS]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'history.jsonl'} is damaged ({error!r}): delete it, and run again") from error
    named = metrics or settings
    method = named.get("method", folder.name)
    if method == "full" and settings.get("steps") is not None:
        method = "short"  # all the data for fewer steps, as comparisons call it
    return Run(folder, method, int(named.get("seed", 0)), record.settings, metrics, record.history)


def _grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups of runs without a comparison, by the settings they share."""
    shared: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        key = {name: value for name, value in computed(run.settings or {}).items() if name not in VARIED}
        shared[json.dumps(key, sort_keys=True)].append(run)
    groups = []
    for alike in shared.values():
        named, first = _with_differences(alike), Settings.of(dict(alike[0].settings or {}))
        rows = [
            {
                "method": run.method,
                **{name: run.metrics[name] for name in run_folder.RECORDED - {"method", "val_accuracy"}},
            }
            for run in named
            if run.metrics
        ]
        result = {
            "data": first.data,
            "model": first.model,
            "epochs": max(Settings.of(dict(run.settings or {})).epochs for run in named),
            "runs": rows,
            "summary": summarize_methods(rows, list(dict.fromkeys(run.method for run in named))),
        }
        if first.task != "classification":
            result["task"] = first.task
        if metric := next((run.metrics["metric"] for run in named if run.metrics and "metric" in run.metrics), None):
            result["metric"] = metric
        folders = [run.folder for run in alike]
        if any(folder.is_absolute() for folder in folders):
            folders = [folder.absolute() for folder in folders]
        groups.append(Group(Path(os.path.commonpath(folders)), result, named, False))
    return groups


def _with_differences(runs: Sequence[Run]) -> list[Run]:
    """Runs with the settings in which runs of one method differ, the seed apart, behind the method's name."""
    named = []
    for run in runs:
        alike = [other for other in runs if other.method == run.method]
        differences = [
            f"{name.replace('_', '-')} {_short(_value(run, name))}"
            for name in VARIED
            if name not in ("method", "seed") and len({str(_value(other, name)) for other in alike}) > 1
        ]
        named.append(replace(run, method=", ".join([run.method, *differences])))
    return named


def _value(run: Run, name: str) -> Any:
    return computed(run.settings or {}).get(name)


def _short(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, list | tuple) else str(value)
