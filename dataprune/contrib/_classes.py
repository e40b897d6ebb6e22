"""What methods that look at classes share: criteria, and places for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import policies
from ..criteria import Declared
from ..hashing import Key
from ..scores import ScoreBook
from ..selection import Selection
from ._groups import GroupBook

_UNSEEN = -2  # in place of a class; -1 are samples that cannot be read


@dataclass(frozen=True)
class loss_and_class(Declared):
    """Give the loss and the class id of every sample, (B, 2).

    Raises:
        ValueError: when called, unless the targets are class ids (B,).
    Example:
        >>> loss_and_class()(torch.tensor([0.5]), None, torch.tensor([7]))
        tensor([[0.5000, 7.0000]])

    Source: none.
    """

    values = (2,)
    reads = "classes"

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        # float32, since bfloat16 has no 257
        return torch.stack([losses.float(), class_ids(targets, len(losses)).to(losses.device).float()], dim=1)


@dataclass(frozen=True)
class right_and_class(Declared):
    """Give 1 for every sample that is predicted right and 0 for others, and its class id, (B, 2).

    Raises:
        ValueError: when called, unless the outputs are logits (B, C) and the targets class ids (B,).
    Example:
        >>> right_and_class()(torch.zeros(1), torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
        tensor([[1., 1.]])

    Source: none.
    """

    values = (2,)
    reads = "classes"

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        ids = class_ids(targets, len(losses)).to(class_logits(outputs, len(losses)).device)
        return torch.stack([(outputs.argmax(dim=1) == ids).float(), ids.float()], dim=1)


class Classes:
    """The samples of a book by class, for a policy.

    Args:
        book: whose scores and classes count.
    Attributes:
        known: (C,) bool; the class of samples that are not seen yet is none.
    """

    def __init__(self, book: ScoreBook):
        assert isinstance(book, GroupBook)
        self._labels = book.group.where(~book.score.isnan(), _UNSEEN)
        ids, self.of, self._sizes = np.unique(self._labels.numpy(), return_inverse=True, return_counts=True)
        self.known = ids != _UNSEEN

    def sums(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " c"]:
        """The sum over each class."""
        return np.bincount(self.of, weights=values, minlength=len(self.known))

    def select(
        self, shares: Float[np.ndarray, " c"], values: Float[np.ndarray, " n"], count: int, key: Key
    ) -> Selection:
        """The highest values of every class, which has places in proportion to its share; unseen samples come first."""
        places = np.minimum(self._sizes, count)
        left = count - int(places[~self.known].sum())
        places[self.known] = proportional(shares[self.known], self._sizes[self.known], left, key)
        index = policies.highest_by_class(torch.from_numpy(values), self._labels, places.tolist(), key)
        return Selection.of(index)


def class_ids(targets: Any, batch: int) -> Int[Tensor, " b"]:
    """The targets; ValueError unless they are one class id for each sample."""
    whole = isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex())
    if not whole or targets.shape != (batch,):
        shown = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"this method reads class ids (B,) with B = {batch}, got {shown}: call "
            "pruner.loss(index, losses, outputs, targets). Without classes take `loss` or `memory`"
        )
    return targets


def class_logits(outputs: Any, batch: int) -> Float[Tensor, "b c"]:
    """The outputs; ValueError unless they are the logits of at least two classes for each sample."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != batch or outputs.shape[1] < 2:
        shown = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"this method reads logits (B, C) of exclusive classes with B = {batch}, got {shown}: call "
            "pruner.loss(index, losses, outputs, targets). Without classes take `loss` or `memory`"
        )
    return outputs


def proportional(
    shares: Float[np.ndarray, " c"], sizes: Int[np.ndarray, " c"], count: int, key: Key
) -> Int[np.ndarray, " c"]:
    """Places of classes in proportion to `shares`, at most as many as a class has samples, `count` in all.

    What a class cannot take goes to the others, in proportion to theirs; where these have no share, to their sizes.
    Fractions are rounded up or down at random, such that on average a class has just its places.

    Args:
        shares: not negative.
        sizes: samples of the classes, in all at least `count`.
        count: places.
        key: decides how fractions are rounded.
    """
    places, open_, left = sizes.astype(np.float64), sizes > 0, count
    while open_.any():
        weight = np.where(open_, shares, 0.0)
        weight = weight if weight.any() else np.where(open_, sizes, 0)
        wanted = left * weight / weight.sum()
        places[open_] = wanted[open_]
        full = open_ & (places >= sizes)
        if not full.any():
            break
        places[full] = sizes[full]
        left -= int(sizes[full].sum())
        open_ &= ~full
    whole = np.floor(places + 1e-9)
    ends = np.cumsum(np.maximum(places - whole, 0.0))
    rest = count - int(whole.sum())
    offset = float(torch.rand((), generator=key.generator(), dtype=torch.float64))
    ends = np.floor(ends * (rest / ends[-1]) + offset) if rest else np.zeros(len(ends))
    return (whole + np.diff(ends, prepend=0.0)).astype(np.int64)
