"""GradMatch: weighted samples whose gradients add up to the gradient of all."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..hashing import Key
from ..selection import Selection
from .budget import Balance, check_balance, count_of, split
from .chunks import MAX_MEMORY, chunk_rows
from .layer_gradients import CHUNK, check_class_ids, check_gradients, products, weighted_sum
from .least_squares import Fit


def grad_match(
    errors: Float[Tensor, "n c"],
    features: Float[Tensor, "n d"],
    *,
    keep: float,
    labels: Integer[Tensor, " n"],
    penalty: float = 0.5,
    nonnegative: bool = True,
    balance: Balance = "class",
    max_memory: int = MAX_MEMORY,
    seed: int = 0,
) -> Selection:
    """Keep the samples, with weights, whose weighted gradients add up to the sum of all gradients.

    Orthogonal matching pursuit: the sample whose gradient has the largest inner product with the residual is added (the
    largest in absolute value where weights may be negative), then all weights w are fitted again to minimise
    ‖Σ_kept w_i g_i − Σ_all g_i‖² + penalty·‖w‖². Gradients are those of the last layer, and never stored; a pick costs
    one pass over the features of its class, n·C·D multiplications, and k² for the weights. Beyond its inputs it needs,
    for the largest class of n samples and k kept, a copy of their rows, 16·k² bytes and the memory of a chunk.

    Args:
        errors: softmax(logits) − onehot(labels).
        features: input of the last linear layer.
        keep: fraction kept, in (0, 1].
        labels: class ids in [0, c).
        penalty: λ, at least 0.
        nonnegative: no weight below 0, as in the paper's algorithm; False is plain matching pursuit, whose negative
            weights are unfit for training.
        balance: "class" matches each class separately, with its share of the places; "none" matches all at once.
        max_memory: bytes that may be used beyond the inputs.
        seed: decides between equal inner products, and which class gets an odd place.
    Returns:
        Positions in ascending order and the fitted weights, of the order of 1 / keep. A weight is 0 where no other
        sample could lower the error; the places are filled nevertheless.
    Raises:
        ValueError: if shapes differ, a value is not finite, penalty is negative, a class would be left empty, or memory
            is too small.
    Source: GRAD-MATCH, Killamsetty et al. 2021, arXiv:2103.00123, orthogonal matching pursuit with the per-class
        last-layer gradients. Differs: no tolerance ends it early, so that all places are filled.
    """
    errors, features = check_gradients(errors, features)
    labels = check_class_ids(labels, errors)
    if not 0 <= penalty < float("inf"):
        raise ValueError(f"penalty is the weight of the squared norm of the weights, at least 0, got {penalty}")
    check_balance(balance, labels)
    size, classes = errors.shape
    generator = torch.Generator().manual_seed(seed)
    division = "proportional" if balance == "class" else "none"
    index, weight = [], []
    for positions, places in split(size, count_of(size, keep), labels.cpu(), division, Key(seed, 0)):
        # argmax takes the first of equal inner products
        members = positions[torch.randperm(len(positions), generator=generator)].to(labels.device)
        item, chunk = errors.element_size(), min(CHUNK, len(members))
        need = item * ((classes + features.shape[1]) * (len(members) + places) + chunk * classes) + 16 * places**2
        need += 3 * 8 * classes * (features.shape[1] + 1) + 16 * len(members)
        chunk_rows("grad_match", fixed=need, row=0, size=len(members), max_memory=max_memory)
        picks, weights = _pursue(errors[members], features[members], places, penalty, nonnegative)
        index.append(members[picks])
        weight.append(weights)
    positions, order = torch.cat(index).sort()
    return Selection(positions.cpu(), torch.cat(weight)[order].float().cpu())


def _pursue(errors: Tensor, features: Tensor, count: int, penalty: float, nonnegative: bool) -> tuple[Tensor, Tensor]:
    """Run the matching pursuit; returns `count` places, in the order of picking, and their weights."""
    target = weighted_sum(errors, features)
    fit = Fit(count, penalty, nonnegative)
    picks: list[int] = []
    residual = target
    for _ in range(count):
        score = products(errors, features, residual)
        if not nonnegative:
            score.abs_()
        score[picks] = -torch.inf
        best = int(score.argmax())
        picks.append(best)
        chosen = torch.tensor(picks, device=errors.device)
        row = (errors[chosen] @ errors[best]).double() * (1 + (features[chosen] @ features[best]).double())
        fit.add(row.cpu(), float(products(errors[best : best + 1], features[best : best + 1], target)))
        weight = fit.weight().to(errors)
        residual = target - weighted_sum(errors[chosen], features[chosen], weight)
    return torch.tensor(picks, device=errors.device), fit.weight().to(errors)
