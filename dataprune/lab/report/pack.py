"""Results and runs, read from the folders that commands write, or from one JSON file that holds several of them.

A packed file holds one or more entries. An entry is a result file (compare.json, joint.json ...) with the runs below
it. What all runs of an entry share is stored once, a run is one line with what differs, and its epochs are columns.
Numbers that were measured have six significant digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ... import files
from ...errors import CheckpointError, UsageError
from ..training import run_folder

FORMAT = 1
# result file -> the command that writes it
COMMANDS = {
    "compare.json": "compare", "saving.json": "saving", "result.json": "reproduce", "joint.json": "joint",
    "advice.json": "advise",
}  # fmt: skip
_RUN_FILES = ("config.json", "metrics.json")
_WIDTH = 120  # longer objects have a line for each key

Record = Mapping[str, Any]
Records = Sequence[Record]


@dataclass(frozen=True)
class Run:
    """One run, from its folder or a packed file."""

    path: str = field(compare=False)  # of its folder below that of the entry
    folder: Path  # of a packed run, what it was called below the packed file
    settings: Record | None  # of config.json
    metrics: Record | None  # of metrics.json, None for a run that is not finished
    history: Records  # its epochs
    selected: Sequence[int]  # number of samples that were selected in 0, 1, 2 ... epochs; empty if not recorded
    method: str  # as tables name it
    seed: int

    @property
    def name(self) -> str:
        """Method and seed."""
        return f"{self.method} seed {self.seed}"

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """Arrays (N,) `selected`, `drawn` and, of runs that recorded it, `switches`; empty where there is no file."""
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
        """(N,) number of pruned epochs in which a sample was selected; None where that is not recorded."""
        if "selected" not in self.counts or not self.history:
            return None
        return self.counts["selected"].astype(np.int64) - (len(self.history) - len(self.pruned))


@dataclass(frozen=True)
class Entry:
    """A result with its runs by path."""

    name: str  # of the folder, for folders below it `folder/name`
    file: str  # name of the result file, "" for runs without one
    result: dict[str, Any] | None
    runs: Sequence[Run]
    folder: Path  # where the runs' folders are; of a packed file its path, with the entry's name if it has several

    @property
    def command(self) -> str:
        """What wrote the result: a command's name, `script`, or `train` for runs without a result file."""
        return COMMANDS.get(self.file, "script") if self.file else "train"


def pack(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write the results and runs of folders as the JSON file `out`, and their tables as Markdown beside it.

    Raises UsageError if a folder holds no results or `out` does not end in .json, CheckpointError if a file is damaged.
    """
    from .packed_tables import markdown

    if out.suffix != ".json":
        raise UsageError(f"--out is the name of a JSON file, got {out}")
    entries = [entry for folder in folders for entry in collect(folder)]
    names = [entry.name for entry in entries]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two folders have the name {min(repeated)}: rename one, entries of a file have unique names")
    run_folder.folder(out.parent)
    packed = {"format": FORMAT, "experiments": {entry.name: _encoded(entry) for entry in entries}}
    files.write_text(out, _text(packed) + "\n")
    files.write_text(out.with_suffix(".md"), markdown(out.stem, read(out)))
    return [out, out.with_suffix(".md")]


def read(path: Path) -> list[Entry]:
    """The entries of a packed file: UsageError if it is none, CheckpointError if it is damaged or of another format."""
    if not path.is_file():
        raise UsageError(f"{path} is no file: give one that `dataprune pack` wrote")
    content = files.read_json(path)
    if "format" not in content or "experiments" not in content:
        raise UsageError(f"{path} was not written by `dataprune pack`: give the folder it is in")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']}, this version reads format {FORMAT}")
    with files.undamaged(path, "pack its folder again"):
        packed = content["experiments"].items()
        return [_decoded(name, path / name if len(packed) > 1 else path, entry) for name, entry in packed]


def collect(folder: Path) -> list[Entry]:
    """The entries of a folder: its result files with their runs, runs without one, and what packed files hold.

    Raises UsageError if there are none, CheckpointError if a file is damaged.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder: give folders of `dataprune compare` or `train`, or a file of `dataprune pack`"
        )
    results = {path.parent: path for name in COMMANDS for path in folder.rglob(name)}
    runs = {path.parent for name in _RUN_FILES for path in folder.rglob(name)}
    packed = [path for path in sorted(folder.rglob("*.json")) if path.read_bytes()[:20].startswith(b'{\n"format"')]
    if folder not in results and folder not in runs and not packed:
        scripts = list(folder.glob("*.json"))
        if len(scripts) == 1:
            results[folder] = scripts[0]
    below: dict[Path, list[Path]] = {owner: [] for owner in sorted(results)}
    for run in sorted(runs):
        owner = next((parent for parent in (run, *run.parents) if parent in results), folder)
        below.setdefault(owner, []).append(run)
    entries = []
    for owner, folders in below.items():
        name = (folder.resolve().name / owner.relative_to(folder)).as_posix()
        file, result = ("", None) if owner not in results else (results[owner].name, files.read_json(results[owner]))
        entries.append(Entry(name, file, result, [_read_run(owner, path) for path in folders], owner))
    entries += [entry for path in packed for entry in read(path)]
    if not entries:
        raise UsageError(f"{folder} holds no results: give a folder that a command of dataprune wrote")
    return entries


