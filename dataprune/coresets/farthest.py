"""Farthest-first traversal: again and again the sample whose nearest chosen one is farthest away.

A sample's distance to the chosen ones only shrinks, so that an old value is an upper bound. The few samples with the
largest bounds are kept up to date after every pick, all others only when one of them may be next: what was picked
meanwhile is then one matrix product, much cheaper than a pass over the data for every pick. The picks are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from .budget import chunk_rows
from .inputs import check_finite

_CANDIDATES = 1024  # kept nearly up to date, at the start
_MOST = 16384  # ... and at most
_LEADERS = 256  # of them, up to date after every pick, at the start
_PENDING = 512  # picks that are brought to all samples at a time
_RESOLVED = 1e-4  # below this share of the scale, float32 leaves less than 1 % accuracy to ‖x‖² + ‖c‖² − 2⟨x, c⟩


class Space(Protocol):
    """Rows with a distance of the form norm(x) + norm(c) − ⟨left(x), right(c)⟩; D columns in `left` and `right`."""

    width: int  # D
    scale: float  # how large a norm or a product gets

    def left(self, at: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(B, D) left sides and (B,) norms of the rows at some places."""
        ...

    def right(self, left: Tensor) -> Tensor:
        """(B, D) right sides of rows, given their left sides."""
        ...


