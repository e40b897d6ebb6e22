"""Rows of JSON lines and parquet files, one after another; none is kept in memory."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError, UsageError
from ..data.folders import first_line
from . import chats
from .chats import Chat

LINES = (".jsonl", ".ndjson", ".json")
_ROWS = 256  # that are read from a parquet file at a time


class Row(NamedTuple):
    """A row of a file, in the order of all files."""

    position: int  # in all files together, from 0
    place: str  # "chats.jsonl, line 7"
    value: Any
    problem: str = ""  # why there is no value
    line: str = ""  # as it stands in a file of JSON lines

    def as_line(self) -> str:
        """One line of JSON: as it was read, or made of a parquet file's row."""
        return self.line or json.dumps(self.value, ensure_ascii=False, default=str)


@dataclass
class Scan:
    """What is known of all rows before any is scored."""

    size: int = 0  # rows, broken ones included
    broken: list[int] = field(default_factory=list)  # their positions
    letters: array[int] = field(default_factory=lambda: array("q"))  # of the answers of each row, 0 for a broken one
    first_problem: str = ""

    @property
    def usable(self) -> np.ndarray:
        """Which rows hold a chat."""
        flags = np.ones(self.size, dtype=np.bool_)
        flags[self.broken] = False
        return flags


def find(path: Path) -> list[Path]:
    """The files of a path: itself, or the parquet files or else the JSON lines of a folder, by name."""
    if path.is_dir():
        paths = sorted(path.glob("*.parquet")) or sorted(p for s in LINES for p in path.glob(f"*{s}"))
        if not paths:
            raise DataError(f"{path} holds neither .parquet nor {', '.join(LINES)} files")
        return paths
    if not path.exists():
        raise DataError(f"there is no {path}: give a file of JSON lines or parquet, or a folder of these")
    if path.suffix not in (".parquet", *LINES):
        raise DataError(f"{path}: the suffix says the format, one of .parquet, {', '.join(LINES)}; got {path.suffix!r}")
    return [path]


def read(files: Sequence[Path]) -> Iterator[Row]:
    """All rows in order. Empty lines are no rows; a line that is no JSON object is a row with a `problem`.

    Raises:
        DataError: if a file cannot be read, or none of its columns is known.
    """
    position = 0
    for path in files:
        checked = False
        for row in _parquet(path, position) if path.suffix == ".parquet" else _lines(path, position):
            if not checked and not row.problem:
                if not chats.known(row.value):
                    raise DataError(f"{row.place} {chats.unknown_columns(row.value)}")
                checked = True
            position += 1
            yield row


def read_chats(files: Sequence[Path], *, answered: bool = True) -> Iterator[tuple[Row, Chat | None, str]]:
    """All rows with their chats, or with None and what is wrong with the row."""
    for row in read(files):
        if row.problem:
            yield row, None, row.problem
            continue
        try:
            yield row, chats.parse(row.value, answered=answered), ""
        except DataError as error:
            yield row, None, str(error)


def scan(files: Sequence[Path], *, skip_broken: bool = False, answered: bool = True) -> Scan:
    """Check all rows and count them.

    Raises:
        DataError: naming file and number of the first broken row, unless `skip_broken`.
    """
    result = Scan()
    for row, chat, problem in read_chats(files, answered=answered):
        result.size += 1
        result.letters.append(0 if chat is None else sum(map(len, chats.answers(chat))))
        if chat is None:
            problem = f"{row.place} {problem}"
            if not skip_broken:
                raise DataError(f"{problem}; --skip-broken leaves such rows out and counts them")
            result.first_problem = result.first_problem or problem
            result.broken.append(row.position)
    return result


def digest(files: Sequence[Path]) -> str:
    """Of the contents of all files."""
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def _lines(path: Path, position: int) -> Iterator[Row]:
    with open(path, "rb") as file:
        for number, content in enumerate(file, 1):
            if not content.strip():
                continue
            place = f"{path.name}, line {number}"
            try:
                line = content.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                value = json.loads(line)
            except ValueError as error:
                if number == 1 and content.lstrip()[:1] == b"[":
                    raise DataError(_whole(path)) from None
                yield Row(position, place, None, f"is broken ({first_line(error)})")
            else:
                if number == 1 and isinstance(value, list):
                    raise DataError(_whole(path))
                problem = "" if isinstance(value, dict) else f"is no JSON object but a {type(value).__name__}"
                yield Row(position, place, value, problem, line)
            position += 1


def _whole(path: Path) -> str:
    return (
        f"{path} is one JSON array, not JSON lines, and cannot be read row by row: write an object a line, as "
        "datasets' Dataset.to_json does, or parquet"
    )


def _parquet(path: Path, position: int) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("parquet needs pyarrow: pip install pyarrow, or give JSON lines") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if not chats.known(file.schema_arrow.names):
                raise DataError(f"{path.name} {chats.unknown_columns(file.schema_arrow.names)}")
            for batch in file.iter_batches(batch_size=_ROWS):
                for value in batch.to_pylist():
                    yield Row(position + number, f"{path.name}, row {number}", value)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read after row {number}: {first_line(error)}; fetch it again") from error