def name_of(folders: Sequence[Path]) -> str:
    """What a packed file is called: the folder's name, for several what their names begin with."""
    letters = zip(*(folder.resolve().name for folder in folders), strict=False)
    common = takewhile(lambda alike: len(set(alike)) == 1, letters)
    return "".join(alike[0] for alike in common).rstrip("_-") or "experiments"


def _read_run(owner: Path, folder: Path) -> Run:
    path = folder / "history.jsonl"
    with files.undamaged(path):
        history = files.read_json_lines(path) if path.exists() else []
    settings, metrics = (files.read_json(folder / name) if (folder / name).exists() else None for name in _RUN_FILES)
    if metrics and "machine" in metrics:
        metrics["machine"].pop("process", None)
    counts = _tensors(folder / "selection_counts.safetensors")
    selected = np.bincount(counts["selected"]).tolist() if counts else []
    settings = with_schedule(settings) if settings else settings
    return _run(owner, folder.relative_to(owner).as_posix(), settings, metrics, history, selected)


def _run(
    owner: Path, path: str, settings: Record | None, metrics: Record | None, history: Records, selected: Sequence[int]
) -> Run:
    """A run with its method and seed from its record, or from its settings where it is not finished."""
    named = metrics or settings or {}
    method = named.get("method", (owner / path).name)
    if method == "full" and settings and settings.get("steps") is not None:
        method = "short"  # all the data for fewer steps, as comparisons call it
    return Run(path, owner / path, settings, metrics, history, selected, method, int(named.get("seed", 0)))


def with_schedule(settings: Record) -> dict[str, Any]:
    """Settings in which warm-up and annealing are no options of the method, as they were in older runs."""
    options = settings.get("option", ())
    schedule = [text for text in options if text.startswith(("warmup=", "anneal="))]
    if not schedule:
        return dict(settings)
    values = {name: json.loads(value) for name, value in (text.split("=", 1) for text in schedule)}
    return {**settings, "option": [text for text in options if text not in schedule], **values}


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """A file of tensors, {} where there is none."""
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete its folder, and run again") from error


