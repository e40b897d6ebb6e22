"""Coresets of the highest or lowest scores, and random ones; positions ascend, equal scores are drawn at random."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sized

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from .. import policies
from ..hashing import Key
from ..selection import Selection
from .budget import MAX_MEMORY, Array, Balance, Rule, check_balance, check_scores, chunk_rows, count_of, select, split


def top(
    scores: Float[Tensor, " n"] | Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | Array | None = None,
    balance: Balance = "none",
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """Keep the highest scores.

    Example:
        >>> top(torch.tensor([0.1, 0.9, 0.5, 0.7]), keep=0.5).index
        tensor([1, 3])

    Source: Coleman et al. 2020, arXiv:1906.11829, section 3.2, and Paul et al. 2021, arXiv:2107.07075, section 2.
        Differs: the per-class places are not in the papers.
    """
    return choose("top", check_scores(scores), policies.highest, keep, labels, balance, seed, max_memory)


def bottom(
    scores: Float[Tensor, " n"] | Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | Array | None = None,
    balance: Balance = "none",
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """Keep the lowest scores.

    Example:
        >>> bottom(torch.tensor([0.1, 0.9, 0.5, 0.7]), keep=0.5).index
        tensor([0, 2])

    Source: the easy samples of Sorscher et al. 2022, arXiv:2206.14486, section 3. Differs: as for `top`.
    """
    return choose("bottom", -check_scores(scores), policies.highest, keep, labels, balance, seed, max_memory)


def random(
    size: int | Shaped[Tensor, "n *shape"] | Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | Array | None = None,
    balance: Balance = "none",
    seed: int = 0,
    max_memory: int = MAX_MEMORY,
) -> Selection:
    """Keep a uniformly random subset, the baseline of every other coreset.

    Args:
        size: samples in the dataset, N; or a tensor or an array with a row per sample, so that this replaces any other
            selector.
        seed: decides the subset.
    Example:
        >>> len(random(100, keep=0.1).index)
        10

    Source: Coleman et al. 2020, arXiv:1906.11829, section 3. Differs: nothing.
    """
    samples = size
    if isinstance(size, Sized) and not isinstance(size, str) and getattr(size, "ndim", 1):
        samples = len(size)
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise ValueError(f"size is the number of samples, got {samples!r}")

    def subset(values: Tensor, count: int, key: Key) -> Tensor:
        return policies.random_subset(len(values), count, key)

    no_values = torch.empty(1, dtype=torch.uint8).expand(max(samples, 0))
    return choose("random", no_values, subset, keep, labels, balance, seed, max_memory)


def choose(
    name: str,
    values: Shaped[Tensor, " n"],
    rule: Rule,
    keep: float,
    labels: Tensor | Array | None,
    balance: Balance,
    seed: int,
    max_memory: int,
    *,
    capacity: Callable[[int], int] = lambda size: size,
    memory: int | None = None,
) -> Selection:
    """Apply a rule to the values of all samples, or class by class.

    `capacity` says how many samples of a group the rule can choose, `memory` how many bytes it needs for all of them.
    """
    size = len(values)
    count = count_of(size, keep)
    ids = check_balance(balance, labels, size)
    by_class = balance == "class"
    if memory is None:  # numpy's partition copies the values; ties draw 32 bits each and partition these
        memory = size * (values.element_size() * 2 + 12)
    chunk_rows(name, size, max_memory, fixed=memory + 32 * size * by_class + 12 * count)
    sizes = torch.unique(ids, return_counts=True)[1].tolist() if by_class and ids is not None else [size]
    if (able := sum(map(capacity, sizes))) < count:
        raise ValueError(
            f"the cutoff leaves {able} of {size} samples, but keep asks for {count}: lower cutoff or keep (their sum "
            "is at most 1)"
        )
    # a stream for each selector: with one seed `random` must not draw what `top` and `bottom` draw between equals
    stream = zlib.crc32(f"{name} {seed}".encode())
    if not by_class:
        return Selection.of(rule(values, count, Key(stream, 0)))
    return select(values, split(size, count, ids, "equal", Key(stream, 0), capacity=capacity), rule, stream)
