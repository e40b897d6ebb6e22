"""One JSON file for an experiment: a folder of results and runs, packed without repetition, and read back.

A file holds one or more entries. An entry is a result file (compare.json, joint.json ...) with the runs below it. What
all runs of an entry share is stored once, a run is one line with what differs, and its epochs are columns. Numbers that
were measured have six significant digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
COMMANDS = {  # result file -> the command that writes it
    "compare.json": "compare",
    "result.json": "reproduce",
    "joint.json": "joint",
    "advice.json": "advise",
}
_RUN_FILES = ("config.json", "metrics.json", "history.jsonl")
_DIGITS = 6
_WIDTH = 120  # longer objects have a line for each key


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        path: its folder, relative to that of the entry.
        settings: what config.json holds, None where there is none.
        metrics: what metrics.json holds, None for a run that is not finished.
        history: its epochs.
        selected: number of samples that were selected in 0, 1, 2 ... epochs; empty where that was not recorded.
    """

    path: str
    settings: dict[str, Any] | None
    metrics: dict[str, Any] | None
    history: list[dict[str, Any]] = field(default_factory=list)
    selected: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A result with its runs.

    Attributes:
        name: of the folder, for folders below it `folder/name`.
        file: name of the result file, "" for runs without one.
        result: what the result file holds, None where there is none.
        runs: by path.
        folder: where the runs' folders are; of a packed file its path, with the entry's name where it has several.
    """

    name: str
    file: str
    result: dict[str, Any] | None
    runs: list[RunRecord]
    folder: Path = Path()

    @property
    def command(self) -> str:
        """What wrote the result: a command's name, `script`, or `train` for runs without a result file."""
        return COMMANDS.get(self.file, "script") if self.file else "train"


def pack(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write the results and runs of folders as one JSON file, and their tables beside it.

    Args:
        folders: of `dataprune compare`, `train`, `joint`, `advise`, `reproduce`, `pretrain` or `score`, or of a script
            that writes one JSON file.
        out: the JSON file; the tables get the same name with the suffix .md.
    Returns:
        The two files.
    Raises:
        UsageError: if a folder holds no results, or `out` does not end in .json.
        CheckpointError: if a file is damaged.
    """
    if out.suffix != ".json":
        raise UsageError(f"--out is the name of a JSON file, got {out}")
    entries = [entry for folder in folders for entry in collect(folder)]
    repeated = {entry.name for entry in entries if sum(other.name == entry.name for other in entries) > 1}
    if repeated:
        raise UsageError(
            f"two folders have the name {min(repeated)}: rename one, the entries of a file have unique names"
        )
    write(entries, out)
    return [out, out.with_suffix(".md")]


def write(entries: Sequence[Entry], out: Path) -> None:
    """Write entries as JSON, and their tables as Markdown beside it; as `pack`."""
    from .packed_tables import markdown

    run_folder.folder(out.parent)
    packed = {"format": FORMAT, "experiments": {entry.name: _encoded(entry) for entry in entries}}
    files.write_bytes(out, (_text(packed) + "\n").encode())
    files.write_bytes(out.with_suffix(".md"), markdown(out.stem, read(out)).encode())


def read(path: Path) -> list[Entry]:
    """Read a packed file.

    Raises:
        UsageError: if it is no packed file.
        CheckpointError: if it is damaged, or of another format.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file: give one that `dataprune pack` wrote")
    content = files.read_json(path)
    if "format" not in content or "experiments" not in content:
        raise UsageError(f"{path} was not written by `dataprune pack`: give the folder it is in")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']}, this version reads format {FORMAT}")
    try:
        packed = content["experiments"].items()
        return [_decoded(name, path / name if len(packed) > 1 else path, entry) for name, entry in packed]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): pack its folder again") from error


