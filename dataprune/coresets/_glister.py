"""Glister: samples whose gradient steps lower the validation loss."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from ..hashing import Key
from ..modules import has_bias
from ..schedules import check_whole
from ..selection import Selection
from . import budget
from .layer_gradients import CHUNK, check_factors, check_gradients, probabilities, products, weighted_sum


def glister(
    errors: Float[Tensor, "n c"] | budget.Array,
    features: Float[Tensor, "n d"] | budget.Array,
    *,
    keep: float,
    labels: Integer[Tensor, " n"] | budget.Array,
    val_errors: Float[Tensor, "m c"] | budget.Array,
    val_features: Float[Tensor, "m d"] | budget.Array,
    step: float = 0.01,
    every: int = 1,
    balance: budget.Balance = "none",
    bias: bool | nn.Module = True,
    max_memory: int = budget.MAX_MEMORY,
    seed: int = 0,
) -> Selection:
    """Keep the samples whose gradient steps, one after another, lower the validation loss most.

    The gain of a sample is ⟨g_i, ∇L_val⟩, with L_val the mean validation loss. After each pick j the last layer takes
    one step θ ← θ − step·g_j, which moves the logits of a validation sample v by −step·(1 + ⟨h_v, h_j⟩)·e_j; its
    softmax and ∇L_val are updated exactly. The gradients g of the training samples stay those of the given errors. No
    validation labels are needed: an error is negative at the label only.

    Each update costs two passes over the features, N·C·D and M·C·D multiplications twice; with `every` > 1, that many
    samples of the highest gains are taken between two updates. Beyond its inputs it needs 3·M·C + 8·N values and the
    memory of a chunk.

    Args:
        val_errors: (M, C) errors of validation samples, and `val_features`, (M, D), their features.
        step: the step η, as a learning rate.
        every: samples taken between two updates.
        balance: "class" keeps the same share of every class; "none", as in the paper, keeps the highest gains.
    Source: GLISTER, Killamsetty et al. 2021, arXiv:2012.10630: greedy selection with the gain's Taylor approximation on
        the last layer. Differs: the number of updates is given by `every`, the samples between two.
    """
    errors, features, labels = check_gradients(errors, features, labels)
    bias = has_bias(bias)
    val_errors, val_features = check_factors(val_errors, val_features, "val_")
    for name, value, other in (("errors", val_errors, errors), ("features", val_features, features)):
        if value.shape[1] != other.shape[1]:
            raise ValueError(f"val_{name} has {value.shape[1]} columns, {name} has {other.shape[1]}")
    check_whole("every", every)
    if not 0 <= step < float("inf"):
        raise ValueError(f"step is a learning rate, at least 0, got {step}")
    size, count = len(labels), budget.count_of(len(labels), keep)
    budget.check_balance(balance, labels, size)
    generator = torch.Generator().manual_seed(seed)
    left = torch.full((int(labels.max()) + 1,), count)  # places that each class can still give
    if balance == "class":
        for positions, places in budget.split(size, count, labels.cpu(), "proportional", Key(seed, 0)):
            left[labels[positions[0]]] = places
    left = left.to(labels.device)
    item, chunk = errors.element_size(), min(CHUNK, max(size, len(val_errors)))
    need = item * (3 * val_errors.numel() + chunk * (errors.shape[1] + every)) + 40 * size
    budget.chunk_rows("glister", size, max_memory, fixed=need)
    val_errors, val_features = (value.to(errors) for value in (val_errors, val_features))
    truth = val_errors.argmin(1)
    # zero probabilities stay zero under a step, as those of logits at −∞ do
    log_p = probabilities(val_errors, truth, "val_errors").log_()

    order = torch.randperm(size, generator=generator).to(labels.device)
    chosen = torch.zeros(size, dtype=torch.bool, device=labels.device)
    taken = 0
    rows = torch.arange(len(truth), device=truth.device)
    while taken < count:
        current = log_p.softmax(1)
        current[rows, truth] -= 1
        gain = products(errors, features, weighted_sum(current, val_features, bias=bias) / len(truth))
        gain.masked_fill_(chosen | (left[labels] == 0), -torch.inf)
        picks = _best(gain, order, labels, left, min(every, count - taken))
        chosen[picks] = True
        taken += len(picks)
        for start in range(0, len(truth), CHUNK):
            part = slice(start, start + CHUNK)
            log_p[part] -= step * ((bias + val_features[part] @ features[picks].T) @ errors[picks])
    return Selection.of(chosen.nonzero().squeeze(1).cpu())


def _best(gain: Tensor, order: Tensor, labels: Tensor, left: Tensor, count: int) -> Tensor:
    """Take up to `count` positions of the highest gains, at least one; each takes a place that its class has `left`."""
    shuffled = gain[order]
    best = shuffled.argmax()[None] if count == 1 else shuffled.topk(count).indices
    picks = []
    for position in order[best[shuffled[best] > -torch.inf]].tolist():
        label = labels[position]
        if left[label] > 0:
            left[label] -= 1
            picks.append(position)
    return torch.tensor(picks, dtype=torch.int64, device=gain.device)
