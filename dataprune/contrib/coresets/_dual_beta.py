"""DUAL with Beta sampling: a draw by score that turns to the easy samples as less is kept."""

from __future__ import annotations

import math
from numbers import Real

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ... import policies
from ...coresets import budget, ranking
from ...hashing import Key
from ...schedules import check_whole
from ...selection import Selection

_EDGE = 2.0**-24  # probabilities are at least so far from 0 and 1, where the density may be infinite


def dual_beta(
    scores: Float[Tensor, " n"] | budget.Array,
    difficulty: Float[Tensor, " n"] | budget.Array,
    *,
    keep: float,
    exponent: float = 4.0,
    concentration: float = 15.0,
    anchors: int = 10,
    labels: Integer[Tensor, " n"] | budget.Array | None = None,
    balance: budget.Balance = "none",
    seed: int = 0,
    max_memory: int = budget.MAX_MEMORY,
) -> Selection:
    """Keep a random draw, without replacement, in proportion to score × a Beta density of the mean probability.

    With p the mean probability of a sample's label, μ the mean p of the highest scores and r the share that is pruned,
    the density is that of Beta(C + 1 − β, β) at p, with β = C · (1 − μ) · (1 − r^c). Its mean rises from about μ, where
    nothing is pruned, to 1: the less is kept, the easier the samples.

    Args:
        scores: DUAL scores, finite and not negative. Samples of score 0 are drawn last.
        difficulty: 1 − p, of `dynamics.difficulty`, over the epochs of the scores; in [0, 1].
        exponent: c, above 0. The authors' code has 4 for CIFAR-100 and 11 for ImageNet.
        concentration: C, above 0.
        anchors: how many of the highest scores μ is of.
        balance: "none", or "class": a draw for each class, with the same number of places; μ and r are those of all.
    Raises:
        ValueError: if an argument is out of range.
    Example:
        >>> dual_beta(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, 0.3, 0.9]), keep=2, anchors=1).index.shape
        torch.Size([2])

    Source: Cho et al. 2025, arXiv:2502.06905, the sampling that adapts to the pruning ratio, with α and the ten anchors
        as in its code. Differs: the number drawn is rounded, not cut off.
    """
    scores = budget.check_scores(scores)
    count = budget.count_of(len(scores), keep)
    difficulty = _check_difficulty(difficulty, len(scores))
    if not bool(scores.isfinite().all()) or bool((scores < 0).any()):
        raise ValueError("scores are drawn in proportion to them: they must be finite and not negative, as DUAL's are")
    for name, value in (("exponent", exponent), ("concentration", concentration)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a number above 0, got {value!r}")
    check_whole("anchors", anchors)
    highest = policies.highest(scores, min(anchors, len(scores)), Key(seed, 0))
    beta = float(concentration * difficulty[highest].mean() * (1 - (1 - count / len(scores)) ** exponent))
    difficulty = difficulty.clamp(_EDGE, 1 - _EDGE)
    weight = scores.double().log() + (concentration - beta) * (-difficulty).log1p() + (beta - 1) * difficulty.log()

    def draw(values: Tensor, places: int, key: Key) -> Tensor:
        # adding independent Gumbel noise to the logarithms makes the order that of draws without replacement
        noise = torch.rand(len(values), generator=key.generator(), dtype=torch.float64).clamp_(min=1e-300)
        return policies.highest(values - noise.log_().neg_().log_(), places, key)

    # weights, difficulties, noise and their sum in float64, and what `highest` needs of them
    memory = 68 * len(scores)
    return ranking.choose("dual_beta", weight, draw, keep, labels, balance, seed, max_memory, memory=memory)


def _check_difficulty(difficulty: Tensor | budget.Array, size: int) -> Float[Tensor, " n"]:
    try:
        values = budget.check_scores(difficulty).double()
    except ValueError as error:
        raise ValueError(f"difficulty: {error}") from error
    if len(values) != size:
        raise ValueError(f"difficulty must hold one number for each of the {size} scores, got {len(values)}")
    if size and not (float(values.min()) >= 0 and float(values.max()) <= 1):
        raise ValueError(
            f"difficulty is 1 − the mean probability of the label, in [0, 1], got {float(values.min()):g} to "
            f"{float(values.max()):g}"
        )
    return values
