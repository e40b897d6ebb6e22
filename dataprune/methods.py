"""Named recipes: each composes a criterion, a policy and a schedule into a `Pruner`. `METHODS` is their index.

`fixed`, which replays a coreset, is given a selection in place of a fraction and stands apart. The others, and those of
`contrib`, share the arguments of `recipes.Run`, and raise ValueError where an argument is out of range, or where full
epochs use a budget up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Unpack

from . import checks, contrib, criteria, policies, schedules
from .errors import UsageError, suggest
from .pruner import Pruner
from .recipes import Balance, Run, Size, by_probability, classes, compose, samples, show_shared_arguments
from .selection import Selection

ALPHA = 0.8  # smoothing of both bandits, Raju et al. 2021


def full(size: Size, **run: Unpack[Run]) -> Pruner:
    """All samples in every epoch: the reference; `keep`, `budget`, `warmup` and `anneal` change nothing.

    Source: none.
    """
    for name, value in (("keep", run.get("keep")), ("budget", run.get("budget"))):
        if value is not None:
            schedules.check_fraction(name, value)
    run.update(keep=1.0, budget=None, warmup=0, anneal=0.0)
    return compose(size, criteria.loss, policies.uniform(), **run)


def static_random(size: Size, **run: Unpack[Run]) -> Pruner:
    """One random subset, drawn once.

    Args:
        keep: fraction kept in a pruned epoch, in (0, 1]; or, from 2 on, how many samples.
    Source: "Random" (static) in Table 1 of Xiao et al., arXiv:2408.16031. Differs: nothing.
    """
    keep = run.get("keep")
    if keep is not None:
        run["keep"] = schedules.fraction_of(keep, samples(size))
    return compose(size, criteria.loss, policies.uniform(), every=None, **run)


def random(size: Size, **run: Unpack[Run]) -> Pruner:
    """A new random subset in every epoch.

    Source: "Random*" in Table 1 of Xiao et al., arXiv:2408.16031; Raju et al. 2021, arXiv:2111.12621. Differs: nothing.
    """
    return compose(size, criteria.loss, policies.uniform(), **run)


def rs2(size: Size, **run: Unpack[Run]) -> Pruner:
    """Chunks of one random permutation after another, so that all samples are trained equally often.

    Source: Okanovic et al. 2024 (RS2 without replacement), arXiv:2305.18424. Differs: a chunk that ends a permutation
        is filled up from the next.
    """
    return compose(size, criteria.loss, policies.least_drawn(), **run)


def elfl(size: Size, **run: Unpack[Run]) -> Pruner:
    """Extreme low-frequency learning, every sample equally often: `rs2` under the name it has in the EMP paper.

    Source: Xiao et al., arXiv:2408.16031, section 3.2 and Figure 3. Differs: nothing.
    """
    return rs2(size, **run)


def loss(size: Size, *, balance: Balance = None, **run: Unpack[Run]) -> Pruner:
    """The samples with the highest loss when they were last trained.

    Source: Raju et al. 2021, arXiv:2111.12621; "LFL" in Xiao et al., arXiv:2408.16031. Differs: nothing.
    """
    return compose(size, criteria.loss, policies.top_k(balance=classes(balance, size)), **run)


def epsilon_greedy(
    size: Size,
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
    policy = policies.epsilon_greedy(epsilon, balance=classes(balance, size))
    return compose(size, criteria.loss, policy, smoothing=smoothing, every=every, **run)


def ucb(
    size: Size,
    *,
    c: float = 1.0,
    every: int = 10,
    smoothing: float = ALPHA,
    balance: Balance = None,
    **run: Unpack[Run],
) -> Pruner:
    """The highest smoothed loss plus c times its variance, selected every ten epochs.

    Args:
        c: weight of the variance.
        every: epochs that a selection is kept for.
        smoothing: weight of a new loss against the remembered one, in (0, 1].
    Source: Raju et al. 2021, arXiv:2111.12621, section 4.3. Differs: nothing.
    """
    policy = policies.upper_confidence(c, classes(balance, size))
    return compose(size, criteria.loss, policy, smoothing=smoothing, every=every, **run)


def infobatch(size: Size, *, prune_probability: float | None = None, **run: Unpack[Run]) -> Pruner:
    """Samples below the mean loss are dropped with a probability, the others of them weigh more: an unbiased gradient.

    Args:
        keep: solves the probability anew in each epoch, at most 0.9: where few samples are below the mean, more than
            `keep` is trained, and `stats()` says how much.
        budget: as `keep`, and with the same limit.
        prune_probability: r in [0, 1), the paper's own parameter (0.5 there), in place of keep and budget.
    Source: Qin et al. 2024, arXiv:2303.04947. Differs: a fixed number of survivors in place of a coin for each sample,
        and `keep`, are this project's; anneal=0.125 there.
    """
    run = by_probability(prune_probability, size, run)
    return compose(size, criteria.loss, policies.soft_prune(prune_probability), **run)


def emp(
    size: Size,
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
    return compose(size, criterion, policies.top_k(balance=classes(balance, size)), **run)


def emp_reverse(
    size: Size,
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
    return compose(size, criterion, policies.bottom_k(balance=classes(balance, size)), **run)


def emp_contrastive(size: Size, *, beta: float = 5.0, balance: Balance = None, **run: Unpack[Run]) -> Pruner:
    """The highest NT-Xent minus beta times the distance of a sample's two views: the hard, and those remembered.

    It is called as `pruner.loss(index, losses, (f_i, f_j))`, with one NT-Xent per sample and the features of the views
    before the projection (after it: the paper's ablation).

    Args:
        beta: weight of the memory term.
    Source: Xiao et al., arXiv:2408.16031, Eq. 13, Algorithm 2. Differs: section 4.3 anneals, by a share not given.
    """
    criterion = criteria.loss_minus_distance(beta)
    return compose(size, criterion, policies.top_k(balance=classes(balance, size)), **run)


def memory(
    size: Size, *, distribution: criteria.Distribution | None = None, balance: Balance = None, **run: Unpack[Run]
) -> Pruner:
    """The highest entropy of the prediction: EMP's memory term alone, blind to the label and so to a wrong one.

    Source: this project's own; `emp` as beta goes to infinity.
    """
    criterion = criteria.entropy if distribution is None else criteria.entropy_of(distribution)
    return compose(size, criterion, policies.top_k(balance=classes(balance, size)), **run)


def learnability(
    size: Size, *, distribution: criteria.Distribution | None = None, balance: Balance = None, **run: Unpack[Run]
) -> Pruner:
    """Drawn in proportion to how learnable a label is: the model is unsure of it, and near to predicting it.

    Where outputs carry no distribution, as in a regression, the highest losses.

    Source: this project's own, see `criteria.learnability` and `policies.proportional`.
    """
    criterion = criteria.learnability(distribution)
    policy = policies.proportional(unless=criterion, balance=classes(balance, size))
    return compose(size, criterion, policy, **run)


def information(size: Size, *, snapshots: int = 20, balance: Balance = None, **run: Unpack[Run]) -> Pruner:
    """The highest mutual information of label and weights: where predictions change between epochs.

    Args:
        snapshots: of a sample's predictions that count equally; with more of them, older ones fade.
    Source: this project's own; the score is that of Houlsby et al. 2011, arXiv:1112.5745, Eq. 2 (BALD).
    """
    schedules.check_whole("snapshots", snapshots)
    policy = policies.top_information(balance=classes(balance, size))
    return compose(size, criteria.information(), policy, smoothing=1 / snapshots, **run)


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


def prune(size: int, *, keep: float | None = None, **options: Any) -> Pruner:
    """The default method, `learnability`.

    Args:
        size: samples in the dataset, N.
        keep: fraction kept in a pruned epoch, in (0, 1].
        options: epochs, and the others of `learnability`.
    Source: this project; how it was chosen: docs/findings/default-rule.md.
    """
    return learnability(size, keep=keep, **options)


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
        learnability,
        information,
        *contrib.RECIPES,
    )
}


@functools.cache
def reads(name: str) -> criteria.Reads:
    """What a method reads of a training step: "losses", "probabilities", "classes", "features" or "nothing".

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


for _recipe in METHODS.values():
    show_shared_arguments(_recipe)
