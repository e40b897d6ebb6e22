"""k-center: samples that cover the features, by a farthest-first traversal of any space.

The traversal repeatedly picks the sample that is farthest from its nearest picked sample. That distance only shrinks,
so that an old value is an upper bound. The few samples with the largest bounds are updated after every pick, all others
only when one of them may be next: the picks since then are then one matrix product, much cheaper than a pass over the
data for every pick. The picks are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Integer
from torch import Generator, Tensor

from ..hashing import Key
from ..selection import Selection
from . import budget

_CANDIDATES = 1024  # samples updated often, at the start
_MOST = 16384  # ... and at most
_LEADERS = 256  # candidates updated after every pick, at the start
_PENDING = 512  # picks by which all samples are updated at a time
_RESOLVED = 1e-4  # below this share of the scale, float32 leaves less than 1 % accuracy to ‖x‖² + ‖c‖² − 2⟨x, c⟩


def k_center(
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    seed: int = 0,
    first: int | None = None,
    chosen: Selection | Int[Tensor, " m"] | budget.Array | None = None,
    labels: Integer[Tensor, " n"] | budget.Array | None = None,
    balance: budget.Balance = "none",
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep a greedy k-center: repeatedly the sample that is farthest from all kept ones.

    Euclidean distance in float32; in float64 once float32 cannot resolve the distances, or where torch is allowed less
    than float32 (TF32). The result covers all samples with at most twice the smallest possible radius.

    Args:
        seed: draws the first sample, and decides between equal distances.
        balance: "none", or "class": each class is covered on its own, with the same number of places, as far as it has
            samples.
    Returns:
        max(1, floor(keep * N + 0.5)) positions with weight one, in the order in which they were chosen (class by class
        under balance="class"): the first k of them are the k-center of k samples.
    Example:
        >>> k_center(torch.tensor([[0.0], [1.0], [4.0], [10.0]]), keep=0.75, first=0).index
        tensor([0, 3, 2])

    Source: Sener and Savarese 2018, arXiv:1708.00489, Algorithm 1. Differs: one random first sample where no labelled
        pool is given as `chosen`; without its mixed-integer refinement.
    """
    features = budget.check_features("features", features)
    width = features.shape[1]
    return cover("k_center", features, width, Euclidean, keep, seed, first, chosen, labels, balance, max_memory)


