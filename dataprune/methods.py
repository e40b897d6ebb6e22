"""Named recipes: each composes a criterion, a policy and a schedule into a `Pruner`. `METHODS` is their index.

`fixed`, which replays a coreset, is given a selection in place of a fraction and stands apart. The others share the
arguments of `Run`, and raise ValueError where an argument is out of range, or where full
epochs use a budget up.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Required, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from . import checks, criteria, docstrings, policies, schedules
from .errors import UsageError, suggest
from .pruner import Pruner
from .selection import Selection

ALPHA = 0.8  # smoothing of both bandits, Raju et al. 2021

Balance = Tensor | Sequence[int] | Sequence[str] | None


class Run(TypedDict, total=False):
    """The arguments that all recipes share.

    Attributes:
        keep: fraction kept in a pruned epoch, in (0, 1]; full epochs of `warmup` and `anneal` come on top.
        budget: in place of `keep`, the fraction of a full run's samples; keep is solved, full epochs inside.
        epochs: epochs of the run.
        seed: decides the selections and the order within an epoch.
        warmup: full epochs at the start; with few epochs in all, warmup=0 walks through unseen samples first.
        anneal: share of full epochs at the end, in [0, 1].
    """

    keep: float | None
    budget: float | None
    epochs: Required[int]
    seed: int
    warmup: int
    anneal: float


def full(size: int, **run: Unpack[Run]) -> Pruner:
    """All samples in every epoch: the reference; `keep`, `budget`, `warmup` and `anneal` change nothing.

    Source: none.
    """
    for name, value in (("keep", run.get("keep")), ("budget", run.get("budget"))):
        if value is not None:
            schedules.check_fraction(name, value)
    run.update(keep=1.0, budget=None, warmup=0, anneal=0.0)
    return _pruner(size, criteria.loss, policies.uniform(), **run)


def static_random(size: int, **run: Unpack[Run]) -> Pruner:
    """One random subset, drawn once.

    Args:
        keep: fraction kept in a pruned epoch, in (0, 1]; or, from 2 on, how many samples.
    Source: "Random" (static) in Table 1 of Xiao et al., arXiv:2408.16031. Differs: nothing.
    """
    keep = run.get("keep")
    if keep is not None:
        run["keep"] = schedules.fraction_of(keep, size)
    return _pruner(size, criteria.loss, policies.uniform(), every=None, **run)


def random(size: int, **run: Unpack[Run]) -> Pruner:
    """A new random subset in every epoch.

    Source: "Random*" in Table 1 of Xiao et al., arXiv:2408.16031; Raju et al. 2021, arXiv:2111.12621. Differs: nothing.
    """
    return _pruner(size, criteria.loss, policies.uniform(), **run)


def rs2(size: int, **run: Unpack[Run]) -> Pruner:
    """Chunks of one random permutation after another, so that all samples are trained equally often.

    Source: Okanovic et al. 2024 (RS2 without replacement), arXiv:2305.18424. Differs: a chunk that ends a permutation
        is filled up from the next.
    """
    return _pruner(size, criteria.loss, policies.least_drawn(), **run)


def elfl(size: int, **run: Unpack[Run]) -> Pruner:
    """Extreme low-frequency learning, every sample equally often: `rs2` under the name it has in the EMP paper.

    Source: Xiao et al., arXiv:2408.16031, section 3.2 and Figure 3. Differs: nothing.
    """
    return rs2(size, **run)


def loss(size: int, *, balance: Balance = None, **run: Unpack[Run]) -> Pruner:
    """The samples with the highest loss when they were last trained.

    Source: Raju et al. 2021, arXiv:2111.12621; "LFL" in Xiao et al., arXiv:2408.16031. Differs: nothing.
    """
    return _pruner(size, criteria.loss, policies.top_k(balance=_classes(balance, size)), **run)


def epsilon_greedy(
    size: int,
    *,
    epsilon: float = 0.1,
    every: int = 10,
    smoothing: float = ALPHA,
    balance: Balance = None,
    **run: Unpack[Run],
) -> Pruner:
    """Mostly the highest smoothed loss, a share `epsilon` at random, selected every ten epochs.

    Args:
        epsilon: share of random places, in [0, 1].
        every: epochs that a selection is kept for.
        smoothing: weight of a new loss against the remembered one, in (0, 1].
    Source: Raju et al. 2021, arXiv:2111.12621, section 4.2. Differs: nothing.
    """
    policy = policies.epsilon_greedy(epsilon, balance=_classes(balance, size))
    return _pruner(size, criteria.loss, policy, smoothing=smoothing, every=every, **run)


def ucb(
    size: int, *, c: float = 1.0, every: int = 10, smoothing: float = ALPHA, balance: Balance = None, **run: Unpack[Run]
) -> Pruner:
    """The highest smoothed loss plus c times its variance, selected every ten epochs.

    Args:
        c: weight of the variance.
        every: epochs that a selection is kept for.
        smoothing: weight of a new loss against the remembered one, in (0, 1].
    Source: Raju et al. 2021, arXiv:2111.12621, section 4.3. Differs: nothing.
    """
    policy = policies.upper_confidence(c, _classes(balance, size))
    return _pruner(size, criteria.loss, policy, smoothing=smoothing, every=every, **run)


def infobatch(size: int, *, prune_probability: float | None = None, **run: Unpack[Run]) -> Pruner:
    """Samples below the mean loss are dropped with a probability, the others of them weigh more: an unbiased gradient.

    Args:
        keep: solves the probability anew in each epoch, at most 0.9: where few samples are below the mean, more than
            `keep` is trained, and `stats()` says how much.
        budget: as `keep`, and with the same limit.
        prune_probability: r in [0, 1), the paper's own parameter (0.5 there), in place of keep and budget.
    Source: Qin et al. 2024, arXiv:2303.04947. Differs: a fixed number of survivors in place of a coin for each sample,
        and `keep`, are this project's; anneal=0.125 there.
    """
    if prune_probability is not None:
        if run.get("keep") is not None or run.get("budget") is not None:
            raise ValueError("give prune_probability, or keep, or budget: each of them decides how much is pruned")
        run["keep"] = max(1 - prune_probability, 0.5 / size)
    return _pruner(size, criteria.loss, policies.soft_prune(prune_probability), **run)


def emp(
    size: int,
    *,
    beta: float = 5.0,
    distribution: criteria.Distribution | None = None,
    balance: Balance = None,
    **run: Unpack[Run],
) -> Pruner:
    """The highest loss plus beta times the entropy of the prediction: the hard, and those not yet remembered.

    Args:
        beta: weight of the memory term.
    Source: Xiao et al., arXiv:2408.16031, Eq. 8, Algorithm 1. Differs: section 4.1 anneals, by a share not given.
    """
    criterion = criteria.loss_plus_entropy(beta, distribution)
    return _pruner(size, criterion, policies.top_k(balance=_classes(balance, size)), **run)


def emp_reverse(
    size: int,
    *,
    beta: float = 5.0,
    distribution: criteria.Distribution | None = None,
    balance: Balance = None,
    **run: Unpack[Run],
) -> Pruner:
    """The lowest scores of `emp`: the ablation that shows which end of the order matters.

    Args:
        beta: weight of the memory term.
    Source: Xiao et al., arXiv:2408.16031, "EMP-reverse". Differs: as `emp`.
    """
    criterion = criteria.loss_plus_entropy(beta, distribution)
    return _pruner(size, criterion, policies.bottom_k(balance=_classes(balance, size)), **run)


def emp_contrastive(size: int, *, beta: float = 5.0, balance: Balance = None, **run: Unpack[Run]) -> Pruner:
    """The highest NT-Xent minus beta times the distance of a sample's two views: the hard, and those remembered.

    It is called as `pruner.loss(index, losses, (f_i, f_j))`, with one NT-Xent per sample and the features of the views
    before the projection (after it: the paper's ablation).

    Args:
        beta: weight of the memory term.
    Source: Xiao et al., arXiv:2408.16031, Eq. 13, Algorithm 2. Differs: section 4.3 anneals, by a share not given.
    """
    criterion = criteria.loss_minus_distance(beta)
    return _pruner(size, criterion, policies.top_k(balance=_classes(balance, size)), **run)


def memory(
    size: int, *, distribution: criteria.Distribution | None = None, balance: Balance = None, **run: Unpack[Run]
) -> Pruner:
    """The highest entropy of the prediction: EMP's memory term alone, blind to the label and so to a wrong one.

    Source: this project's own; `emp` as beta goes to infinity.
    """
    criterion = criteria.entropy if distribution is None else criteria.entropy_of(distribution)
    return _pruner(size, criterion, policies.top_k(balance=_classes(balance, size)), **run)


def information(size: int, *, snapshots: int = 20, balance: Balance = None, **run: Unpack[Run]) -> Pruner:
    """The highest mutual information of label and weights: where predictions change between epochs.

    Args:
        snapshots: of a sample's predictions that count equally; with more of them, older ones fade.
    Source: this project's own; the score is that of Houlsby et al. 2011, arXiv:1112.5745, Eq. 2 (BALD).
    """
    schedules.check_whole("snapshots", snapshots)
    policy = policies.top_information(balance=_classes(balance, size))
    return _pruner(size, criteria.information(), policy, smoothing=1 / snapshots, **run)


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
        information,
    )
}


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


def _pruner(
    size: int,
    criterion: criteria.Criterion,
    policy: policies.Policy,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int = inspect.Parameter.empty,  # type: ignore[assignment]  # required, but Python's message would name _pruner
    seed: int = 0,
    warmup: int | None = None,
    anneal: float = 0.0,
    smoothing: float = 1.0,
    every: int | None = 1,
    **unknown: Any,
) -> Pruner:
    """Compose a pruner; `warmup` is 1 by default where the policy needs scores, else 0; `every` None selects once."""
    if unknown:
        recipe = sys._getframe(1).f_code.co_name  # the user called that, not this
        known = inspect.signature(METHODS[recipe]).parameters
        raise TypeError(f"{recipe}(): {suggest(next(iter(unknown)), known, what='argument')}")
    if epochs is inspect.Parameter.empty:
        raise TypeError("give epochs, how many epochs the run has: the schedule spans them")
    warmup = int(policy.reads_scores) if warmup is None else warmup
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    every = epochs if every is None else every
    return Pruner(size, criterion, policy, schedule, epochs=epochs, smoothing=smoothing, every=every, seed=seed)


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
            stacklevel=4,
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


_SHARED = {
    "size": "samples in the dataset, N.",
    **dict(re.findall(r"^ {8}(\w+): (.+)$", Run.__doc__ or "", re.MULTILINE)),
    "distribution": 'of the outputs: "softmax", "bernoulli" or "gaussian"; found by default, see `criteria.entropy`.',
    "balance": "(N,) class ids or names; the highest scores are then taken class by class, in equal numbers.",
}


def _show_shared_arguments(recipe: Callable[..., Pruner]) -> None:
    """Put the arguments of `Run` into a recipe's signature and docstring, for `help` and `inspect`."""
    defaults = inspect.signature(_pruner).parameters
    warmup = int(reads(recipe.__name__) != "nothing")
    shared = [
        defaults[name].replace(default=warmup) if name == "warmup" else defaults[name] for name in Run.__annotations__
    ]
    size, *own, _ = inspect.signature(recipe).parameters.values()
    recipe.__signature__ = inspect.Signature([size, *shared, *own], return_annotation="Pruner")  # type: ignore[attr-defined]
    docstrings.complete(recipe, _SHARED)


for _recipe in METHODS.values():
    _show_shared_arguments(_recipe)
