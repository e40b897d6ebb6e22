"""Random numbers as a hash of (seed, epoch, position, draw): equal on any device and rank, and after a resume."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Generator, Tensor

_WRAP = 1 << 64
# of SplitMix64, as int64
_GAMMA = 0x9E3779B97F4A7C15 - _WRAP
_MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9 - _WRAP), (27, 0x94D049BB133111EB - _WRAP))


@dataclass(frozen=True)
class Key:
    """What the random part of one selection depends on."""

    seed: int  # of the run
    epoch: int  # 0-based, that the selection is made for

    def hash(self, positions: Int[Tensor, "..."], draw: int | Int[Tensor, "..."] = 0) -> Int[Tensor, "..."]:
        """64 random bits for every position, as `bits` for this seed and epoch."""
        return bits(self.seed, self.epoch, positions, draw)

    def generator(self) -> Generator:
        """A new generator on the CPU, for what belongs to no position, such as a rounding or an order of classes."""
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
        return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def bits(seed: int, epoch: int, index: Int[Tensor, "..."], draw: int | Int[Tensor, "..."] = 0) -> Int[Tensor, "..."]:
    """64 random bits for every sample, the same in any order, on any device and rank.

    Args:
        seed: any integer; its low 64 bits count, as those of `epoch`.
        index: positions in the dataset.
        draw: which number of the sample, from 0; a tensor broadcasts against `index`.
    Returns:
        int64, uniform over all of its values, of the broadcast shape.
    Example:
        >>> import torch
        >>> bool(bits(0, 1, torch.tensor([7, 8]))[1] == bits(0, 1, torch.tensor([8]))[0])
        True

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied once for each of the four. Differs: it is
        used as a hash of its inputs, not as a sequence.
    """
    key = _mix(_wrapped(_mix(_wrapped(seed + _GAMMA)) + epoch + _GAMMA))
    return _mix(_mix(index.long() * _GAMMA + key) + _wrapped((draw + 1) * _GAMMA))


def uniform(
    seed: int, epoch: int, index: Int[Tensor, "..."], draw: int | Int[Tensor, "..."] = 0
) -> Float[Tensor, "..."]:
    """A random number in [0, 1) for every sample; arguments as for `bits`.

    They are float32 multiples of 2**-24, which float32 holds exactly; times any whole n below 2**24, one still rounds
    to less than n.
    """
    return (bits(seed, epoch, index, draw) >> 40 & 0xFFFFFF).float() * 2.0**-24


def beta(
    seed: int, epoch: int, index: Int[Tensor, " k"], a: Float[Tensor, " k"], b: Float[Tensor, " k"]
) -> Float64[Tensor, " k"]:
    """A random number with the distribution Beta(a, b) for every sample; seed, epoch and index as for `bits`.

    Source: g / (g + h) for g ~ Gamma(a) and h ~ Gamma(b), each by Marsaglia and Tsang 2000. Differs: the logarithm of
        Gamma is drawn, so that nothing underflows for small a and b.
    """
    return torch.sigmoid(_log_gamma(seed, epoch, index, a.double(), 0) - _log_gamma(seed, epoch, index, b.double(), 1))


def _log_gamma(
    seed: int, epoch: int, index: Int[Tensor, " k"], shape: Float64[Tensor, " k"], stream: int
) -> Float64[Tensor, " k"]:
    """The logarithm of a number with the distribution Gamma(shape, 1); even or odd draws, as `stream` says."""
    d = torch.where(shape < 1, shape + 1, shape) - 1 / 3
    result = torch.empty_like(d)
    left = torch.arange(len(index))
    attempt = 0
    while len(left):
        first, second, third = (_open(seed, epoch, index[left], 2 * (3 * attempt + i) + stream) for i in (1, 2, 3))
        x = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()  # normal, by Box and Muller
        v = (1 + x / (9 * d[left]).sqrt()) ** 3
        accepted = (v > 0) & (third.log() < x**2 / 2 + d[left] * (1 - v + v.clamp(min=1e-300).log()))
        result[left[accepted]] = (d[left] * v)[accepted].log()
        left, attempt = left[~accepted], attempt + 1
    return torch.where(shape < 1, result + _open(seed, epoch, index, stream).log() / shape, result)


def _open(seed: int, epoch: int, index: Int[Tensor, " k"], draw: int) -> Float64[Tensor, " k"]:
    """A random number in (0, 1) for every sample, a multiple of 2**-53."""
    return ((bits(seed, epoch, index, draw) >> 12 & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52


def _wrapped(number: Any) -> Any:
    """The int64 with the same low 64 bits: torch's integers wrap, Python's do not."""
    return number if isinstance(number, Tensor) else (number + (_WRAP >> 1)) % _WRAP - (_WRAP >> 1)


def _mix(state: Any) -> Any:
    """The finaliser of SplitMix64, of a Python integer or a tensor."""
    for shift, multiplier in _MULTIPLIERS:
        state = _wrapped((state ^ _logical(state, shift)) * multiplier)
    return state ^ _logical(state, 31)


def _logical(state: Any, shift: int) -> Any:
    """Shift zeros in: >> repeats the sign bit."""
    return state >> shift & ((1 << 64 - shift) - 1)
