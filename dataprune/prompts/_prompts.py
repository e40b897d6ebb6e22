"""`Prompts`: proposes what to roll out, and remembers what came of it."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .. import checks, distributed
from ..content import fingerprint
from ..distributed import Part
from ..errors import CheckpointError, PlanError
from ..hashing import Key
from ..schedules import check_whole
from . import _policies, _records
from ._policies import Policy
from ._walk import Walk

SCHEMA = 1  # of state_dict
_OWN = "policy."  # before the names of what a policy remembers
_SHARES = ("groups", "easy", "hard")
_COUNTS = (*_SHARES, "rollouts", "proposed", "failed")
_VISITS = torch.iinfo(torch.int16).max


class Prompts:
    """Chooses the prompts of every rollout from the rewards of the earlier ones.

    Several ranks propose the same; each records what it rolled out itself, whole groups or parts of them, and the
    records are exchanged at the next proposal. What is recorded of a prompt between two proposals is one group. A
    proposal depends on the seed and on what was proposed and recorded before.

    Args:
        size: prompts in the training set, N.
        policy: `greso()`, `mopps()`, `uniform()` or `filter_after()`, or one of your own, see `Policy`.
        seed: of all that is random.
    Attributes:
        size: prompts; `grow` changes it.
        round: proposals so far.
    Raises:
        ValueError: unless size is a whole number of at least 1 and policy an object of a policy.
    """

    def __init__(self, size: int, policy: Policy, *, seed: int = 0):
        check_whole("size", size)
        self.policy = _policies.checked(policy)
        self.size, self.seed, self.round = int(size), int(seed), 0
        self._book = self.policy.book(self.size)
        self._visits = torch.zeros(self.size, dtype=torch.int16)  # groups recorded, up to _VISITS
        self._walk = Walk(self.size, self.seed)
        self._step: list[Tensor] = []  # prompts proposed for the running step
        self._total = dict.fromkeys(_COUNTS, 0)
        self._shares = dict.fromkeys(_SHARES, 0)  # of the running step
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._data: str | None = None  # fingerprint of the training set

    def __repr__(self) -> str:
        return f"Prompts({self.size}, {self.policy}, seed={self.seed})"

    def propose(self, count: int, *, refill: bool = False) -> Int[Tensor, " count"]:
        """The prompts to roll out next. Collective: all ranks call it, with the same arguments.

        Args:
            count: how many.
            refill: more prompts for the step that the last proposal began, as where some were thrown away. They differ
                from those the step has, and policies that adapt once a step do not.
        Returns:
            Different ids in [0, size), the same on every rank, in the order the policy puts them.
        Raises:
            ValueError: if count is no whole number of at least 1, or above the number of prompts (in a refill: above
                those that the step does not have yet).
            PlanError: if ranks differ in what they propose for, or all recorded the same.
        """
        check_whole("count", count)
        left = self.size - sum(map(len, self._step)) * refill
        if count > left:
            which = f"the {left} prompts that are not in this step yet" if refill else f"the {self.size} prompts"
            raise ValueError(f"count={count} is above {which}: each is proposed at most once a step")
        self._exchange([self.round, int(count), int(refill)])
        if not refill:
            self._adapt()
            self._walk.taken[torch.cat([*self._step, torch.zeros(0, dtype=torch.int64)])] = False
            self._step = []
        key = Key(self.seed, self.round)
        ids = self.policy(self._book, int(count), self._walk, key)
        ids = distributed.spread(ids, 0)  # machines differ in the last bit of a logarithm
        if len(ids.unique()) != count:
            raise ValueError(
                f"{self.policy} proposed {len(ids.unique())} different prompts where {count} were asked for"
            )
        self._walk.taken[ids] = True
        self._step.append(ids)
        self._total["proposed"] += len(ids)
        self.round += 1
        return ids

    def record(self, ids: Any, rewards: Any) -> Bool[Tensor, " n"]:
        """Take in the rewards of prompts that this rank rolled out. Never collective.

        Args:
            ids: (n,) prompts, each once; whether they were proposed does not matter.
            rewards: (n, G), or n 1-D tensors where groups differ in size, in [0, 1]; an empty one where the rollout
                failed. Those on a GPU are waited for.
        Returns:
            Which groups to train on: those with a reward, and of a policy that `discards` those whose rewards differ.
        Raises:
            TypeError, IndexError: if ids are no prompts of this set.
            ValueError: if an id is repeated, a reward is NaN or outside [0, 1], or there is not one group for each id.
        """
        index = _records.checked_ids(ids, self.size)
        rows = _records.summed(index, rewards)
        self._pending.append((index, rows))
        return rows[:, 3] > rows[:, 2] if self.policy.discards else rows[:, 0] > 0

    def sync(self) -> None:
        """Exchange what was recorded, so that any rank's `state_dict` holds all. Collective: all ranks must call it."""
        self._exchange([self.round, -1, 0])

    def grow(self, size: int) -> None:
        """Add prompts [self.size, size), as a curriculum does. With several ranks all must call it.

        They have their turn at random places of the running epoch's rest.

        Raises:
            ValueError: if there are fewer than now.
        """
        check_whole("size", size, self.size)
        new = self.policy.book(size - self.size) if size > self.size else {}
        for name, values in new.items():
            if isinstance(values, Tensor):
                self._book[name] = torch.cat([self._book[name], values])
        self._visits = torch.cat([self._visits, torch.zeros(size - self.size, dtype=torch.int16)])
        self._walk.grow(size)
        self.size = int(size)
        self._data = None

    def bind(self, dataset: Any) -> None:
        """Keep the training set's fingerprint in the state, and refuse the state of another set. Trainers call it.

        Raises:
            ValueError: if it has not `size` prompts.
            CheckpointError: if what is remembered is of other prompts.
        """
        if len(dataset) != self.size:
            raise ValueError(
                f"the training set has {len(dataset)} prompts, Prompts was built for {self.size}: build it with "
                "size=len(train_dataset)"
            )
        data = fingerprint(dataset)
        checks.check_data(self._data, data)
        self._data = data

    def stats(self) -> dict[str, float]:
        """Totals since the beginning, as of the last proposal or `sync`.

        Returns:
            `proposed` prompts and their `rollouts`; of the recorded groups the shares `easy` and `hard` without
            variance and their sum `no_variance`, NaN before the first; `failed` groups; `never_seen`, prompts without a
            record; `epoch` of the walk. A policy's own numbers: of `greso` `p_easy`, `p_hard`, `explored`, the prompts
            that were `skipped`, and `rollouts_saved`, which those would have taken at the mean size of a group.
        """
        total, groups = self._total, self._total["groups"]
        shares = {kind: total[kind] / groups if groups else float("nan") for kind in ("easy", "hard")}
        size = total["rollouts"] / groups if groups else 0.0
        return {
            **{name: total[name] for name in ("proposed", "rollouts", "failed")},
            **shares,
            "no_variance": sum(shares.values()),
            "never_seen": int((self._visits == 0).sum()),
            "epoch": max(self._walk.epoch, 0),
            **self.policy.stats(self._book, size),
        }

    # -- resuming ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors and plain values. Never collective.

        With several ranks call `sync()` on all of them first; then any rank's state holds all. Without it a state can
        only be loaded by its own rank.
        """
        pending = _joined(self._pending)
        return {
            "schema": SCHEMA,
            "prompts": self.size,
            "policy": repr(self.policy),
            "data": self._data,
            "seed": self.seed,
            "round": self.round,
            "epoch": self._walk.epoch,
            "rest": self._walk.rest.clone(),
            "step": torch.cat([*self._step, torch.zeros(0, dtype=torch.int64)]),
            "visits": self._visits.clone(),
            "total": dict(self._total),
            "shares": dict(self._shares),
            "rank": distributed.rank(),
            "world_size": distributed.world_size(),
            "pending_index": pending.index,
            "pending_score": pending.score,
            **{
                _OWN + name: value.clone() if isinstance(value, Tensor) else value for name, value in self._book.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off. Never collective; every rank must load.

        Raises:
            CheckpointError: if the state is of another set, policy or schema, damaged, or not of `Prompts`.
        """
        checks.check_schema(state, "Prompts object", SCHEMA, "prompts")
        if state["prompts"] != self.size:
            raise CheckpointError(
                f"this state is of {state['prompts']} prompts, this set has {self.size}: resume with the same training "
                f"set; where it has grown since, build Prompts({state['prompts']}, ...), load, and call "
                f"grow({self.size})"
            )
        if state.get("policy") != repr(self.policy):
            raise CheckpointError(f"this state is of the policy {state.get('policy')}, here it is {self.policy}")
        if self._data is not None:
            checks.check_data(state.get("data"), self._data)
        book = {name.removeprefix(_OWN): value for name, value in state.items() if name.startswith(_OWN)}
        _check_state(state, self.size, book, self.policy.book(self.size))
        owner, here = [state["rank"], state["world_size"]], [distributed.rank(), distributed.world_size()]
        if owner[1] > 1 and owner != here and len(state["pending_index"]):
            raise CheckpointError(
                f"this state has rewards that only rank {owner[0]} of {owner[1]} has, and this is rank {here[0]} of "
                f"{here[1]}: call sync() on all ranks before state_dict()"
            )
        self.seed, self.round, self._data = state["seed"], state["round"], state["data"]
        self._book = {name: value.cpu().clone() if isinstance(value, Tensor) else value for name, value in book.items()}
        self._visits = state["visits"].cpu().clone()
        self._walk = Walk(self.size, self.seed)
        self._walk.epoch, self._walk.rest = state["epoch"], state["rest"].cpu().clone()
        self._step = [state["step"].cpu().clone()]
        self._walk.taken[self._step[0]] = True
        self._total, self._shares = dict(state["total"]), dict(state["shares"])
        self._pending = []
        if state["world_size"] > 1 or distributed.rank() == 0:  # what one process recorded counts once, on any number
            self._pending.append((state["pending_index"].cpu().clone(), state["pending_score"].cpu().clone()))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _exchange(self, place: list[int]) -> None:
        """Take in what all ranks recorded; `place` is where this one is, alike on all."""
        pending = _joined(self._pending)
        header = [] if distributed.world_size() == 1 else [*place, self._checksum()]
        parts = distributed.exchange(header, pending.index, pending.score)
        if len({tuple(part.header) for part in parts}) > 1:
            raise PlanError(
                "the ranks propose for different rounds, counts or refills, or hold different Prompts: call propose, "
                "sync and grow on every rank with the same arguments, and load the same state; (round, count, refill, "
                f"checksum) are {[part.header for part in parts]}"
            )
        groups = _records.merged(parts)
        self._pending = []
        if not len(groups.ids):
            return
        self.policy.learn(self._book, groups)
        known = groups.ids[groups.count > 0]
        self._visits[known] = (self._visits[known].int() + 1).clamp(max=_VISITS).short()
        seen = {"groups": len(known), "easy": int(groups.easy.sum()), "hard": int(groups.hard.sum())}
        self._shares = {name: self._shares[name] + seen[name] for name in _SHARES}
        seen |= {"rollouts": int(groups.count.sum()), "failed": len(groups.ids) - len(known)}
        self._total = {name: value + seen.get(name, 0) for name, value in self._total.items()}

    def _checksum(self) -> int:
        tensors = [value for value in self._book.values() if isinstance(value, Tensor)]
        numbers = [value for value in self._book.values() if not isinstance(value, Tensor)]
        text = f"{self!r} {self._walk.epoch} {self._total} {numbers}"
        return zlib.crc32(text.encode(), checks.checksum(self._visits, self._walk.rest, *tensors))

    def _adapt(self) -> None:
        if groups := self._shares["groups"]:
            shares = {kind: self._shares[kind] / groups for kind in ("easy", "hard")}
            self.policy.adapt(self._book, {**shares, "epoch": self._walk.epoch})
            self._shares = dict.fromkeys(_SHARES, 0)


