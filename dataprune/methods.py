"""Named recipes: each composes a criterion, a policy and a schedule into a `Pruner`. `METHODS` is their index.

`fixed`, which replays a coreset, is given a selection in place of a fraction and stands apart. The others share the
arguments that each of their docstrings lists, and raise ValueError where an argument is out of range, or where full
epochs use a budget up.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import checks, criteria, docstrings, policies, schedules
from .errors import UsageError, suggest
from .pruner import Pruner
from .selection import Selection

ALPHA = 0.8  # smoothing of both bandits, Raju et al. 2021


def full(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 0,
    anneal: float = 0.0,
) -> Pruner:
    """All samples in every epoch: the reference; `keep`, `budget`, `warmup` and `anneal` change nothing.

    Source: none.
    """
    for name, value in (("keep", keep), ("budget", budget)):
        if value is not None:
            schedules.check_fraction(name, value)
    return Pruner(size, criteria.loss, policies.uniform(), schedules.constant(1.0), epochs=epochs, seed=seed)


def static_random(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 0,
    anneal: float = 0.0,
) -> Pruner:
    """One random subset, drawn once.

    Source: "Random" (static) in Table 1 of Xiao et al., arXiv:2408.16031. Differs: nothing.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    return Pruner(size, criteria.loss, policies.uniform(), schedule, epochs=epochs, every=epochs, seed=seed)


def random(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 0,
    anneal: float = 0.0,
) -> Pruner:
    """A new random subset in every epoch.

    Source: "Random*" in Table 1 of Xiao et al., arXiv:2408.16031; Raju et al. 2021, arXiv:2111.12621. Differs: nothing.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    return Pruner(size, criteria.loss, policies.uniform(), schedule, epochs=epochs, seed=seed)


def rs2(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 0,
    anneal: float = 0.0,
) -> Pruner:
    """Chunks of one random permutation after another, so that all samples are trained equally often.

    Source: Okanovic et al. 2024 (RS2 without replacement), arXiv:2305.18424. Differs: a chunk that ends a permutation
        is filled up from the next.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    return Pruner(size, criteria.loss, policies.least_drawn(), schedule, epochs=epochs, seed=seed)


def elfl(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 0,
    anneal: float = 0.0,
) -> Pruner:
    """Extreme low-frequency learning, every sample equally often: `rs2` under the name it has in the EMP paper.

    Source: Xiao et al., arXiv:2408.16031, section 3.2 and Figure 3. Differs: nothing.
    """
    return rs2(size, keep=keep, budget=budget, epochs=epochs, seed=seed, warmup=warmup, anneal=anneal)


def loss(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 1,
    anneal: float = 0.0,
    balance: Tensor | Sequence[int] | Sequence[str] | None = None,
) -> Pruner:
    """The samples with the highest loss when they were last trained.

    Source: Raju et al. 2021, arXiv:2111.12621; "LFL" in Xiao et al., arXiv:2408.16031. Differs: nothing.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    return Pruner(
        size, criteria.loss, policies.top_k(balance=_classes(balance, size)), schedule, epochs=epochs, seed=seed
    )


def epsilon_greedy(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 1,
    anneal: float = 0.0,
    epsilon: float = 0.1,
    every: int = 10,
    smoothing: float = ALPHA,
    balance: Tensor | Sequence[int] | Sequence[str] | None = None,
) -> Pruner:
    """Mostly the highest smoothed loss, a share `epsilon` at random, selected every ten epochs.

    Args:
        epsilon: share of random places, in [0, 1].
        every: epochs that a selection is kept for.
        smoothing: weight of a new loss against the remembered one, in (0, 1].
    Source: Raju et al. 2021, arXiv:2111.12621, section 4.2. Differs: nothing.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    policy = policies.epsilon_greedy(epsilon, balance=_classes(balance, size))
    return Pruner(size, criteria.loss, policy, schedule, epochs=epochs, smoothing=smoothing, every=every, seed=seed)