@dataclass
class Euclidean:
    """Squared Euclidean distance.

    Args:
        features: (N, D) of any floating-point type; read in chunks, never copied.
        rows: chunk size.
        members: positions of the rows that count, or None for all.
    """

    features: Tensor
    rows: int
    members: Tensor | None = None

    def __post_init__(self) -> None:
        self.width = self.features.shape[1]
        size = len(self.features) if self.members is None else len(self.members)
        total = torch.zeros(self.width, dtype=torch.float64, device=self.features.device)
        for start in range(0, size, self.rows):
            chunk = self._read(slice(start, start + self.rows)).double()
            total += chunk.sum(dim=0)
        # squares of centred rows are small: less is lost when they are subtracted
        self.mean = total / size
        self.scale = 0.0
        for start in range(0, size, self.rows):
            _, norm = self.left(slice(start, start + self.rows), torch.float32)
            self.scale = max(self.scale, float(norm.max()))
        if not self.scale <= torch.finfo(torch.float32).max / 4:
            raise ValueError("features are so large that their squares overflow float32: divide them by a constant")

    def left(self, at: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        chunk = self._read(at)
        if chunk.dtype != torch.float64:
            chunk = chunk.to(dtype)
        chunk = (chunk - self.mean.to(chunk.dtype)).to(dtype)
        return chunk, torch.linalg.vecdot(chunk, chunk)

    def right(self, left: Tensor) -> Tensor:
        return 2 * left

    def _read(self, at: Tensor | slice) -> Tensor:
        return self.features[at if self.members is None else self.members[at]]


@dataclass
class SymmetricDivergence:
    """Symmetric Kullback-Leibler divergence KL(p‖q) + KL(q‖p) of class probabilities, clamped from below.

    Args:
        outputs: (N, C) logits, or probabilities.
        rows: unused; all spaces are made alike.
        members: positions of the rows that count, or None for all.
        logits: whether outputs are logits.
        floor: probabilities are at least this.
    """

    outputs: Tensor
    rows: int
    members: Tensor | None = None
    logits: bool = True
    floor: float = 1e-12

    def __post_init__(self) -> None:
        self.width = 2 * self.outputs.shape[1]
        self.scale = -math.log(self.floor)

    def left(self, at: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        chunk = self.outputs[at if self.members is None else self.members[at]].to(dtype)
        if self.logits:
            log = chunk.log_softmax(dim=1).clamp(min=math.log(self.floor))
            p = log.exp()
        else:
            p = chunk.clamp(min=self.floor)
            log = p.log()
        return torch.cat([p, log], dim=1), torch.linalg.vecdot(p, log)

    def right(self, left: Tensor) -> Tensor:
        p, log = left.chunk(2, dim=-1)
        return torch.cat([log, p], dim=-1)


def plan(name: str, size: int, width: int, itemsize: int, count: int, max_memory: int) -> int:
    """Rows of a chunk that `farthest_first` and its space may use; raises where `max_memory` is too small.

    Args:
        name: the selector, for the message.
        size: samples.
        width: columns of the space, D.
        itemsize: bytes of a number of the input.
        count: samples to pick.
        max_memory: bytes.
    """
    # distances twice, an order, what topk needs; candidates, pending picks and their gather, in float64
    candidates = min(size, _most(size, width, max_memory))
    fixed = (
        64 * size
        + candidates * (5 * 8 * width + 8 * min(count, _PENDING) + 64)
        + min(count, _PENDING) * 3 * 8 * width
        + 16 * count
    )
    return chunk_rows(
        name,
        fixed=fixed,
        row=width * (itemsize + 3 * 8) + 8 * min(count, _PENDING),
        size=size,
        max_memory=max_memory,
    )


def farthest_first(
    space: Space, size: int, count: int, first: int | None, generator: Generator, *, rows: int, max_memory: int
) -> Tensor:
    """Places of `count` rows in the order in which they are picked; equal distances are decided at random.

    Args:
        space: rows and their distance.
        size: how many rows it has.
        count: rows to pick, in [1, size].
        first: the row to start with; None draws it.
        generator: draws the first row and decides between equals.
        rows: chunk size, from `plan`.
        max_memory: bytes, as given to `plan`.
    Returns:
        (count,) int64 places on the CPU.
    """
    if first is None:
        first = int(torch.randint(size, (), generator=generator))
    _, norm = space.left(slice(0, 1), torch.float32)
    device = norm.device
    dtype = torch.float32 if _products_are_exact() else torch.float64
    nearest = torch.full((size,), torch.inf, dtype=dtype, device=device)
    nearest[first] = -torch.inf
    picked = [first]
    done = 0  # picks that `nearest` knows of
    most = _most(size, space.width, max_memory)
    candidates = min(_CANDIDATES, most)
    while len(picked) < count:
        for start in range(done, len(picked), _PENDING):
            _bring(space, nearest, picked[start : start + _PENDING], rows)
        done = len(picked)
        limit = _RESOLVED * space.scale if dtype == torch.float32 else -1.0
        if float(nearest.max()) < limit:
            dtype, done = torch.float64, 0
            nearest = torch.full((size,), torch.inf, dtype=dtype, device=device)
            nearest[picked] = -torch.inf
            continue
        places, passed = _race(space, nearest, min(count - done, _PENDING), candidates, limit, generator)
        nearest[places] = -torch.inf
        picked += places.tolist()
        if passed and len(places) < _PENDING // 4:
            candidates = min(2 * candidates, most)
    return torch.tensor(picked)


def _race(
    space: Space, nearest: Tensor, count: int, candidates: int, limit: float, generator: Generator
) -> tuple[Tensor, bool]:
    """Pick among the farthest rows as long as no other row can be farther; at least one pick, if `nearest` is right.

    The same again inside: of the candidates, a few leaders are up to date after every pick, the others now and then.

    Returns:
        (k,) places, in order; and whether the race ended because another row may be next.
    """
    order = torch.randperm(len(nearest), generator=generator).to(nearest.device)
    known, place = nearest[order].topk(min(candidates + 1, len(nearest)))
    # the one after the last candidate bounds all others
    bound = float(known[-1]) if len(known) > candidates else -torch.inf
    known, at = known[:candidates].clone(), order[place[:candidates]]
    left, norm = space.left(at, nearest.dtype)
    count, leaders = min(count, len(at)), _LEADERS
    chosen: list[int] = []
    while len(chosen) < count:
        values, first = known.topk(min(leaders + 1, len(known)))
        if chosen and float(values[0]) < max(bound, limit):
            break
        edge = float(values[-1]) if len(values) > leaders else -torch.inf
        first = first[:leaders]
        won = _sprint(space, left[first], norm[first], values[:leaders], count - len(chosen), max(bound, limit, edge))
        winners = first[won]
        chosen += winners.tolist()
        known[winners] = -torch.inf
        reached = torch.addmm(norm[winners], left, space.right(left[winners]).T, alpha=-1).amin(dim=1)
        torch.minimum(known, reached.add_(norm).clamp_(min=0), out=known)
        if len(won) < _LEADERS // 16:
            leaders = min(2 * leaders, _LEADERS * 8)
    return at[chosen], len(chosen) < count and float(known.max()) >= limit


def _sprint(space: Space, left: Tensor, norm: Tensor, nearest: Tensor, count: int, bound: float) -> list[int]:
    """Places of up to `count` rows, each the farthest in turn, until none of them is at or above `bound`."""
    nearest, reached = nearest.clone(), torch.empty_like(nearest)
    chosen: list[int] = []
    while len(chosen) < min(count, len(nearest)):
        value, winner = nearest.max(dim=0)
        if chosen and float(value) < bound:
            break
        chosen.append(int(winner))
        torch.mv(left, space.right(left[chosen[-1]]), out=reached)
        torch.sub(norm, reached, out=reached).add_(norm[chosen[-1]]).clamp_(min=0)
        torch.minimum(nearest, reached, out=nearest)
        nearest[chosen[-1]] = -torch.inf
    return chosen


def _bring(space: Space, nearest: Tensor, picked: list[int], rows: int) -> None:
    """Lower all distances by those to a few picks."""
    left, norm = space.left(torch.tensor(picked, device=nearest.device), nearest.dtype)
    right = space.right(left).T
    for start in range(0, len(nearest), rows):
        chunk, own = space.left(slice(start, start + rows), nearest.dtype)
        reached = torch.addmm(norm, chunk, right, alpha=-1).amin(dim=1)
        known = nearest[start : start + rows]
        torch.minimum(known, reached.add_(own).clamp_(min=0), out=known)


def _most(size: int, width: int, max_memory: int) -> int:
    """Candidates that a quarter of the memory can hold."""
    return max(1, min(size, _MOST, max_memory // 4 // (5 * 8 * width + 8 * _PENDING + 64)))


def _products_are_exact() -> bool:
    """Whether no global switch lets float32 products be rounded to TF32 or bfloat16: too coarse to subtract."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch refuses to say where its newer switches were used
        return False


def check_rows(name: str, values: Tensor, rows: int) -> None:
    """Raise ValueError if a row of (N, D) values is not finite, reading `rows` at a time."""
    for start in range(0, len(values), rows):
        check_finite(name, values[start : start + rows], start)