def collect(folder: Path) -> list[Entry]:
    """The entries of a folder: its result files with their runs, runs without one, and what packed files hold.

    Raises:
        UsageError: if the folder holds no results.
        CheckpointError: if a file is damaged.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder: give folders of `dataprune compare` or `train`, or a file of `dataprune pack`"
        )
    files = {path.parent: path for name in COMMANDS for path in sorted(folder.rglob(name))}
    runs = {path.parent for name in _RUN_FILES[:2] for path in folder.rglob(name)}
    packed = [path for path in sorted(folder.rglob("*.json")) if _is_packed(path)]
    if folder not in files and folder not in runs and not packed:
        others = sorted(folder.glob("*.json"))
        if len(others) == 1:
            files[folder] = others[0]
    below: dict[Path, list[Path]] = {owner: [] for owner in sorted(files)}
    for run in sorted(runs):
        owner = next((parent for parent in (run, *run.parents) if parent in files), folder)
        below.setdefault(owner, []).append(run)
    entries = [_entry(folder, owner, files.get(owner), paths) for owner, paths in below.items()]
    entries += [entry for path in packed for entry in read(path)]
    if not entries:
        raise UsageError(f"{folder} holds no results: give a folder that a command of dataprune wrote")
    return entries


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20).startswith(b'{\n"format"')


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a file of tensors, {} where there is none.

    Raises:
        CheckpointError: if it is damaged.
    """
    if not path.exists():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete its folder, and run again") from error


def _entry(folder: Path, owner: Path, file: Path | None, runs: Sequence[Path]) -> Entry:
    name = (folder.resolve().name / owner.relative_to(folder)).as_posix()
    result = None if file is None else files.read_json(file)
    return Entry(name, "" if file is None else file.name, result, [_record(owner, run) for run in runs], owner)


def _record(owner: Path, run: Path) -> RunRecord:
    settings, metrics = (files.read_json(run / name) if (run / name).exists() else None for name in _RUN_FILES[:2])
    history = run / _RUN_FILES[2]
    try:
        epochs = files.read_json_lines(history) if history.exists() else []
    except ValueError as error:
        raise CheckpointError(f"{history} is damaged ({error!r}): delete it, and run again") from error
    return RunRecord(
        run.relative_to(owner).as_posix(),
        None if settings is None else with_schedule(settings),
        None if metrics is None else _without_process(metrics),
        epochs,
        _selected(run / "selection_counts.safetensors"),
    )


def with_schedule(settings: dict[str, Any]) -> dict[str, Any]:
    """Older runs named warm-up and annealing among the options of their method."""
    own = dict(text.split("=", 1) for text in settings.get("option", ()) if text.startswith(("warmup=", "anneal=")))
    if not own:
        return settings
    rest = [text for text in settings["option"] if not text.startswith(("warmup=", "anneal="))]
    return settings | {"option": rest} | {name: json.loads(value) for name, value in own.items()}


def _without_process(metrics: dict[str, Any]) -> dict[str, Any]:
    if "machine" not in metrics:
        return metrics
    return metrics | {"machine": {name: value for name, value in metrics["machine"].items() if name != "process"}}


def _selected(path: Path) -> list[int]:
    counts = tensors(path)
    return np.bincount(counts["selected"]).tolist() if counts else []


def _encoded(entry: Entry) -> dict[str, Any]:
    """JSON of an entry, see `_decoded`."""
    rows = list((entry.result or {}).get("runs", [])) if entry.command == "compare" else []
    result = {name: value for name, value in (entry.result or {}).items() if not (rows and name == "runs")}
    row_of = {_path(row): row for row in rows}
    pairs = [(row_of.get(record.path), record.metrics) for record in entry.runs]
    both = [(row, metrics) for row, metrics in pairs if row and metrics]
    same = [name for name in dict.fromkeys(name for row, _ in both for name in row) if _agree(name, both)]
    metrics = [_without(record.metrics, same if row else ()) for record, (row, _) in zip(entry.runs, pairs)]
    shared_settings = _common([record.settings for record in entry.runs if record.settings is not None])
    shared_metrics = _common([values for values in metrics if values is not None])
    lines = []
    for record, values in zip(entry.runs, metrics):
        line: dict[str, Any] = {"path": record.path}
        if record.path in row_of:
            line["row"] = row_of.pop(record.path)
        if record.settings is not None:
            line["settings"] = _difference(record.settings, shared_settings)
        if values is not None:
            line["metrics"] = _difference(values, shared_metrics)
        if record.history:
            line["history"] = _columns(record.history)
        if record.selected:
            line["selected"] = record.selected
        lines.append(line)
    lines += [{"row": row} for row in row_of.values()]
    order = {_path(row): place for place, row in enumerate(rows)}
    lines.sort(key=lambda line: order.get(_path(line["row"]), len(order)) if "row" in line else len(order))
    packed: dict[str, Any] = {"file": entry.file}
    if entry.result is not None:
        # a mean over seeds that is cut off could be printed as another: 0.86395 of 0.8639499999
        packed["result"] = {name: value if name == "summary" else _rounded(value) for name, value in result.items()}
    if lines:
        packed["settings"] = shared_settings  # not rounded: they decide the result
        packed["metrics"] = _rounded(shared_metrics)
        packed["in_row"] = same
        packed["runs"] = [
            {name: value if name == "settings" else _rounded(value) for name, value in line.items()} for line in lines
        ]
    return packed