def ucb(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 1,
    anneal: float = 0.0,
    c: float = 1.0,
    every: int = 10,
    smoothing: float = ALPHA,
    balance: Tensor | Sequence[int] | Sequence[str] | None = None,
) -> Pruner:
    """The highest smoothed loss plus c times its variance, selected every ten epochs.

    Args:
        c: weight of the variance.
        every: epochs that a selection is kept for.
        smoothing: weight of a new loss against the remembered one, in (0, 1].
    Source: Raju et al. 2021, arXiv:2111.12621, section 4.3. Differs: nothing.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    policy = policies.upper_confidence(c, _classes(balance, size))
    return Pruner(size, criteria.loss, policy, schedule, epochs=epochs, smoothing=smoothing, every=every, seed=seed)


def infobatch(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 1,
    anneal: float = 0.0,
    prune_probability: float | None = None,
) -> Pruner:
    """Samples below the mean loss are dropped with a probability, the others of them weigh more: an unbiased gradient.

    Args:
        keep: solves the probability anew in each epoch, at most 0.9: where few samples are below the mean, more than
            `keep` is trained, and `stats()` says how much.
        budget: as `keep`, and with the same limit.
        prune_probability: r in [0, 1), the paper's own parameter (0.5 there), in place of keep and budget.
    Source: Qin et al. 2024, arXiv:2303.04947. Differs: a fixed number of survivors in place of a coin for each sample,
        and `keep`, are this project's; anneal=0.125 there.
    """
    if prune_probability is None:
        return Pruner(
            size,
            criteria.loss,
            policies.soft_prune(),
            _schedule(keep, budget, epochs, warmup, anneal),
            epochs=epochs,
            seed=seed,
        )
    if keep is not None or budget is not None:
        raise ValueError("give prune_probability, or keep, or budget: each of them decides how much is pruned")
    policy = policies.soft_prune(prune_probability)
    schedule = _schedule(max(1 - prune_probability, 0.5 / size), None, epochs, warmup, anneal)
    return Pruner(size, criteria.loss, policy, schedule, epochs=epochs, seed=seed)


def emp(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 1,
    anneal: float = 0.0,
    beta: float = 5.0,
    distribution: criteria.Distribution | None = None,
    balance: Tensor | Sequence[int] | Sequence[str] | None = None,
) -> Pruner:
    """The highest loss plus beta times the entropy of the prediction: the hard, and those not yet remembered.

    Args:
        beta: weight of the memory term.
    Source: Xiao et al., arXiv:2408.16031, Eq. 8, Algorithm 1. Differs: anneal=0.125 there, as in its section 4.1.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    criterion = criteria.loss_plus_entropy(beta, distribution)
    return Pruner(size, criterion, policies.top_k(balance=_classes(balance, size)), schedule, epochs=epochs, seed=seed)