def _joined(pending: list[tuple[Tensor, Tensor]]) -> Part:
    none = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    index, score = zip(none, *pending, strict=True)
    return Part([], torch.cat(index), torch.cat(score))


def _check_state(state: dict[str, Any], size: int, book: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise CheckpointError unless a state is whole: every entry of its type, shape and range."""

    def positions(name: str) -> bool:
        value = state.get(name)
        return isinstance(value, Tensor) and value.ndim == 1 and checks.in_range(value, size)

    visits, waiting = state.get("visits"), state.get("pending_score")
    right = {
        "round": checks.is_whole(state.get("round"), 0),
        **{name: positions(name) for name in ("rest", "step", "pending_index")},
        "seed": isinstance(state.get("seed"), int),
        "epoch": checks.is_whole(state.get("epoch"), -1),
        "rank": checks.is_whole(state.get("rank"), 0),
        "world_size": checks.is_whole(state.get("world_size"), 1),
        "data": "data" in state and isinstance(state["data"], str | None),
        "visits": isinstance(visits, Tensor) and visits.shape == (size,) and visits.dtype == torch.int16,
        "total": isinstance(state.get("total"), dict) and state["total"].keys() == set(_COUNTS),
        "shares": isinstance(state.get("shares"), dict) and state["shares"].keys() == set(_SHARES),
        "pending_score": isinstance(waiting, Tensor) and waiting.shape == (len(state.get("pending_index", ())), 4),
        "policy": book.keys() == new.keys()
        and all(
            isinstance(book[name], Tensor) and book[name].shape == value.shape and book[name].dtype == value.dtype
            if isinstance(value, Tensor)
            else isinstance(book[name], int | float)
            for name, value in new.items()
        ),
    }
    for name, fits in right.items():
        if not fits:
            raise CheckpointError(f"the saved state is damaged: `{name}` does not fit {size} prompts")
