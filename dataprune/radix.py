"""The highest keys of samples that are spread over ranks: found by counting, so that no key leaves its rank.

A sample's key is a whole number, such as the order-preserving bits of its score, and then 64 random bits of its
position. These differ between any two samples, so that the set depends on keys, seed and epoch alone, not on the number
of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt, UInt32

from .hashing import Key

Reduce = Callable[[np.ndarray], np.ndarray]  # the sum of an array over all ranks, of its shape and dtype; collective

_BITS = 16  # of a key that a round decides
_BINS = 1 << _BITS
_CHUNK = 1 << 16  # samples at a time, so that all intermediate values stay in the processor's cache


def alone(counts: np.ndarray) -> np.ndarray:
    """The `Reduce` of a single rank."""
    return counts


def ordered(values: Float32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """Whole numbers in the order of the values: NaN is highest, and the two zeros are equal.

    Example:
        >>> ordered(np.array([1, -1], dtype=np.float32)) > 1 << 31
        array([ True, False])
    """
    bits = (values + np.float32(0)).view(np.uint32)  # -0 + 0 is 0
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    bits[np.isnan(values)] = 0xFFFFFFFF
    return bits


def highest(
    keys: UInt[np.ndarray, " n"] | None,
    size: int,
    count: int,
    key: Key,
    *,
    first: int = 0,
    draw: int = 0,
    reduce: Reduce = alone,
) -> Bool[np.ndarray, " n"]:
    """Which of this rank's samples are among the `count` highest of all ranks. Collective.

    A round counts 16 bits in 65,536 bins (512 KiB, summed over the ranks): one for keys of 16 bits, two for 32, and up
    to four more where samples are equal.

    Args:
        keys: uint16 or uint32, of one kind on all ranks; None for a uniformly random subset.
        size: samples of this rank, n; it may be 0.
        count: samples asked for, of all ranks; at most as many as they have, and the same on all.
        key: decides between equal samples.
        first: position of this rank's first sample among all; the others follow it.
        draw: which hash of a position decides, see `Key.hash`.
        reduce: sums over the ranks.
    Source: radix selection, most significant digit first (Knuth, The Art of Computer Programming 3, section 5.2.5).
        Differs: the digits of samples on several ranks are counted together.
    """
    chosen = np.zeros(size, dtype=np.bool_)
    if count == 0:
        return chosen
    tied, left = np.ones(size, dtype=np.bool_), count
    threshold = 0
    for shift in () if keys is None else range(8 * keys.itemsize - _BITS, -1, -_BITS):
        assert keys is not None
        bucket, left, members = _bucket(_count(_digits(keys, threshold, shift)), left, reduce)
        threshold |= bucket << shift
        if left == members or not shift:
            chosen = keys >= threshold if left == members else keys > threshold
            tied = keys == threshold
        if left == members:
            return chosen

    bucket, left, members = _bucket(_count(part >> 48 for _, part in _hashes(tied, key, first, draw)), left, reduce)
    at, hashes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint64)]
    for places, part in _hashes(tied, key, first, draw):
        chosen[places[part >> 48 > bucket]] = True
        at.append(places[part >> 48 == bucket])
        hashes.append(part[part >> 48 == bucket])
    edge, low = np.concatenate(at), np.concatenate(hashes)  # few: one of 65,536
    for shift in (32, 16, 0):
        if left == members:
            break
        digit = low >> shift & _BINS - 1
        bucket, left, members = _bucket(_count([digit]), left, reduce)
        chosen[edge[digit > bucket]] = True
        edge, low = edge[digit == bucket], low[digit == bucket]
    chosen[edge] = True
    return chosen


def _bucket(counts: Int64[np.ndarray, " bins"], left: int, reduce: Reduce) -> tuple[int, int, int]:
    """The bin that holds the last of the `left` highest; how many of it are among them, and how many it has."""
    counts = reduce(counts)
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, left))
    members = int(counts[_BINS - 1 - place])
    return _BINS - 1 - place, left - int(above[place]) + members, members


def _count(parts: Iterator[np.ndarray] | list[np.ndarray]) -> Int64[np.ndarray, " bins"]:
    counts = np.zeros(_BINS, dtype=np.int64)
    for digits in parts:
        counts += np.bincount(digits.astype(np.int64), minlength=_BINS)
    return counts


def _digits(keys: np.ndarray, threshold: int, shift: int) -> Iterator[np.ndarray]:
    """The digits at `shift` of those keys that have the higher ones of the threshold."""
    for start in range(0, len(keys), _CHUNK):
        part = keys[start : start + _CHUNK].astype(np.int64)
        yield part[part >> shift + _BITS == threshold >> shift + _BITS] >> shift & _BINS - 1


def _hashes(tied: np.ndarray, key: Key, first: int, draw: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places where `tied` is set, and the random bits of their positions."""
    for start in range(0, len(tied), _CHUNK):
        places = np.flatnonzero(tied[start : start + _CHUNK]) + start
        yield places, key.hash(torch.from_numpy(places + first), draw).numpy().view(np.uint64)