def emp_reverse(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 1,
    anneal: float = 0.0,
    beta: float = 5.0,
    distribution: criteria.Distribution | None = None,
    balance: Tensor | Sequence[int] | Sequence[str] | None = None,
) -> Pruner:
    """The lowest scores of `emp`: the ablation that shows which end of the order matters.

    Args:
        beta: weight of the memory term.
    Source: Xiao et al., arXiv:2408.16031, "EMP-reverse". Differs: anneal=0.125 there.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    criterion = criteria.loss_plus_entropy(beta, distribution)
    return Pruner(
        size, criterion, policies.bottom_k(balance=_classes(balance, size)), schedule, epochs=epochs, seed=seed
    )


def emp_contrastive(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 1,
    anneal: float = 0.0,
    beta: float = 5.0,
    balance: Tensor | Sequence[int] | Sequence[str] | None = None,
) -> Pruner:
    """The highest NT-Xent minus beta times the distance of a sample's two views: the hard, and those remembered.

    It is called as `pruner.loss(index, losses, (f_i, f_j))`, with one NT-Xent per sample and the features of the views
    before the projection (after it: the paper's ablation).

    Args:
        beta: weight of the memory term.
    Source: Xiao et al., arXiv:2408.16031, Eq. 13, Algorithm 2. Differs: anneal=0.125 there, as in its section 4.1.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    criterion = criteria.loss_minus_distance(beta)
    return Pruner(size, criterion, policies.top_k(balance=_classes(balance, size)), schedule, epochs=epochs, seed=seed)


def memory(
    size: int,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int,
    seed: int = 0,
    warmup: int = 1,
    anneal: float = 0.0,
    distribution: criteria.Distribution | None = None,
    balance: Tensor | Sequence[int] | Sequence[str] | None = None,
) -> Pruner:
    """The highest entropy of the prediction: EMP's memory term alone, blind to the label and so to a wrong one.

    Source: this project's own; `emp` as beta goes to infinity.
    """
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    criterion = criteria.entropy if distribution is None else criteria.entropy_of(distribution)
    return Pruner(size, criterion, policies.top_k(balance=_classes(balance, size)), schedule, epochs=epochs, seed=seed)


def fixed(size: int, *, selection: Selection, epochs: int, seed: int = 0, strategy: Literal["E", "P"] = "E") -> Pruner:
    """A coreset chosen beforehand, the same in every epoch; its weights multiply the losses.

    Args:
        size: as for all recipes.
        selection: what to train on: from `coresets`, from a file, or `Selection.of` positions of your own.
        epochs: epochs of the run on all the data that this one stands for.
        seed: decides the order within an epoch.
        strategy: "E": as many epochs on the coreset. "P": 1 / keep times as many, so that about as many samples are
            trained as on all the data; `epochs` of the pruner says how many.
    Returns:
        A pruner that keeps len(selection) samples in every epoch.
    Raises:
        TypeError: if it is no Selection.
        ValueError: if positions are repeated or outside the dataset, or weights are negative or not finite.
    Source: "Strategy-E" and "Strategy-P" in Zhang et al. 2024, arXiv:2311.13613, section 5.1. Differs: nothing.
    """
    if not isinstance(selection, Selection):
        raise TypeError(f"selection must be a Selection, got {type(selection).__name__}: Selection.of(index) makes one")
    checks.check_positions(selection, size, what="the selection")
    count = len(selection)
    if not bool((selection.weight.isfinite() & (selection.weight >= 0)).all()):
        raise ValueError("a selection's weights multiply losses: they must be finite and not negative")
    if not bool(selection.weight.any()):
        raise ValueError("all weights of the selection are 0: every loss would be 0, and nothing would be trained")
    if strategy not in ("E", "P"):
        raise ValueError(suggest(str(strategy), ["E", "P"], what="strategy"))
    if strategy == "P":
        epochs = round(epochs * size / count)
    schedule = schedules.constant(count / size)
    return Pruner(size, criteria.loss, policies.replay(selection), schedule, epochs=epochs, every=epochs, seed=seed)


METHODS: dict[str, Callable[..., Pruner]] = {
    recipe.__name__: recipe
    for recipe in (
        full,
        static_random,
        random,
        rs2,
        elfl,
        loss,
        epsilon_greedy,
        ucb,
        infobatch,
        emp,
        emp_reverse,
        emp_contrastive,
        memory,
    )
}


_SHARED = {
    "size": "samples in the dataset, N.",
    "keep": "fraction kept in a pruned epoch, in (0, 1]; full epochs of `warmup` and `anneal` come on top.",
    "budget": "in place of `keep`, the fraction of a full run's samples; keep is solved, full epochs inside.",
    "epochs": "epochs of the run.",
    "seed": "decides the selections and the order within an epoch.",
    "warmup": "full epochs at the start; with few epochs in all, warmup=0 walks through unseen samples first.",
    "anneal": "share of full epochs at the end, in [0, 1].",
    "distribution": 'of the outputs: "softmax", "bernoulli" or "gaussian"; found by default, see `criteria.entropy`.',
    "balance": "(N,) class ids or names; the highest scores are then taken class by class, in equal numbers.",
}


for _recipe in METHODS.values():
    docstrings.complete(_recipe, _SHARED)


@functools.cache
def reads(name: str) -> criteria.Reads:
    """What a method reads of a training step: "losses", "probabilities", "features" or "nothing".

    Args:
        name: in `METHODS`.
    Raises:
        UsageError: if there is no such method.
    Example:
        >>> reads("emp"), reads("loss"), reads("rs2")
        ('probabilities', 'losses', 'nothing')
    """
    if name not in METHODS:
        raise UsageError(suggest(name, METHODS, what="method"))
    return METHODS[name](2, keep=0.5, epochs=4).reads


def _schedule(keep: float | None, budget: float | None, epochs: int, warmup: int, anneal: float) -> schedules.Schedule:
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise ValueError(f"warmup is a number of full epochs, at least 0, got {warmup!r}")
    schedules.check_whole("epochs", epochs)
    stop = schedules.full_from(epochs, anneal)
    if (keep is None) == (budget is None):
        raise ValueError("give keep (fraction of a pruned epoch) or budget (fraction of a full run), one of them")
    if keep is None:
        assert budget is not None
        keep = _solve(budget, epochs, warmup, stop)
    schedule = schedules.window(keep, warmup, stop)
    if keep < 1 and warmup > 0 and epochs <= 3:
        warnings.warn(
            f"{min(warmup, epochs)} of {epochs} epochs train all samples before anything is pruned, which leaves "
            "little to save: with warmup=0 the first epochs train samples not yet seen, and pruning starts at once",
            stacklevel=3,
        )
    return schedule


def _classes(balance: Tensor | Sequence[int] | Sequence[str] | None, size: int) -> Tensor | None:
    if balance is None:
        return None
    if not isinstance(balance, Tensor) and len(balance) and isinstance(balance[0], str):
        labels = torch.as_tensor(np.unique(np.asarray(balance), return_inverse=True)[1])
    else:
        labels = torch.as_tensor(balance)
    if labels.shape != (size,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"balance must hold one class id for each of the {size} samples, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    return labels


def _solve(budget: float, epochs: int, warmup: int, stop: int) -> float:
    """The `keep` that makes warm-up, pruned epochs and annealing add up to budget * epochs full epochs."""
    schedules.check_fraction("budget", budget)
    pruned = max(0, stop - min(warmup, epochs))
    full_epochs = epochs - pruned
    left = round(budget * epochs - full_epochs, 9)  # 0.07 * 100 is a hair above 7
    if budget == 1:
        return 1.0
    if pruned == 0 or left <= 0:
        raise ValueError(
            f"budget {budget} of {epochs} epochs is used up by {full_epochs} full epochs (warm-up and annealing): it "
            f"must be above {full_epochs / epochs:.3g}, or warmup and anneal smaller"
        )
    return left / pruned
