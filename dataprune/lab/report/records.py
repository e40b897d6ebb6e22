"""The record files of comparisons and runs, read for a report."""

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
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ...errors import CheckpointError, UsageError
from ..training import run_folder
from ..training.settings import Settings
from .tables import setting

# what runs of one group may differ in; all else of the settings is the same for all of them
VARIED = ("method", "seed", "steps", "epochs", "option", "selected", "keep", "budget", "lr", "statistics")

_OF_LINE = ("method", "accuracy_mean", "accuracy_std", "samples", "steps", "seconds")  # which every line must have
_OF_ROW = ("method", "seed", "accuracy", "samples", "steps", "seconds", "reached_keep")
_OF_EPOCH = ("epoch", "samples", "steps", "lr", "selected")


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        folder: of the run.
        method: as the tables name it.
        seed: of the run.
        settings: what config.json holds, None where there is none.
        metrics: what metrics.json holds, None of a run that is not finished.
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
        """By name (N,): `selected`, `drawn` and, of runs that recorded it, `switches`; empty where there is no file."""
        return _tensors(self.folder / "selection_counts.safetensors")

    @cached_property
    def trajectories(self) -> dict[str, np.ndarray]:
        """Tables of `Trajectories`; empty where there is no file."""
        return _tensors(self.folder / "trajectories.safetensors")

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
        """(N,) how many of the pruned epochs a sample was selected for; None where that is not recorded."""
        if "selected" not in self.counts or not self.history:
            return None
        return self.counts["selected"].astype(np.int64) - (len(self.history) - len(self.pruned))


@dataclass(frozen=True)
class Group:
    """Runs that are compared with each other.

    Attributes:
        folder: of the comparison, or what the folders of its runs have in common.
        result: what compare.json holds; of single runs what it would hold, without `keep` where they differ in it.
        runs: those whose folders are there.
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
        """Those of the first run, which all share but for what is `VARIED`; None where no run has kept them."""
        stored = next((run.settings for run in self.runs if run.settings), None)
        return None if stored is None else Settings.of(dict(stored))


def computed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide the result, out of a config.json of this or an older version; a coreset by its content."""
    return {name: stored.get(name, default) for name, default in Settings().computed().items()}


def read(folders: Sequence[Path]) -> list[Group]:
    """Comparisons, and single runs in groups that differ in nothing but method, seed and what is kept.

    Args:
        folders: of `dataprune compare` and of `dataprune train` or `pretrain`.
    Raises:
        UsageError: if a folder is none of these, or nothing in it is finished.
        CheckpointError: if a file is damaged.
    """
    groups, single = [], []
    for folder in dict.fromkeys(folders):
        if (folder / "compare.json").exists():
            groups.append(_comparison(folder))
        elif (folder / "config.json").exists():
            single.append(_run(folder))
        else:
            raise UsageError(f"{folder} {_no_record(folder)}")
    for run in single:
        if run.metrics is None:
            raise UsageError(
                f"{run.folder} is not finished: give the command that began it again, it goes on from there"
            )
        if run.metrics["accuracy"] is None:
            raise UsageError(
                f"{run.folder} scored samples and was not tested: a report is of runs of `dataprune train`"
            )
    for group in groups:
        if not group.result["summary"]:
            raise UsageError(f"{group.folder} has no finished run: give the command that began it again, it goes on")
    return groups + _grouped(single)


def _no_record(folder: Path) -> str:
    """What to say of a folder that is neither a comparison nor a run."""
    if not folder.is_dir():
        return "is no folder: give folders of `dataprune compare` or `train`"
    below = sorted(path.parent for path in folder.glob("*/compare.json"))
    below = below or sorted(path.parent for path in folder.glob("*/config.json"))
    below = below or sorted(path.parent for path in folder.glob("runs/*/config.json"))
    if below:
        more = f" and {len(below) - 4} more" if len(below) > 4 else ""
        return f"holds no compare.json: give what is below it, {', '.join(map(str, below[:4]))}{more}"
    return "holds no compare.json and no run with its config.json: give folders of `dataprune compare` or `train`"


def _comparison(folder: Path) -> Group:
    result = run_folder.read_json(folder / "compare.json")
    try:
        names = {line["method"] for line in result["summary"] for name in _OF_LINE if line[name] is not None}
        names |= {row["method"] for row in result["runs"] for name in _OF_ROW if row[name] is not None}
        numbers = [line[name] for line in result["summary"] for name in ("accuracy_mean", "samples")]
        numbers += [row["accuracy"] for row in result["runs"]]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("an accuracy or a number of samples that is no number")
        _ = result["data"], result["model"], result["epochs"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'compare.json'} is damaged ({error!r}): delete it, and run again") from error
    found = []
    for path in sorted((folder / "runs").glob("*-seed*")):
        method, _, seed = path.name.rpartition("-seed")
        if method in names and seed.isdigit():  # others: "untrained", which is no method
            found.append(replace(_run(path), method=method, seed=int(seed)))
    return Group(folder, result, found, True)


def _run(folder: Path) -> Run:
    settings = run_folder.read_json(folder / "config.json") if (folder / "config.json").exists() else None
    metrics = run_folder.read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else None
    if metrics is not None and (missing := run_folder.RECORDED - metrics.keys()):
        raise CheckpointError(f"{folder / 'metrics.json'} is damaged (no {min(missing)}): delete it, and run again")
    named = metrics or settings or {}
    try:
        history = run_folder.read_lines(folder / "history.jsonl") if (folder / "history.jsonl").exists() else []
        _ = [line[name] for line in history for name in _OF_EPOCH]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'history.jsonl'} is damaged ({error!r}): delete it, and run again") from error
    method = named.get("method", folder.name)
    if method == "full" and (settings or {}).get("steps") is not None:
        method = "short"  # all the data for fewer steps, as comparisons call it
    return Run(folder, method, int(named.get("seed", 0)), settings, metrics, history)


def _grouped(single: Sequence[Run]) -> list[Group]:
    """Runs without a comparison, by what they share."""
    from ..sweeps.compare import summarize

    shared: dict[str, list[Run]] = defaultdict(list)
    for run in single:
        key = {name: value for name, value in computed(run.settings or {}).items() if name not in VARIED}
        shared[json.dumps(key, sort_keys=True)].append(run)
    groups = []
    for mine in shared.values():
        named, first = _named(mine), Settings.of(dict(mine[0].settings or {}))
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
            "summary": summarize(rows, list(dict.fromkeys(run.method for run in named))),
        }
        if first.task != "classification":
            result["task"] = first.task
        if metric := next((run.metrics["metric"] for run in named if run.metrics and "metric" in run.metrics), None):
            result["metric"] = metric
        folders = [run.folder for run in mine]
        if any(folder.is_absolute() for folder in folders):
            folders = [folder.absolute() for folder in folders]
        together = Path(os.path.commonpath(folders))
        groups.append(Group(together, result, named, False))
    return groups


def _named(mine: Sequence[Run]) -> list[Run]:
    """With what runs of one method differ in, seeds apart, beside the method's name."""
    named = []
    for run in mine:
        alike = [other for other in mine if other.method == run.method]
        told = [
            f"{name.replace('_', '-')} {_short(_value(run, name))}"
            for name in VARIED
            if name not in ("method", "seed") and len({str(_value(other, name)) for other in alike}) > 1
        ]
        named.append(replace(run, method=", ".join([run.method, *told])))
    return named


def _value(run: Run, name: str) -> Any:
    return computed(run.settings or {}).get(name)


def _short(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, list | tuple) else str(value)


def _tensors(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete its folder, and run again") from error
