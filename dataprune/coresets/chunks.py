"""Memory limits of the selectors, and operations on (N, D) matrices that read a chunk of rows at a time."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_MEMORY = 4 << 30  # bytes that a selector may use beyond its input, by default
_CHUNK = 32 << 20  # bytes of a chunk: larger ones are no faster

_log = logging.getLogger("dataprune.coresets")


def chunk_rows(name: str, *, fixed: int, row: int, size: int, max_memory: int) -> int:
    """Choose the rows of a chunk so that a selector stays within `max_memory`, and log the memory that it will use.

    Args:
        name: the selector, for the message.
        fixed: bytes that it needs beyond its input, whatever the chunk.
        row: bytes that it needs for each row of a chunk; 0 if it has no chunks.
        size: rows in all.
        max_memory: bytes that it may use.
    Returns:
        Rows to read at a time, in [1, size].
    Raises:
        ValueError: if not even one row at a time fits.
    """
    if isinstance(max_memory, bool) or not isinstance(max_memory, int) or max_memory < 1:
        raise ValueError(f"max_memory is a number of bytes, at least 1, got {max_memory!r}")
    if fixed + row > max_memory:
        raise ValueError(
            f"{name} needs {fixed + row:,} bytes ({_in_units(fixed + row)}) beyond its input for {size:,} samples, "
            f"more than max_memory={max_memory:,} ({_in_units(max_memory)}): raise max_memory, or pass fewer samples "
            "or features"
        )
    rows = max(1, min(size, (max_memory - fixed) // row, _CHUNK // row)) if row else size
    _log.info("%s: at most %s beyond its input, in chunks of %d rows", name, _in_units(fixed + row * rows), rows)
    return rows


def check_finite(name: str, values: Float[Tensor, "n d"], rows: int) -> None:
    """Raise ValueError if a row is not finite, and name the position of the first; reads `rows` at a time."""
    for start in range(0, len(values), rows):
        chunk = values[start : start + rows]
        # a finite sum means finite values, and a sum that overflows is checked value by value
        if not bool(chunk.sum().isfinite()) and not bool((finite := chunk.isfinite().all(dim=1)).all()):
            raise ValueError(
                f"{name} hold NaN or infinity, first at position {start + int((~finite).int().argmax())}: leave such "
                "samples out, or extract them anew"
            )


def mean_of(values: Float[Tensor, "n d"], positions: Int[Tensor, " m"], rows: int) -> Float[Tensor, " d"]:
    """Mean of the rows at some positions, in float64; reads `rows` at a time."""
    total = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    for chunk in positions.to(values.device).split(rows):
        total += values[chunk].sum(dim=0, dtype=torch.float64)
    return total / len(positions)


def _in_units(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
