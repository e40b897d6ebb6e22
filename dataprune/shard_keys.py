"""Policies on shards: of each row a whole number that its owner can compute; the highest of all ranks are selected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from . import distributed, policies, radix
from .catalog import Catalog
from .errors import UsageError
from .hashing import Key
from .owned import OwnedBook
from .policies import Policy


class Owner(Protocol):
    """What the keys are computed of: a `ShardedPruner`."""

    policy: Policy
    book: OwnedBook
    catalog: Catalog
    shards: range
    first: int


def check_policy(policy: Policy) -> None:
    """Raise UsageError unless it selects by a key that each rank can compute of its own rows."""
    balanced = isinstance(policy, policies.top_k | policies.proportional) and policy.balance is not None
    if type(policy) not in KEYS or balanced:
        name = "balance" if balanced else f"the policy {type(policy).__name__}"
        raise UsageError(
            f"{name} does not work on a Catalog, where no rank knows all scores: use full, static_random, random, rs2, "
            "elfl, loss, emp, emp_reverse, emp_contrastive, memory or learnability, without balance; or give "
            "len(catalog) in place of the catalog, and every rank keeps all scores"
        )


def _top(owner: Owner, score: Tensor) -> np.ndarray:
    keys = radix.ordered(score.numpy())
    keys[owner.book.score.isinf().numpy()] = 0  # unreadable: last in line
    return keys


def _proportional(owner: Owner, key: Key) -> np.ndarray:
    policy, score = owner.policy, owner.book.score
    assert isinstance(policy, policies.proportional)
    own = policy.unless is not None and policy.unless.by_loss
    by_loss = int(distributed.total(np.array([own], dtype=np.int64))[0]) > 0
    return _top(owner, score if by_loss else policies.weighted(score, key, _mean(owner), owner.first))


def _mean(owner: Owner) -> float:
    """The mean of all scores, to the last bit the same for any number of ranks: shards are summed in their order."""
    catalog, sums = owner.catalog, np.zeros((2, len(owner.catalog.rows)))
    for shard in owner.shards:
        first, stop = (place - owner.first for place in catalog.ids(shard))
        score = owner.book.score[first:stop]
        score = score[score.isfinite()]
        sums[:, shard] = float(score.sum(dtype=torch.float64)), len(score)
    total, count = distributed.total(sums).sum(axis=1)
    return float(total / count) if count else float("nan")


KEYS: dict[type, Callable[[Owner, Key], np.ndarray | None]] = {
    policies.uniform: lambda owner, key: None,
    policies.least_drawn: lambda owner, key: ~owner.book.drawn.numpy(),
    policies.top_k: lambda owner, key: _top(owner, owner.book.score),
    policies.bottom_k: lambda owner, key: _top(owner, -owner.book.score),
    policies.proportional: _proportional,
}
