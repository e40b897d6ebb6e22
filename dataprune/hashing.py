"""Random numbers as a hash of (seed, epoch, position, draw): equal on any device and rank, and after a resume."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Generator, Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Key:
    """What the random part of one selection depends on.

    Attributes:
        seed: of the run.
        epoch: 0-based, that the selection is made for.
    """

    seed: int
    epoch: int

    def hash(self, positions: Int[Tensor, "..."], draw: int = 0) -> Int[Tensor, "..."]:
        """64 random bits for every position, the same in any order, on any rank and in any part of the dataset.

        Args:
            positions: in the dataset.
            draw: which random number of the position, from 0.
        Returns:
            int64, uniform over all of its values, of the shape of `positions`.
        """
        return bits(self.seed, self.epoch, positions, draw)

    def generator(self) -> Generator:
        """A new generator on the CPU, for what belongs to no position, such as a rounding or an order of classes."""
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
        return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def bits(seed: int, epoch: int, index: Int[Tensor, "..."], draw: int | Int[Tensor, "..."] = 0) -> Int[Tensor, "..."]:
    """64 random bits for every sample, the same wherever they are computed.

    Args:
        seed: any integer; its low 64 bits count.
        epoch: any integer.
        index: positions in the dataset.
        draw: which number of the sample; a tensor broadcasts against `index`.
    Returns:
        int64, uniform over all of its values, of the broadcast shape.
    Example:
        >>> import torch
        >>> bool(bits(0, 1, torch.tensor([7, 8]))[1] == bits(0, 1, torch.tensor([8]))[0])
        True

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied once for each of the four. Differs: it is
        used as a hash of its inputs, not as a sequence.
    """
    key = _mix_number(_mix_number(seed) + epoch)
    step = (draw + 1) * _signed(_GAMMA) if isinstance(draw, Tensor) else _signed((draw + 1) * _GAMMA)
    return _mix(_mix(index.long() * _signed(_GAMMA) + _signed(key)) + step)


def uniform(
    seed: int, epoch: int, index: Int[Tensor, "..."], draw: int | Int[Tensor, "..."] = 0
) -> Float[Tensor, "..."]:
    """A random number in [0, 1) for every sample.

    Args:
        seed: as in `bits`.
        epoch: as in `bits`.
        index: as in `bits`.
        draw: as in `bits`.
    Returns:
        float32 multiples of 2**-24, which float32 holds exactly; times any whole n below 2**24, it still rounds to less
        than n.
    """
    return (bits(seed, epoch, index, draw) >> 40 & 0xFFFFFF).float() * 2.0**-24


def _signed(number: int) -> int:
    """The int64 with the same 64 bits: torch's integers wrap, Python's do not."""
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


def _mix(state: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    for shift, multiplier in _MULTIPLIERS:
        state = (state ^ _logical(state, shift)) * _signed(multiplier)
    return state ^ _logical(state, 31)


def _logical(state: Int[Tensor, "..."], shift: int) -> Int[Tensor, "..."]:
    """Shift zeros in: torch's >> repeats the sign bit."""
    return state >> shift & ((1 << 64 - shift) - 1)


def _mix_number(state: int) -> int:
    state = (state + _GAMMA) & _MASK
    for shift, multiplier in _MULTIPLIERS:
        state = (state ^ state >> shift) * multiplier & _MASK
    return state ^ state >> 31
