"""What every selector starts with: checked input, the places of each class, and a limit of memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, Shaped
from torch import Tensor

from .. import checks, policies
from ..errors import check_known
from ..hashing import Key
from ..schedules import fraction_of
from ..selection import Selection

Balance = Literal["none", "class"]
Division = Literal["none", "equal", "proportional"]
Array = np.ndarray | Sequence[Any]  # taken where a tensor is; so are columns of a table
Groups = list[tuple[Int[Tensor, " m"], int]]  # ascending positions of each group, and its places
Rule = Callable[[Tensor, int, Key], Tensor]  # ((n,) values, count, key) -> (count,) ascending positions

MAX_MEMORY = 4 << 30  # bytes that a selector may use beyond its input, by default
_CHUNK = 32 << 20  # bytes of a chunk: larger ones are no faster
_LISTED = 10  # classes that an error lists

_log = logging.getLogger("dataprune.coresets")


def count_of(size: int, keep: float) -> int:
    """Count the samples kept, max(1, floor(keep * size + 0.5)), or `keep` itself where it is a whole number above 1."""
    if size < 1:
        raise ValueError("there are no samples to choose from: the first tensor is empty")
    return max(1, math.floor(fraction_of(keep, size) * size + 0.5))


def split(
    size: int,
    count: int,
    labels: Integer[Tensor, " n"] | None,
    division: Division,
    key: Key,
    *,
    capacity: Callable[[int], int] = lambda size: size,
) -> Groups:
    """Divide `size` samples into groups that are selected from separately, and `count` places among the groups.

    Args:
        labels: class ids on the CPU; needed unless division is "none".
        division: "none" for one group of all samples; "equal" for a group per class, in ascending order, with equal
            places, as far as it has samples; "proportional" for places in proportion to the size of a class, where the
            largest fractions are rounded up.
        key: draws the classes that get an odd place, and decides between equal fractions.
        capacity: samples of a class -> how many of them can be selected; for "equal".
    Example:
        >>> [places for _, places in split(4, 3, torch.tensor([0, 0, 0, 1]), "proportional", Key(0, 0))]
        [2, 1]
    """
    if division == "none" or labels is None:
        return [(torch.arange(size), count)]
    classes, counts = torch.unique(labels, return_counts=True)
    sizes = counts.tolist()
    if division == "equal":
        places = policies.quotas(torch.tensor([capacity(members) for members in sizes]), count, key)
    else:
        exact = counts * count
        rounded = exact // size
        rounded[policies.highest(exact % size, count - int(rounded.sum()), key)] += 1
        places = rounded.tolist()
    empty = [f"{label} ({size} samples)" for label, size, place in zip(classes.tolist(), sizes, places) if not place]
    if empty:
        more = f" and {len(empty) - _LISTED} more" if len(empty) > _LISTED else ""
        raise ValueError(
            f"keep leaves {count} samples for {len(classes)} classes, and none for class "
            f"{', '.join(empty[:_LISTED])}{more}: keep more, or leave these classes out"
        )
    return list(zip(torch.argsort(labels, stable=True).split(sizes), places))


def pool(chosen: Selection | Tensor | Array | None, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Positions that are chosen already, and all others, both ascending; ValueError unless `count` others remain."""
    given = chosen if isinstance(chosen, Selection) else Selection.of([] if chosen is None else chosen)
    index = given.index.cpu()
    if len(index):
        checks.check_positions(Selection.of(index), size, what="chosen")
    if count > (rest := size - len(index)):
        raise ValueError(f"keep asks for {count} samples beside those chosen already, and {rest} are left")
    free = torch.ones(size, dtype=torch.bool)
    free[index] = False
    return (~free).nonzero().squeeze(1), free.nonzero().squeeze(1)


def select(values: Shaped[Tensor, " n"], groups: Groups, rule: Rule, seed: int) -> Selection:
    """Select from each group by a rule; the positions ascend."""
    chosen = np.zeros(len(values), dtype=np.bool_)
    for number, (positions, places) in enumerate(groups, start=1):
        chosen[positions[rule(values[positions], places, Key(seed, number))].numpy()] = True
    return Selection.of(torch.from_numpy(np.flatnonzero(chosen)))


def chunk_rows(name: str, size: int, max_memory: int, *, fixed: int, row: int = 0) -> int:
    """Choose the rows of a chunk so that a selector stays within `max_memory`, and log the memory that it will use.

    It needs `fixed` bytes beyond its input whatever the chunk, and `row` for each row of one, 0 if it has no chunks.
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


def mean_of(values: Float[Tensor, "n d"], positions: Int[Tensor, " m"], rows: int) -> Float[Tensor, " d"]:
    """Mean of the rows at some positions, in float64; reads `rows` at a time."""
    total = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    for chunk in positions.to(values.device).split(rows):
        total += values[chunk].sum(dim=0, dtype=torch.float64)
    return total / len(positions)


def check_scores(scores: Tensor | Array) -> Float[Tensor, " n"]:
    """Return scores on the CPU in a dtype that numpy knows; ValueError unless they are (N,) numbers without NaN."""
    scores = _floating("scores", scores)
    if scores.ndim != 1:
        raise ValueError(f"scores must be (N,), one number per sample, got {tuple(scores.shape)}")
    scores = scores.detach().cpu()
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.float()
    if len(scores) and bool(scores.sum().isnan()) and (bad := int(scores.isnan().sum())):  # ∞ − ∞ is valid
        raise ValueError(
            f"{bad} of {len(scores)} scores are NaN, the first at position {int(scores.isnan().int().argmax())}: score "
            "these samples, or leave them out"
        )
    return scores


def check_features(name: str, features: Tensor | Array) -> Float[Tensor, "n d"]:
    """Return features detached; ValueError unless they are (N, D) floating point with at least one column."""
    features = _floating(name, features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name} must be (N, D), one row per sample, got {tuple(features.shape)}: flatten each sample")
    return features.detach()


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


def check_labels(labels: Tensor | Array | None, size: int, needed_by: str = "the selection") -> Int[Tensor, " n"]:
    """Return class ids as int64 on the CPU; ValueError unless there is one whole number per sample."""
    if labels is None:
        raise ValueError(f"{needed_by} needs labels: pass labels=, one class id per sample")
    labels = as_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers (torch.int64), got {labels.dtype}")
    if labels.shape != (size,):
        raise ValueError(f"labels must be ({size},), one class id for each sample, got {tuple(labels.shape)}")
    return labels.detach().cpu().long()


def check_balance(balance: str, labels: Tensor | Array | None, size: int) -> Int[Tensor, " n"] | None:
    """Return class ids as `check_labels`, or None; ValueError unless `balance` is "none", or "class" with labels."""
    ids = None if labels is None else check_labels(labels, size)
    check_known(balance, ("none", "class"), what="balance")
    if balance == "class" and ids is None:
        raise ValueError('balance="class" needs labels: pass labels=, one class id per sample')
    return ids


def as_tensor(name: str, value: Tensor | Array) -> Tensor:
    """A tensor as it is; an array, a column of a table or a list as a tensor on the CPU."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be a tensor, an array or a list of numbers, got {type(value).__name__}")
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _floating(name: str, value: Tensor | Array) -> Tensor:
    result = as_tensor(name, value)
    if not isinstance(value, Tensor) and result.dtype == torch.int64:  # a list without a point
        result = result.double()
    if not result.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {result.dtype}: pass {name}.float()")
    return result


def _in_units(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
