"""Glister and GradMatch: selection by what gradients of the last layer add up to."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from ..selection import Selection
from . import budget
from .last_layer import CHUNK, check, check_labels, probabilities, products, weighted_sum
from .least_squares import Fit

Balance = Literal["none", "class"]


def glister(
    errors: Float[Tensor, "n c"],
    features: Float[Tensor, "n d"],
    *,
    keep: float,
    labels: Int[Tensor, " n"],
    val_errors: Float[Tensor, "m c"],
    val_features: Float[Tensor, "m d"],
    step: float = 0.01,
    every: int = 1,
    balance: Balance = "none",
    max_memory: int = budget.MAX_MEMORY,
    seed: int = 0,
) -> Selection:
    """The samples whose gradient steps, one after another, lower the validation loss most.

    The gain of a sample is ⟨g_i, ∇L_val⟩, with L_val the mean validation loss. After each pick j the last layer takes
    one step θ ← θ − step·g_j, which moves the logits of a validation sample v by −step·(1 + ⟨h_v, h_j⟩)·e_j; the
    softmax and so ∇L_val follow exactly. The gradients g of the training samples stay those of the given errors. No
    validation labels are needed: an error is negative at the label only.

    Each update costs two passes over the features, N·C·D and M·C·D multiplications twice; with `every` > 1 that many
    samples, those of the highest gains, are taken between two updates. Beyond its inputs it needs 3·M·C + 8·N values
    and what a chunk of samples takes.

    Args:
        errors: softmax(logits) − onehot(labels).
        features: input of the last linear layer.
        keep: fraction kept, in (0, 1].
        labels: class ids in [0, c).
        val_errors: softmax(logits) − onehot(labels) of validation samples.
        val_features: their features.
        step: the step η, as a learning rate.
        every: samples taken between two updates.
        balance: "class" lets every class keep its share, "none" lets the gain decide alone, as the paper does.
        max_memory: bytes it may use beyond its inputs.
        seed: decides between equal gains, and which class gets an odd place.
    Returns:
        Positions in ascending order, all of weight 1.
    Raises:
        ValueError: if shapes differ, a value is not finite, `val_errors` are no errors, a class would be left empty
            where classes are balanced, or memory is too small.
    Source: GLISTER, Killamsetty et al. 2021, arXiv:2012.10630: greedy selection with the gain's Taylor approximation on
        the last layer. Differs: the number of updates is given by `every`, the samples between two.
    """
    errors, features = check(errors, features)
    labels = check_labels(labels, errors)
    val_errors, val_features = check(val_errors, val_features, ("val_errors", "val_features"))
    for name, value, other in (("errors", val_errors, errors), ("features", val_features, features)):
        if value.shape[1] != other.shape[1]:
            raise ValueError(f"val_{name} has {value.shape[1]} columns, {name} has {other.shape[1]}")
    if every < 1:
        raise ValueError(f"every is how many samples are taken between two updates, at least 1, got {every}")
    if not 0 <= step < float("inf"):
        raise ValueError(f"step is a learning rate, at least 0, got {step}")
    size, count = len(labels), budget.count_of(len(labels), keep)
    generator = torch.Generator().manual_seed(seed)
    left = _places(labels, count, balance, generator)
    item, chunk = errors.element_size(), min(CHUNK, max(size, len(val_errors)))
    need = item * (3 * val_errors.numel() + chunk * (errors.shape[1] + every)) + 40 * size
    budget.check_memory(need, max_memory, "Glister")
    val_errors, val_features = (value.to(errors) for value in (val_errors, val_features))
    truth = val_errors.argmin(1)
    # zero probabilities stay zero under a step, as those of logits at −∞ do
    log_p = probabilities(val_errors, truth, "val_errors").log_()

    order = torch.randperm(size, generator=generator).to(labels.device)
    open_classes = left[labels] > 0
    chosen = torch.zeros(size, dtype=torch.bool, device=labels.device)
    taken = 0
    rows = torch.arange(len(truth), device=truth.device)
    while taken < count:
        current = log_p.softmax(1)
        current[rows, truth] -= 1
        gain = products(errors, features, weighted_sum(current, val_features) / len(truth))
        picks = _best(
            gain.masked_fill_(chosen | ~open_classes, -torch.inf), order, labels, left, min(every, count - taken)
        )
        chosen[picks] = True
        taken += len(picks)
        open_classes = left[labels] > 0
        for start in range(0, len(truth), CHUNK):
            part = slice(start, start + CHUNK)
            log_p[part] -= step * ((1 + val_features[part] @ features[picks].T) @ errors[picks])
    return Selection.of(chosen.nonzero().squeeze(1).cpu())


def _places(labels: Tensor, count: int, balance: Balance, generator: Generator) -> Tensor:
    """(C,) places that each class has to give; all of them where classes are not balanced."""
    if balance not in ("none", "class"):
        raise ValueError(f"balance is 'none' or 'class', got {balance!r}")
    places = torch.full((int(labels.max()) + 1,), count, device=labels.device)
    if balance == "class":
        classes, sizes = torch.unique(labels, return_counts=True)
        shares = budget.proportional_places(classes, sizes.tolist(), count, generator)
        places.zero_()[classes] = places.new_tensor(shares)
    return places


def _best(gain: Tensor, order: Tensor, labels: Tensor, left: Tensor, count: int) -> Tensor:
    """Up to `count` positions of the highest gains, at least one; each uses up a place that its class has `left`."""
    shuffled = gain[order]
    best = shuffled.argmax()[None] if count == 1 else shuffled.topk(count).indices
    picks = []
    for position in order[best[shuffled[best] > -torch.inf]].tolist():
        label = labels[position]
        if left[label] > 0:
            left[label] -= 1
            picks.append(position)
    return torch.tensor(picks, dtype=torch.int64, device=gain.device)


def grad_match(
    errors: Float[Tensor, "n c"],
    features: Float[Tensor, "n d"],
    *,
    keep: float,
    labels: Int[Tensor, " n"],
    penalty: float = 0.5,
    nonnegative: bool = True,
    balance: Balance = "class",
    max_memory: int = budget.MAX_MEMORY,
    seed: int = 0,
) -> Selection:
    """The samples, and their weights, whose weighted gradients add up to the sum of all gradients.

    Orthogonal matching pursuit: the sample whose gradient has the largest inner product with what is still missing is
    added (the largest in absolute value where weights may be negative), then all weights w are fitted anew to minimise
    ‖Σ_kept w_i g_i − Σ_all g_i‖² + penalty·‖w‖². Gradients are those of the last layer and are never stored; a pick
    costs one pass over the features of its class, n·C·D multiplications, and k² for the weights. Beyond its inputs it
    needs, for the largest class of n samples and k kept, a copy of their rows, 16·k² bytes and what a chunk of samples
    takes.

    Args:
        errors: softmax(logits) − onehot(labels).
        features: input of the last linear layer.
        keep: fraction kept, in (0, 1].
        labels: class ids in [0, c).
        penalty: λ, what large weights cost; at least 0.
        nonnegative: no weight below 0, as in the paper's algorithm; False is plain matching pursuit, whose negative
            weights no training should use.
        balance: "class" matches every class by itself, each with its share of the places, "none" matches all at once.
        max_memory: bytes it may use beyond its inputs.
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
    errors, features = check(errors, features)
    labels = check_labels(labels, errors)
    if not 0 <= penalty < float("inf"):
        raise ValueError(f"penalty is what large weights cost, at least 0, got {penalty}")
    generator = torch.Generator().manual_seed(seed)
    places = _places(labels, budget.count_of(len(labels), keep), balance, generator)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    groups = [order] if balance == "none" else [order[labels[order] == label] for label in places.nonzero().squeeze(1)]
    index, weight = [], []
    for members in groups:
        count = int(places[labels[members[0]]])
        chunk = min(CHUNK, len(members))
        row = errors.element_size() * (errors.shape[1] + features.shape[1])
        need = row * (len(members) + count) + 16 * count**2 + errors.element_size() * chunk * errors.shape[1]
        need += 3 * 8 * errors.shape[1] * (features.shape[1] + 1) + 16 * len(members)
        budget.check_memory(need, max_memory, f"GradMatch for {count:,} of {len(members):,} samples")
        picks, weights = _pursue(errors[members], features[members], count, penalty, nonnegative)
        index.append(members[picks])
        weight.append(weights)
    positions, place = torch.cat(index).sort()
    return Selection(positions.cpu(), torch.cat(weight)[place].float().cpu())


def _pursue(errors: Tensor, features: Tensor, count: int, penalty: float, nonnegative: bool) -> tuple[Tensor, Tensor]:
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
