"""A sharded pruner's state in files: one safetensors file a shard, and one with what all of them share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from . import checks, distributed, files
from .catalog import Catalog
from .errors import CheckpointError

_NOTES = "pruner.json"
_BITS = ("selected", "trained")  # kept as a bit a row


def write(
    folder: str | os.PathLike[str], parts: list[tuple[int, dict[str, np.ndarray]]], notes: dict[str, Any]
) -> None:
    """Write the shards of this rank, and on rank 0, when all ranks have done so, the notes. Collective.

    Args:
        folder: made where it is missing.
        parts: the number of each shard, and its columns.
        notes: plain values; `stamp` is that of the shards that belong to them.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    for shard, columns in parts:
        packed = {name: np.packbits(column) if name in _BITS else column for name, column in columns.items()}
        content = save(
            {name: np.ascontiguousarray(column) for name, column in packed.items()}, {"stamp": notes["stamp"]}
        )
        files.write_bytes(_path(folder, shard), content)
    distributed.barrier()
    if distributed.rank() == 0:
        files.write_json(Path(folder) / _NOTES, notes)
    distributed.barrier()


def notes(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes of a folder; CheckpointError where it was not written to its end."""
    path = Path(folder) / _NOTES
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: no pruner was saved there, or not to its end; load an earlier one")
    content = files.read_json(path)
    with files.undamaged(path, "load an earlier one"):
        {name: content[name] for name in ("schema", "size", "plan", "data", "epoch", "complete", "totals", "stamp")}
    return content


def read(folder: str | os.PathLike[str], shard: int, catalog: Catalog, stamp: str) -> dict[str, np.ndarray] | None:
    """The columns of a shard; None, and a warning, where its file is lost."""
    path, rows = _path(folder, shard), catalog.rows[shard]
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            columns = {name: file.get_tensor(name) for name in ("score", "drawn", *_BITS)}
            cause = "is of another checkpoint" if (file.metadata() or {}).get("stamp") != stamp else ""
    except FileNotFoundError:
        columns, cause = {}, "is missing"
    except (SafetensorError, ValueError) as error:
        columns, cause = {}, f"is damaged ({error})"
    if not cause:
        columns |= {name: np.unpackbits(columns[name], count=rows).astype(np.bool_) for name in _BITS}
        if {len(column) for column in columns.values()} == {rows}:
            return columns
        cause = "has another number of rows"
    checks.warn(f"{path} {cause}: the {rows} rows of that shard count as unseen, and are selected first")
    return None


def _path(folder: str | os.PathLike[str], shard: int) -> Path:
    return Path(folder) / f"scores-{shard:06d}.safetensors"
