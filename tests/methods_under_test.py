"""One row for every recipe: what its paper and the design say of it. `test_methods.py` runs each row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import dataprune
from dataprune import Pruner
from dataprune.criteria import Criterion

SIZE = 97  # prime, so that neither shards nor batches come out even
EPOCHS = 24
KEEP = 0.3
CLASSES = 5


class Row(NamedTuple):
    """A recipe, and the defaults that are documented for it."""

    name: str
    warmup: int = 0  # full epochs at the start
    anneal: float = 0.0  # share of full epochs at the end
    every: int = 1
    smoothing: float = 1.0
    defaults: tuple[tuple[str, Any], ...] = ()  # hyper-parameters of its own
    exact: bool = True  # hits `count` in every epoch
    prunes: bool = True  # False for the reference that trains everything
    outputs: bool = False  # whether it reads outputs beside the losses
    classes: bool = False  # whether class ids beside the outputs
    bytes: int = 16  # of state per sample, at most
    forwards: bool = False  # whether it needs the scores of what an epoch leaves out
    batchwise: bool = False  # whether the selection depends on how samples were batched, and so on the ranks
    pair: bool = False  # whether these outputs are a pair, the features of two views
    options: tuple[tuple[str, Any], ...] = ()  # of this row beside keep; makes a second row of the same recipe

    @property
    def label(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options)])

    def build(self, size: int = SIZE, *, epochs: int = EPOCHS, seed: int = 0, **options: Any) -> Pruner:
        """The pruner, at the table's budget unless another is given."""
        options = dict(self.options) | options
        if not {"keep", "budget", "prune_probability"} & set(options):
            options["keep"] = KEEP
        pruner = dataprune.METHODS[self.name](size, epochs=epochs, seed=seed, **options)
        if self.pair:
            pruner.criterion = _halved(pruner.criterion)
        return pruner

    def stop(self, epochs: int = EPOCHS) -> int:
        """First epoch of the annealing."""
        return int(np.ceil(round((1 - self.anneal) * epochs, 9)))

    def pruned(self, epochs: int = EPOCHS) -> list[int]:
        """The epochs that are not full."""
        return list(range(self.warmup, self.stop(epochs))) if self.prunes else []


def _halved(criterion: Criterion) -> Criterion:
    """A criterion of two views, on the logits that every shared test gives: all but the last, and all but the first."""

    def halved(losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        return criterion(losses, (outputs[:, :-1], outputs[:, 1:]), targets)

    return halved


ROWS = [
    Row("full", prunes=False),
    Row("static_random", every=EPOCHS),
    Row("random"),
    Row("rs2"),
    Row("elfl"),
    Row("loss", warmup=1),
    Row("epsilon_greedy", warmup=1, every=10, smoothing=0.8, defaults=(("epsilon", 0.1),)),
    Row("ucb", warmup=1, every=10, smoothing=0.8, defaults=(("c", 1.0),)),
    Row("infobatch", warmup=1, exact=False, defaults=(("prune_probability", None),)),
    Row("infobatch", warmup=1, exact=False, options=(("prune_probability", 0.5),)),
    Row("emp", warmup=1, outputs=True, defaults=(("beta", 5.0),)),
    Row("emp_reverse", warmup=1, outputs=True, defaults=(("beta", 5.0),)),
    Row("emp_contrastive", warmup=1, outputs=True, pair=True, defaults=(("beta", 5.0),)),
    Row("memory", warmup=1, outputs=True),
    Row("learnability", warmup=1, outputs=True),
    Row(
        "information",
        warmup=1,
        smoothing=0.05,
        outputs=True,
        defaults=(("snapshots", 20),),
        bytes=16 + 4 * (CLASSES + 2),
    ),
    Row("orderdp", warmup=1, defaults=(("share", 0.8), ("criterion", "loss"))),
    Row("orderdp", warmup=1, outputs=True, options=(("criterion", "memory"),)),
    Row("seta", warmup=1, defaults=(("clusters", 10), ("window", 0.5), ("partial_anneal", 0.125))),
    Row("rcap", warmup=1, outputs=True, classes=True, defaults=(("beta", 1.0), ("clip", None)), bytes=21),
    Row("metriq", warmup=1, outputs=True, classes=True, bytes=21),
    Row("repb", warmup=1, exact=False, defaults=(("prune_probability", None), ("window", 1)), bytes=25, batchwise=True),
    Row(
        "repb",
        warmup=1,
        exact=False,
        options=(("prune_probability", 0.5), ("window", 3)),
        bytes=25,
        batchwise=True,
    ),
    Row(
        "kakurenbo",
        warmup=1,
        exact=False,
        outputs=True,
        classes=True,
        defaults=(("confidence", 0.7), ("rate", True)),
        bytes=21,
        forwards=True,
    ),
    Row("ies", warmup=1, defaults=(("threshold", None),), bytes=36, forwards=True),
    Row("ies", warmup=1, exact=False, options=(("threshold", 2.5),), bytes=36, forwards=True),
]


def signals(epoch: int, index: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Made-up (losses, logits, targets) that depend on (epoch, sample) alone, not on the batch or the rank."""
    draws = _draws(seed, epoch)[index.numpy()]
    losses = torch.from_numpy(np.exp(draws[:, 0])).float()
    logits = torch.from_numpy(2 * draws[:, 1:]).float()
    return losses, logits, index % CLASSES


@functools.cache
def _draws(seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).standard_normal((256, CLASSES + 1))


class Step(NamedTuple):
    """One batch of a run, in plain numbers."""

    epoch: int
    index: tuple[int, ...]
    loss: float


def run(
    pruner: Pruner,
    *,
    batch_size: int = 8,
    drop_last: bool = True,
    stop: int | None = None,
    batches: Callable[[Pruner, int], Iterator[Tensor]] | None = None,
) -> list[Step]:
    """Train on made-up signals from wherever the pruner is, for `stop` steps or to the end; returns what was trained.

    A batch that is only forwarded is a step too, with a loss of 0.

    The loss in each step carries the weights, so that equal lists mean equal selections, orders and weights.
    """
    steps: list[Step] = []
    for epoch in range(pruner.epoch, pruner.epochs):
        if batches is None:
            running = pruner.batches(epoch, batch_size, drop_last=drop_last)
        else:
            running = batches(pruner, epoch)
        for index in running:
            if len(steps) == stop:
                return steps
            losses, logits, targets = signals(epoch, index)
            loss = pruner.loss(index, losses, logits, targets)
            steps.append(Step(epoch, tuple(index.tolist()), loss.item()))
        for index in pruner.left_out(epoch, batch_size):
            if len(steps) == stop:
                return steps
            pruner.update(index, *signals(epoch, index))
            steps.append(Step(epoch, tuple(index.tolist()), 0.0))
    return steps
