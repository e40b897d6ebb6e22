"""Tables of scores on disk, a row per sample, as parquet or CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import files
from ..errors import DataError

_KEY = b"dataprune"  # metadata key of the notes in a parquet file
_POSITIONS = ("position", "", "Unnamed: 0", "__index_level_0__")  # columns that number the rows, as `index` does


@dataclass(frozen=True, eq=False)
class Scores:
    """A table of scores, in the dataset's order."""

    scores: dict[str, Float[Tensor, " n"]]  # by column; float32, NaN where a sample has none
    labels: Int[Tensor, " n"] | None  # class ids, None where the table has no column `label`
    notes: dict[str, Any]  # that were saved with it; empty for a CSV file


def save_scores(
    path: str | os.PathLike[str],
    scores: Mapping[str, Float[Tensor, " n"]],
    *,
    labels: Int[Tensor, " n"] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a table with the columns `index`, `label` where there are labels, and one for each score.

    Args:
        path: ends in .parquet, which needs pyarrow, or in .csv. Written whole or not at all.
        scores: name -> scores of all samples, as from `Recorder.scores`.
        labels: class ids.
        notes: metadata that JSON can hold; saved in parquet only.
    Raises:
        ValueError: if lengths differ, there are no scores, one is called `index` or `label`, or path ends in neither.
    """
    path = Path(path)
    sizes = {len(column) for column in scores.values()} | (set() if labels is None else {len(labels)})
    if len(sizes) != 1:
        raise ValueError(f"a table needs scores of one length, got lengths {sorted(sizes)}")
    if {"index", "label"} & set(scores):
        raise ValueError("the columns `index` and `label` are reserved: give the score another name")
    columns: dict[str, np.ndarray] = {"index": np.arange(sizes.pop())}
    columns |= {} if labels is None else {"label": labels.cpu().numpy()}
    columns |= {name: column.detach().cpu().float().numpy() for name, column in scores.items()}
    write_table(path, columns, notes)


def write_table(path: Path, columns: Mapping[str, np.ndarray], notes: Mapping[str, Any] | None = None) -> None:
    """Write columns of equal length and, in parquet, notes; raises as `save_scores`."""
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"a table of scores ends in .parquet or .csv, got {path.name!r}")
    files.write_bytes(path, _csv(columns) if path.suffix == ".csv" else _parquet(columns, dict(notes or {})))


def load_scores(path: str | os.PathLike[str]) -> Scores:
    """Read a table of scores: one that `save_scores` wrote, or any with a row per sample.

    Columns of numbers are scores, except `index` and `label`; other columns are left out. Rows are sorted by `index`,
    or else by `position` or the index that pandas saved; without any of these they are in the dataset's order.

    Raises:
        DataError: if the file is not a table, its index does not number the rows, or there is no column of numbers.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise DataError(f"{path} is not a table of scores: it must end in .parquet or .csv")
    columns, notes = _read_parquet(path) if path.suffix == ".parquet" else (_read_csv(path), {})
    index, labels = _positions(path, columns), columns.pop("label", None)
    numbers = {name: column for name, column in columns.items() if column.dtype.kind in "iufb"}
    if not numbers:
        names = ", ".join(columns) or "no column"
        raise DataError(f"{path} has no column of scores: those of {names} are not all numbers")
    order: Any = slice(None) if index is None else np.argsort(index)
    numbered = labels is not None and labels.dtype.kind in "iu"  # else they are names of classes
    ids = torch.from_numpy(labels[order].astype(np.int64)) if labels is not None and numbered else None
    scores = {name: torch.from_numpy(column[order].astype(np.float32)) for name, column in numbers.items()}
    return Scores(scores, ids, notes)


def _positions(path: Path, columns: dict[str, np.ndarray]) -> np.ndarray | None:
    """Take the columns that number the rows out of a table; returns each row's position in the dataset, if known."""
    given = {name: columns.pop(name) for name in _POSITIONS if name in columns and columns[name].dtype.kind in "iuf"}
    if "index" in columns:
        given = {"index": columns.pop("index")}
    for name, index in given.items():
        if not np.array_equal(np.sort(index), np.arange(len(index))):
            what = f"column `{name}`" if name in ("index", "position") else "index that was saved with the table"
            raise DataError(
                f"{path}: the {what} must number all {len(index)} samples of the dataset from 0 on: score all of them, "
                "or, where the rows are in the dataset's order, save without it (pandas: reset_index(drop=True))"
            )
    first = next(iter(given.values()), None)
    if first is not None and any(not np.array_equal(first, other) for other in given.values()):
        raise DataError(
            f"{path}: the columns {', '.join(map(repr, given))} number the rows differently: rename the one with "
            "positions in the dataset to `index`"
        )
    return first


def _parquet(columns: Mapping[str, np.ndarray], notes: dict[str, Any]) -> bytes:
    arrow, parquet = _pyarrow()
    table = arrow.table({name: arrow.array(column) for name, column in columns.items()})
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({_KEY: json.dumps(notes).encode()}), buffer)
    return buffer.getvalue()


def _read_parquet(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(os.fspath(path))
        metadata = table.schema.metadata or {}
        notes, pandas = json.loads(metadata.get(_KEY, b"{}")), json.loads(metadata.get(b"pandas", b"{}"))
    except FileNotFoundError:
        raise
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable parquet file ({error})") from error
    columns = {name: table[name].to_numpy() for name in table.column_names}
    for saved in pandas.get("index_columns", []):
        if isinstance(saved, dict) and "start" in saved:  # a range has no column of its own
            columns["__index_level_0__"] = np.arange(saved["start"], saved["stop"], saved["step"])
        elif saved in columns and saved != "index":
            columns["__index_level_0__"] = columns.pop(saved)
    return columns, notes


def _csv(columns: Mapping[str, np.ndarray]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # str of a float32 is the shortest text that reads back as the same
    writer.writerows(zip(*(["" if value != value else str(value) for value in column] for column in columns.values())))
    return text.getvalue().encode()


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file ({error})") from error
    if len(rows) < 2:
        raise DataError(f"{path} has no rows")
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if wrong:
        raise DataError(f"{path}, line {wrong}: {len(rows[wrong - 1])} values where the header names {len(rows[0])}")
    if all(_numbers([name]).dtype.kind in "iuf" for name in rows[0]):
        raise DataError(f"{path} has no header: its first line must name the columns, got {','.join(rows[0])}")
    return {name: _numbers(column) for name, column in zip(rows[0], zip(*rows[1:]))}


def _numbers(column: Iterable[str]) -> np.ndarray:
    """Parse as whole numbers, else as numbers with NaN for empty cells, else as text."""
    values = np.array(list(column))
    for kind in (np.int64, np.float64):
        with contextlib.suppress(ValueError):
            return np.where(values == "", "nan", values).astype(kind)
    return values


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("parquet needs pyarrow: pip install pyarrow, or write a .csv file") from error
    return pyarrow, pyarrow.parquet
