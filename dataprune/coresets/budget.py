"""How many samples a coreset keeps, how many of each class, and how much memory choosing them may take."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from .. import policies
from ..errors import UsageError, suggest
from ..schedules import check_fraction

Balance = Literal["none", "class"]

MAX_MEMORY = 4 << 30  # bytes a selector may use beyond its input, unless told otherwise
_CHUNK = 32 << 20  # bytes of a chunk: larger ones are no faster
_SHOWN = 10  # classes that an error names

_log = logging.getLogger("dataprune.coresets")


def count_of(size: int, keep: float) -> int:
    """Samples kept: max(1, floor(keep * size + 0.5)).

    Args:
        size: samples in the dataset, at least 1.
        keep: fraction kept, in (0, 1].
    Raises:
        ValueError: if keep is outside (0, 1] or there is no sample.
    Example:
        >>> count_of(25, 0.1)
        3
    """
    check_fraction("keep", keep)
    if size < 1:
        raise ValueError("there are no samples to choose from: the first tensor is empty")
    return max(1, math.floor(keep * size + 0.5))


def check_balance(balance: str, labels: Tensor | None) -> None:
    """Raise ValueError unless `balance` is "none", or "class" with labels."""
    if balance not in ("none", "class"):
        raise UsageError(suggest(str(balance), ["none", "class"], what="balance"))
    if balance == "class" and labels is None:
        raise ValueError('balance="class" needs labels: pass labels=, one class id per sample')


def members_of(labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The class ids that occur, ascending, and the ascending positions of each one's samples."""
    classes, sizes = torch.unique(labels, return_counts=True)
    return classes, list(torch.argsort(labels, stable=True).split(sizes.tolist()))


def equal_places(
    classes: Tensor, sizes: Sequence[int], count: int, generator: Generator, *, members: Sequence[int] | None = None
) -> list[int]:
    """Places per class under balance="class": the same number for each, as far as it has samples.

    Args:
        classes: (C,) class ids, for the error.
        sizes: how many samples each class can give.
        count: places in all.
        generator: draws the classes that get an odd rest.
        members: samples of each class where that is more than it can give.
    Raises:
        ValueError: if a class would get no place.
    """
    places = policies.quotas(torch.tensor(sizes), count, generator)
    _check_no_class_empty(classes, members or sizes, places, count)
    return places


def proportional_places(classes: Tensor, sizes: Sequence[int], count: int, generator: Generator) -> list[int]:
    """Places per class in proportion to its size; the largest fractions are rounded up, equal ones at random.

    Args:
        classes: (C,) class ids, for the error.
        sizes: samples of each class.
        count: places in all, at most the sum of sizes.
        generator: decides between equal fractions.
    Raises:
        ValueError: if a class would get no place.
    Example:
        >>> proportional_places(torch.arange(2), [30, 10], 4, torch.Generator())
        [3, 1]
    """
    exact = torch.tensor(sizes) * count
    places = exact // sum(sizes)
    places[policies.highest(exact % sum(sizes), count - int(places.sum()), generator)] += 1
    _check_no_class_empty(classes, sizes, places.tolist(), count)
    return places.tolist()


def check_memory(need: int, limit: int, what: str) -> None:
    """Raise ValueError if `what` needs more bytes beyond its input than `limit`."""
    if need > limit:
        raise ValueError(
            f"{what} needs {_shown(need)} beyond its inputs, max_memory allows {_shown(limit)}: raise max_memory, or "
            "select from a part of the data or from fewer features"
        )


def _check_no_class_empty(classes: Tensor, sizes: Sequence[int], places: Sequence[int], count: int) -> None:
    empty = [f"{name} ({size} samples)" for name, size, got in zip(classes.tolist(), sizes, places) if not got]
    if empty:
        more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
        raise ValueError(
            f"keep leaves {count} samples for {len(classes)} classes, and none for class "
            f"{', '.join(empty[:_SHOWN])}{more}: keep more, or leave these classes out"
        )


def chunk_rows(name: str, *, fixed: int, row: int, size: int, max_memory: int) -> int:
    """Rows of a chunk, such that a selector stays within `max_memory`; what it will use at most is logged.

    Args:
        name: the selector, for the message.
        fixed: bytes it needs whatever the chunk, beyond its input.
        row: bytes it needs for each row of a chunk; 0 if it has no chunks.
        size: rows in all.
        max_memory: bytes it may use.
    Returns:
        How many rows to take at a time, in [1, size].
    Raises:
        ValueError: if not even one row at a time fits.
    """
    if isinstance(max_memory, bool) or not isinstance(max_memory, int) or max_memory < 1:
        raise ValueError(f"max_memory is a number of bytes, at least 1, got {max_memory!r}")
    if fixed + row > max_memory:
        raise ValueError(
            f"{name} needs {fixed + row:,} bytes ({_shown(fixed + row)}) beyond its input for {size:,} samples, more "
            f"than max_memory={max_memory:,} ({_shown(max_memory)}): raise max_memory or pass fewer samples"
        )
    if not row:
        rows = size
    else:
        rows = max(1, min(size, (max_memory - fixed) // row, _CHUNK // row))
    _log.info("%s: at most %s beyond its input, in chunks of %d rows", name, _shown(fixed + row * rows), rows)
    return rows


def _shown(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