def _encoded(entry: Entry) -> dict[str, Any]:
    """JSON of an entry: what its runs share, and a line for each row of a comparison and each other run."""
    result, rows = dict(entry.result or {}), {}
    if entry.command == "compare" and result["runs"]:
        rows = {f"runs/{row['method']}-seed{row['seed']}": row for row in result.pop("runs")}
    runs = {run.path: run for run in entry.runs}
    pairs = [(rows[path], run.metrics) for path, run in runs.items() if path in rows and run.metrics]
    # fields in which every row agrees with the metrics of its run, which therefore need not have them
    in_row = [
        name
        for name in dict.fromkeys(name for row, _ in pairs for name in row)
        if all(name in row and row[name] == metrics.get(name) for row, metrics in pairs)
    ]
    metrics = {
        path: {name: value for name, value in run.metrics.items() if path not in rows or name not in in_row}
        for path, run in runs.items()
        if run.metrics is not None
    }
    shared_settings = _common([run.settings for run in entry.runs if run.settings is not None])
    shared_metrics = _common(list(metrics.values()))
    lines: list[dict[str, Any]] = []
    for path in dict.fromkeys([*rows, *runs]):
        line: dict[str, Any] = {"path": path} if path in runs else {}
        if path in rows:
            line["row"] = _rounded(rows[path])
        if path in runs:
            run = runs[path]
            if run.settings is not None:
                line["settings"] = _difference(run.settings, shared_settings)  # not rounded: they decide the result
            if path in metrics:
                line["metrics"] = _rounded(_difference(metrics[path], shared_metrics))
            line |= {"history": _rounded(_columns(run.history))} if run.history else {}
            line |= {"selected": run.selected} if run.selected else {}
        lines.append(line)
    packed: dict[str, Any] = {"file": entry.file}
    if entry.result is not None:
        # a mean over seeds that is cut off could be printed as another: 0.86395 of 0.8639499999
        packed["result"] = {name: value if name == "summary" else _rounded(value) for name, value in result.items()}
    if lines:
        packed |= {"settings": shared_settings, "metrics": _rounded(shared_metrics), "in_row": in_row, "runs": lines}
    return packed


def _decoded(name: str, folder: Path, packed: Record) -> Entry:
    lines, result, runs = packed.get("runs", []), packed.get("result"), []
    if rows := [line["row"] for line in lines if "row" in line]:
        result = {**packed["result"], "runs": rows}
    for line in lines:
        if "path" not in line:
            continue
        settings = _merged(packed["settings"], line["settings"]) if "settings" in line else None
        metrics = _merged(packed["metrics"], line["metrics"]) if "metrics" in line else None
        if metrics is not None and "row" in line:
            metrics |= {name: line["row"][name] for name in packed["in_row"]}
        columns = line.get("history", {})
        history = [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]
        runs.append(_run(folder, line["path"], settings, metrics, history, line.get("selected", [])))
    return Entry(name, packed["file"], result, sorted(runs, key=lambda run: run.path), folder)


def _common(dicts: Records) -> dict[str, Any]:
    """What all dicts have in common, of nested dicts too."""
    shared = {}
    for name in dicts[0] if dicts else ():
        values = [values[name] for values in dicts if name in values]
        if len(values) < len(dicts):
            continue
        if all(isinstance(value, dict) for value in values):
            shared[name] = _common(values)
        elif all(type(value) is type(values[0]) and value == values[0] for value in values):
            shared[name] = values[0]
    return shared


def _difference(values: Record, shared: Record) -> dict[str, Any]:
    """What `shared` lacks."""
    different = {name: value for name, value in values.items() if name not in shared}
    nested = {name: _difference(values[name], value) for name, value in shared.items() if isinstance(value, dict)}
    return different | {name: value for name, value in nested.items() if value}


def _merged(shared: Record, different: Record) -> dict[str, Any]:
    """The dict of which `_difference` gave `different`."""
    nested = {
        name: _merged(value, different.get(name, {})) for name, value in shared.items() if isinstance(value, dict)
    }
    return {**shared, **different, **nested}


def _columns(history: Records) -> dict[str, list[Any]]:
    if any(line.keys() != history[0].keys() for line in history):
        raise CheckpointError("the epochs of a run record different figures: delete its history.jsonl, and run again")
    return {name: [line[name] for line in history] for name in history[0]}


def _rounded(value: Any) -> Any:
    """Numbers with six significant digits."""
    if isinstance(value, float) and not value.is_integer():
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(nested) for name, nested in value.items()}
    return [_rounded(nested) for nested in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    """JSON with a line for each key of a long object and for each object of a list."""
    compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    text = compact(value)
    if len(text) > _WIDTH and isinstance(value, dict):
        lines = [f"{compact(name)}: {_text(nested)}" for name, nested in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    if len(text) > _WIDTH and isinstance(value, list) and any(isinstance(nested, dict) for nested in value):
        return "[\n" + ",\n".join(map(compact, value)) + "\n]"
    return text