def _decoded(name: str, folder: Path, packed: Mapping[str, Any]) -> Entry:
    lines = packed.get("runs", [])
    result = packed.get("result")
    rows = [line["row"] for line in lines if "row" in line]
    if rows:
        result = {**packed["result"], "runs": rows}
    runs = []
    for line in (line for line in lines if "path" in line):
        settings = _merged(packed["settings"], line["settings"]) if "settings" in line else None
        metrics = None
        if "metrics" in line:
            in_row = {name: line["row"][name] for name in packed["in_row"]} if "row" in line else {}
            metrics = _merged(packed["metrics"], line["metrics"]) | in_row
        columns = line.get("history", {})
        history = [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]
        runs.append(RunRecord(line["path"], settings, metrics, history, line.get("selected", [])))
    return Entry(name, packed["file"], result, sorted(runs, key=lambda record: record.path), folder)


def _path(row: Mapping[str, Any]) -> str:
    return f"runs/{row['method']}-seed{row['seed']}"


def _agree(name: str, pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> bool:
    return all(name in row and name in metrics and row[name] == metrics[name] for row, metrics in pairs)


def _without(values: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any] | None:
    return None if values is None else {name: value for name, value in values.items() if name not in names}


def _common(dicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all dicts have in common, of nested dicts too."""
    shared = {}
    for name, value in dicts[0].items() if dicts else ():
        values = [values[name] for values in dicts if name in values]
        if len(values) < len(dicts):
            continue
        if all(isinstance(value, dict) for value in values):
            shared[name] = _common(values)
        elif all(type(other) is type(value) and other == value for other in values):
            shared[name] = value
    return shared


def _difference(values: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """What `shared` lacks."""
    own = {}
    for name, value in values.items():
        if name not in shared:
            own[name] = value
        elif isinstance(value, dict) and (nested := _difference(value, shared[name])):
            own[name] = nested
    return own


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The dict of which `_difference` gave `own`."""
    merged = {name: _merged(value, {}) if isinstance(value, dict) else value for name, value in shared.items()}
    for name, value in own.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged


def _columns(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = history[0].keys()
    if any(line.keys() != names for line in history):
        raise CheckpointError("the epochs of a run record different figures: delete its history.jsonl, and run again")
    return {name: [line[name] for line in history] for name in names}


def _rounded(value: Any) -> Any:
    if isinstance(value, float) and not value.is_integer():
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(nested) for name, nested in value.items()}
    return [_rounded(nested) for nested in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    """JSON with a line for each key of a long object and for each object of a list."""
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(compact) <= _WIDTH:
        return compact
    if isinstance(value, dict):
        lines = [f"{json.dumps(name, ensure_ascii=False)}: {_text(nested)}" for name, nested in value.items()]
        return "{\n" + ",\n".join(lines) + "\n}"
    if isinstance(value, list) and any(isinstance(nested, dict) for nested in value):
        lines = [json.dumps(nested, ensure_ascii=False, separators=(",", ":")) for nested in value]
        return "[\n" + ",\n".join(lines) + "\n]"
    return compact


def name_of(folders: Sequence[Path]) -> str:
    """What a packed file is called: the folder's name, for several what their names begin with."""
    names = [folder.resolve().name for folder in folders]
    common = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in common).rstrip("_-") or "experiments"
