"""What all recipes of `methods` and `contrib` share: their arguments, and how a pruner is composed of them."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Required, TypedDict

import numpy as np
import torch
from torch import Tensor

from . import criteria, docstrings, policies, schedules
from .catalog import Catalog
from .errors import suggest
from .pruner import Pruner
from .sharded import ShardedPruner

Balance = Tensor | Sequence[int] | Sequence[str] | None
Size = int | Catalog  # whose shards the ranks own


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


def compose(
    size: Size,
    criterion: criteria.Criterion,
    policy: policies.Policy,
    *,
    keep: float | None = None,
    budget: float | None = None,
    epochs: int = inspect.Parameter.empty,  # type: ignore[assignment]  # required, but Python's message would name this
    seed: int = 0,
    warmup: int | None = None,
    anneal: float = 0.0,
    smoothing: float = 1.0,
    every: int | None = 1,
    **unknown: Any,
) -> Pruner:
    """Compose a recipe's pruner, whose schedule is a window; `warmup` is 1 by default where the policy needs scores.

    Args:
        size: samples in the dataset, N; or a catalog, whose shards ranks own.
        criterion, policy, smoothing: as for `Pruner`.
        keep, budget, epochs, seed, warmup, anneal: as in `Run`.
        every: as for `Pruner`; None selects once.
        unknown: arguments that the recipe does not have: TypeError names it, and the nearest that it has.
    """
    if unknown:
        frame = sys._getframe(1)  # of the recipe: the user called that, not this
        recipe = frame.f_code.co_name
        known = inspect.signature(frame.f_globals[recipe]).parameters
        raise TypeError(f"{recipe}(): {suggest(next(iter(unknown)), known, what='argument')}")
    if epochs is inspect.Parameter.empty:
        raise TypeError("give epochs, how many epochs the run has: the schedule spans them")
    warmup = int(policy.reads_scores) if warmup is None else warmup
    schedule = _schedule(keep, budget, epochs, warmup, anneal)
    every = epochs if every is None else every
    options = {"epochs": epochs, "smoothing": smoothing, "every": every, "seed": seed}
    if isinstance(size, Catalog):
        return ShardedPruner(size, criterion, policy, schedule, **options)
    return Pruner(size, criterion, policy, schedule, **options)


def samples(size: Size) -> int:
    """How many samples a recipe's `size` stands for."""
    return len(size) if isinstance(size, Catalog) else size


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


def by_probability(prune_probability: float | None, size: Size, run: Run) -> Run:
    """Arguments of a run that prunes with a probability in place of `keep` and `budget`, where one is given."""
    if prune_probability is None:
        return run
    if run.get("keep") is not None or run.get("budget") is not None:
        raise ValueError("give prune_probability, or keep, or budget: each of them decides how much is pruned")
    return {**run, "keep": max(1 - prune_probability, 0.5 / samples(size))}


def classes(balance: Balance, size: Size) -> Tensor | None:
    """Class ids (N,) of a recipe's argument `balance`; ValueError unless it has one for each sample."""
    if balance is None:
        return None
    if not isinstance(balance, Tensor) and len(balance) and isinstance(balance[0], str):
        labels = torch.as_tensor(np.unique(np.asarray(balance), return_inverse=True)[1])
    else:
        labels = torch.as_tensor(balance)
    size = samples(size)
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
    "size": "samples in the dataset, N; or a `Catalog`, whose shards ranks own, for most methods: `ShardedPruner`.",
    **dict(re.findall(r"^ {8}(\w+): (.+)$", Run.__doc__ or "", re.MULTILINE)),
    "distribution": 'of the outputs: "softmax", "bernoulli" or "gaussian"; found by default, see `criteria.entropy`.',
    "balance": "(N,) class ids or names; the highest scores are then taken class by class, in equal numbers.",
}


def show_shared_arguments(recipe: Callable[..., Pruner]) -> None:
    """Put the arguments of `Run` into a recipe's signature and docstring, for `help` and `inspect`."""
    defaults = inspect.signature(compose).parameters
    warmup = int(recipe(2, keep=0.5, epochs=4).policy.reads_scores)
    shared = [
        defaults[name].replace(default=warmup) if name == "warmup" else defaults[name] for name in Run.__annotations__
    ]
    size, *own, _ = inspect.signature(recipe).parameters.values()
    recipe.__signature__ = inspect.Signature([size, *shared, *own], return_annotation="Pruner")  # type: ignore[attr-defined]
    docstrings.complete(recipe, _SHARED)