@dataclass
class Space(ABC):
    """Rows with a distance of the form norm(x) + norm(c) − ⟨left(x), right(c)⟩."""

    values: Tensor  # (N, D) of any floating-point type; read in chunks, never copied
    rows: int  # of a chunk
    members: Tensor | None  # positions of the rows that count, or None for all
    scale: float = field(init=False)  # largest norm or product

    @abstractmethod
    def left(self, at: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Left sides (B, width) and norms (B,) of the rows at some places."""

    @abstractmethod
    def right(self, left: Tensor) -> Tensor:
        """Right sides (B, width) of rows, given their left sides."""

    def read(self, at: Tensor | slice) -> Tensor:
        """Rows at some places."""
        return self.values[at if self.members is None else self.members[at]]


@dataclass
class Euclidean(Space):
    """Squared Euclidean distance of features."""

    def __post_init__(self) -> None:
        size = len(self.values) if self.members is None else len(self.members)
        parts = [slice(start, start + self.rows) for start in range(0, size, self.rows)]
        total = torch.zeros(self.values.shape[1], dtype=torch.float64, device=self.values.device)
        for part in parts:
            total += self.read(part).double().sum(dim=0)
        # squares of centred rows are small: less is lost when they are subtracted
        self.mean = total / size
        self.scale = max(float(self.left(part, torch.float32)[1].max()) for part in parts)
        if not self.scale <= torch.finfo(torch.float32).max / 4:
            raise ValueError("features are so large that their squares overflow float32: divide them by a constant")

    def left(self, at: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        chunk = self.read(at)
        if chunk.dtype != torch.float64:
            chunk = chunk.to(dtype)
        chunk = (chunk - self.mean.to(chunk.dtype)).to(dtype)
        return chunk, torch.linalg.vecdot(chunk, chunk)

    def right(self, left: Tensor) -> Tensor:
        return 2 * left


def cover(
    name: str,
    values: Tensor,
    width: int,
    make_space: Callable[[Tensor, int, Tensor | None], Space],
    keep: float,
    seed: int,
    first: int | None,
    chosen: Selection | Tensor | budget.Array | None,
    labels: Tensor | budget.Array | None,
    balance: budget.Balance,
    max_memory: int,
) -> Selection:
    """Select by farthest-first traversal of a space, `width` columns wide, class by class if `balance` says so."""
    size = len(values)
    count = budget.count_of(size, keep)
    ids = budget.check_balance(balance, labels, size)
    start, rest = budget.pool(chosen, size, count)
    if first is not None:
        if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < size:
            raise ValueError(f"first is the position of a sample, in [0, {size - 1}], got {first!r}")
        if balance == "class":
            raise ValueError('first is one position, but balance="class" starts once in every class: leave it out')
        if len(start):
            raise ValueError("first begins an empty selection, and chosen holds samples: leave first out")
    pending = min(count + len(start), _PENDING)
    # as many as a quarter of the memory can hold
    candidates = max(1, min(size, _MOST, max_memory // 4 // (40 * width + 8 * _PENDING + 64)))
    # distances twice, an order, what topk needs; candidates, pending picks and their gather, in float64
    fixed = 64 * size + candidates * (40 * width + 8 * pending + 64) + pending * 24 * width + 16 * count
    row = width * (values.element_size() + 24) + 8 * pending
    rows = budget.chunk_rows(name, size, max_memory, fixed=fixed, row=row)
    budget.check_finite("features" if name == "k_center" else "outputs", values, rows)
    generator = torch.Generator().manual_seed(seed)
    picks = []
    ids = ids if balance == "class" else None
    groups = budget.split(len(rest), count, ids if ids is None else ids[rest], "equal", Key(seed, 0))
    for places_of, places in groups:
        positions = rest[places_of]
        known = start if ids is None else start[ids[start] == ids[positions[0]]]
        members = torch.cat([known, positions])
        space = make_space(values, rows, None if len(positions) == size else members.to(values.device))
        if len(known):
            begin = list(range(len(known)))
        else:
            begin = [int(torch.randint(len(members), (), generator=generator)) if first is None else first]
        new = farthest_first(space, len(members), len(known) + places, begin, generator, candidates)[len(known) :]
        picks.append(members[new])
    return Selection.of(torch.cat(picks))


def farthest_first(
    space: Space, size: int, count: int, begin: Sequence[int], generator: Generator, most_candidates: int
) -> Int[Tensor, " k"]:
    """Pick rows of a space until there are `count`, those in `begin` first; returns places in the order of picking.

    Equal distances are decided at random; at most `most_candidates` rows are updated more often than all others.
    """
    device = space.values.device
    dtype = torch.float32 if _products_are_exact() else torch.float64
    nearest = torch.full((size,), torch.inf, dtype=dtype, device=device)
    picked = list(begin)
    nearest[picked] = -torch.inf
    done = 0  # picks that `nearest` takes into account
    candidates = min(_CANDIDATES, most_candidates)
    while len(picked) < count:
        for start in range(done, len(picked), _PENDING):
            _update(space, nearest, picked[start : start + _PENDING])
        done = len(picked)
        limit = _RESOLVED * space.scale if dtype == torch.float32 else -1.0
        if float(nearest.max()) < limit:
            dtype, done = torch.float64, 0
            nearest = torch.full((size,), torch.inf, dtype=dtype, device=device)
            nearest[picked] = -torch.inf
            continue
        places, exhausted = _pick(space, nearest, min(count - done, _PENDING), candidates, limit, generator)
        nearest[places] = -torch.inf
        picked += places.tolist()
        if exhausted and len(places) < _PENDING // 4:
            candidates = min(2 * candidates, most_candidates)
    return torch.tensor(picked)


def _pick(
    space: Space, nearest: Tensor, count: int, candidates: int, limit: float, generator: Generator
) -> tuple[Tensor, bool]:
    """Pick among the farthest rows as long as no other row can be farther; at least one pick, if `nearest` is right.

    The candidates are divided once more: a few leaders are updated after every pick, the other candidates less often.
    Also returned is whether picking ended because a row that is no candidate may be next.
    """
    order = torch.randperm(len(nearest), generator=generator).to(nearest.device)
    distance, place = nearest[order].topk(min(candidates + 1, len(nearest)))
    # the one after the last candidate bounds all others
    bound = float(distance[-1]) if len(distance) > candidates else -torch.inf
    distance, positions = distance[:candidates].clone(), order[place[:candidates]]
    left, norm = space.left(positions, nearest.dtype)
    count, leaders = min(count, len(positions)), _LEADERS
    picks: list[int] = []
    while len(picks) < count:
        values, top = distance.topk(min(leaders + 1, len(distance)))
        if picks and float(values[0]) < max(bound, limit):
            break
        edge = float(values[-1]) if len(values) > leaders else -torch.inf
        top = top[:leaders]
        lowest = max(bound, limit, edge)
        new = top[_pick_leaders(space, left[top], norm[top], values[:leaders], count - len(picks), lowest)]
        picks += new.tolist()
        distance[new] = -torch.inf
        reached = torch.addmm(norm[new], left, space.right(left[new]).T, alpha=-1).amin(dim=1)
        torch.minimum(distance, reached.add_(norm).clamp_(min=0), out=distance)
        if len(new) < _LEADERS // 16:
            leaders = min(2 * leaders, _LEADERS * 8)
    return positions[picks], len(picks) < count and float(distance.max()) >= limit


def _pick_leaders(space: Space, left: Tensor, norm: Tensor, nearest: Tensor, count: int, bound: float) -> list[int]:
    """Pick up to `count` rows, each the farthest in turn, until none of them is at or above `bound`."""
    nearest, reached = nearest.clone(), torch.empty_like(nearest)
    picks: list[int] = []
    while len(picks) < min(count, len(nearest)):
        value, farthest = nearest.max(dim=0)
        if picks and float(value) < bound:
            break
        picks.append(int(farthest))
        torch.mv(left, space.right(left[picks[-1]]), out=reached)
        torch.sub(norm, reached, out=reached).add_(norm[picks[-1]]).clamp_(min=0)
        torch.minimum(nearest, reached, out=nearest)
        nearest[picks[-1]] = -torch.inf
    return picks


def _update(space: Space, nearest: Tensor, picked: list[int]) -> None:
    """Lower all distances by those to some picks."""
    left, norm = space.left(torch.tensor(picked, device=nearest.device), nearest.dtype)
    right = space.right(left).T
    for start in range(0, len(nearest), space.rows):
        part = slice(start, start + space.rows)
        chunk, chunk_norm = space.left(part, nearest.dtype)
        reached = torch.addmm(norm, chunk, right, alpha=-1).amin(dim=1)
        distance = nearest[part]
        torch.minimum(distance, reached.add_(chunk_norm).clamp_(min=0), out=distance)


def _products_are_exact() -> bool:
    """Whether no global switch lets float32 products be rounded to TF32 or bfloat16, which is too coarse."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # raised where both of torch's interfaces to this switch were used
        return False
