"""Places of classes in proportion to shares, the slow way."""

from __future__ import annotations


def filled_up(shares: list[float], sizes: list[int], count: int) -> list[float]:
    """Places in fractions, by raising the level until all are given out: min(size, level * share)."""
    low, high = 0.0, 1e12
    for _ in range(200):
        level = (low + high) / 2
        given_out = sum(min(size, level * share) for share, size in zip(shares, sizes))
        low, high = (level, high) if given_out < count else (low, level)
    return [min(size, high * share) for share, size in zip(shares, sizes)]
