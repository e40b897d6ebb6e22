"""CRAIG: samples whose gradients cover the gradients of all."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from ..modules import has_bias
from ..selection import Selection
from . import budget
from .layer_gradients import check_gradients, match_classes

_ROWS = 512  # samples whose distances are computed at once, if memory allows
_FIRST = 16  # candidates that lazy greedy re-scores first


def craig(
    errors: Float[Tensor, "n c"] | budget.Array,
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | budget.Array,
    bias: bool | nn.Module = True,
    chosen: Selection | Int[Tensor, " m"] | budget.Array | None = None,
    max_memory: int = budget.MAX_MEMORY,
    seed: int = 0,
) -> Selection:
    """Keep, in each class, the samples that minimise the sum of distances from every gradient to the nearest kept one.

    Greedy facility location. Gains only shrink while samples are added, so that most need not be computed again (lazy
    greedy); the result is that of the plain greedy algorithm. Gradients are those of the last layer, and never stored.

    Beyond its inputs it needs n²·4 bytes in float32 for the largest class of n samples (100 MB for 5,000). Above
    `max_memory` distances are computed when they are needed: slower, with a few rows of n values at a time.

    Args:
        keep: fraction kept, in (0, 1]; or, from 2 on, how many samples; classes keep their shares.
    Returns:
        Positions in ascending order. Weights are the numbers of samples that are nearest to each, itself among them;
        they sum to N, less those that are nearest to one in `chosen`, and a loss that is averaged over the coreset is
        1 / keep times that over all data.
    Example:
        >>> errors = torch.tensor([[-0.9, 0.9], [-0.9, 0.9], [-0.1, 0.1]])
        >>> craig(errors, torch.zeros(3, 1), keep=0.67, labels=torch.zeros(3, dtype=torch.int64)).weight
        tensor([2., 1.])

    Source: CRAIG, Mirzasoleiman et al. 2020, arXiv:1906.01827, Algorithm 1, per class with last-layer gradients.
        Differs: the auxiliary element is left out, as it decides nothing once every sample has a nearest one.
    """
    errors, features, labels = check_gradients(errors, features, labels)
    bias = has_bias(bias)

    def match(members: Tensor, places: int, known: Tensor) -> tuple[Tensor, Tensor]:
        if places == len(members):
            return torch.arange(places, device=members.device), torch.ones_like(members)
        distances = _Distances(errors, features, torch.cat([known, members]), bias, max_memory)
        picks, weights = _cover(distances, places, len(known))
        return picks - len(known), weights

    return match_classes(match, labels, keep, seed, chosen=chosen)


class _Distances:
    """Distances between the gradients of some samples, row by row; stored if they fit into memory."""

    def __init__(self, errors: Tensor, features: Tensor, members: Tensor, bias: bool, limit: int):
        size, item = len(members), errors.element_size()
        base = size * ((errors.shape[1] + features.shape[1]) * item + 64)  # the class's rows, and some vectors
        row = 4 * size * item
        budget.chunk_rows("craig", size, limit, fixed=base, row=row)
        self.errors, self.features = errors[members], features[members]
        self.squares = self.errors.square().sum(1) * (bias + self.features.square().sum(1))
        self.size, self.bias = size, bias
        self.matrix: Tensor | None = None
        stored = base + size * size * item
        self.rows = max(1, min(_ROWS, size, (limit - (stored if stored + row <= limit else base)) // row))
        if stored + row <= limit:
            matrix = errors.new_empty(size, size)
            for part in torch.arange(size).split(self.rows):
                matrix[part] = self._compute(part)
            self.matrix = matrix

    def of(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b n"]:
        return self._compute(index) if self.matrix is None else self.matrix[index]

    def _compute(self, index: Tensor) -> Tensor:
        result = self.features[index] @ self.features.T
        result += self.bias
        result *= self.errors[index] @ self.errors.T  # inner products of gradients
        result.mul_(-2).add_(self.squares).add_(self.squares[index][:, None]).clamp_(min=0).sqrt_()
        result[torch.arange(len(index)), index] = 0
        return result


def _cover(distances: _Distances, count: int, known: int = 0) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Choose samples one after another, and count how many are nearest to each; `known` are chosen already."""
    size = distances.size
    everyone = torch.arange(size, device=distances.errors.device)
    parts = everyone.split(distances.rows)
    if known:
        chosen = list(range(known))
        nearest, owner = torch.full_like(distances.squares, torch.inf), torch.zeros_like(everyone)
        for part in everyone[:known].split(distances.rows):
            reached, at = distances.of(part).min(dim=0)
            owner = torch.where(reached < nearest, part[at], owner)
            nearest = torch.minimum(nearest, reached)
    else:
        first = torch.cat([distances.of(part).sum(1) for part in parts]).argmin()
        nearest, owner = distances.of(first[None])[0], first.expand(size).clone()
        chosen = [int(first)]

    def gains(index: Tensor) -> Tensor:
        return torch.cat([(nearest - distances.of(part)).clamp_(min=0).sum(1) for part in index.split(distances.rows)])

    count += known
    bound = gains(everyone) if count > len(chosen) else torch.zeros_like(nearest)
    computed = torch.full_like(everyone, len(chosen))  # number of chosen samples when a bound was computed
    bound[chosen] = -1
    while len(chosen) < count:
        candidates = _FIRST
        best = int(bound.argmax())
        while int(computed[best]) != len(chosen):
            top = bound.topk(min(candidates, size)).indices
            stale = top[(computed[top] != len(chosen)) & (bound[top] >= 0)]
            bound[stale] = gains(stale)
            computed[stale] = len(chosen)
            candidates *= 2
            best = int(bound.argmax())
        row = distances.of(everyone[best : best + 1])[0]
        closer = row < nearest
        owner[closer] = best
        nearest = torch.minimum(nearest, row)
        bound[best] = -1
        chosen.append(best)
    result = torch.tensor(chosen, device=everyone.device)
    owner[result] = result  # even if an equal sample was chosen before: no weight is zero
    return result[known:], torch.bincount(owner, minlength=size)[result[known:]]
