"""Which prompts have their turn: uniform, GRESO, MoPPS, and rolling out first to throw away after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import checks, hashing
from ..errors import UsageError
from ..hashing import Key
from ..schedules import check_whole
from ._records import Groups
from ._walk import Walk

Book = dict[str, Any]  # what a policy remembers: (size,) tensors, and numbers
_PASS, _POSTERIOR = 1 << 35, 1 << 36  # set the streams of random numbers apart


@runtime_checkable
class Policy(Protocol):
    """Proposes prompts from what it remembers of them; one of your own inherits from this.

    Attributes:
        discards: whether prompts without variance are thrown away after the rollout, so that the caller proposes more.
    """

    discards: bool = False

    def book(self, size: int) -> Book:
        """What it remembers of `size` new prompts: tensors of that length by name, and numbers."""
        return {}

    def learn(self, book: Book, groups: Groups) -> None:
        """Take in what was rolled out since the last proposal."""

    def adapt(self, book: Book, shares: Mapping[str, float]) -> None:
        """Take in what a step rolled out, once a step.

        Args:
            book: what it remembers, to be changed.
            shares: of the groups of the last step, "easy" and "hard", see `Groups`; "epoch", in which the walk is.
        """

    def stats(self, book: Book, size: float) -> dict[str, float]:
        """Numbers of its own for `Prompts.stats`; `size` is the mean number of rewards in a group."""
        return {}

    def __call__(self, book: Book, count: int, walk: Walk, key: Key) -> Int[Tensor, " count"]:
        """Choose `count` different prompts that are not `walk.taken`.

        Args:
            book: what it remembers.
            count: prompts asked for; at least as many are not taken.
            walk: the order in which prompts have their turn.
            key: of the seed and the number of the proposal, for random numbers.
        """
        ...


@dataclass(frozen=True)
class uniform(Policy):
    """All prompts in turn, in shuffled epochs: what trainers do without a policy.

    Example:
        >>> from dataprune.prompts import Prompts
        >>> sorted(Prompts(4, uniform()).propose(4).tolist())
        [0, 1, 2, 3]
    """

    def __call__(self, book: Book, count: int, walk: Walk, key: Key) -> Int[Tensor, " count"]:
        return walk.next(count)


@dataclass(frozen=True)
class filter_after(uniform):
    """All prompts in turn; those without variance are thrown away after their rollout, and more are proposed.

    It spends the rollouts that `greso` saves, and is what that is compared with. `Prompts.record` says which groups to
    train on.

    Source: Yu et al. 2025 (DAPO), arXiv:2503.14476, section 3.2, dynamic sampling. Differs: nothing.
    """

    discards = True


@dataclass(frozen=True)
class greso(Policy):
    """All prompts in turn, but one whose last z visits were without variance is skipped, more likely the larger z.

    It is skipped with probability 1 − max(p^z, least). Easy (all rewards equal, at least one half) and hard prompts
    have a p each. After each step p falls by `step` where the share of its kind among the groups of the step is at
    least its target, else it rises; not before the second epoch, as nothing can be skipped in the first. Two thirds of
    `target` are for hard prompts, which are more likely to change.

    Where this epoch's rest and a whole further epoch leave fewer than asked for, the others are those of the skipped
    that still further epochs would have taken first, and a warning says so.

    Args:
        target: share of groups without variance, in (0, 1).
        start: p before the first step.
        step: how much p moves.
        lowest, highest: bounds of p.
        least: the lowest probability of not being skipped.
        discards: throw away groups without variance after the rollout and propose more, as the paper's experiments do.
    Raises:
        ValueError: for an argument out of range.
    Source: Zheng et al. 2025, arXiv:2506.02177, section 4, and the published code. Differs: groups are without variance
        where all rewards are equal, as in the text; the code compares their mean with 0.98 and 0.11.
    """

    target: float = 0.25
    start: float = 0.5
    step: float = 0.01
    lowest: float = 0.05
    highest: float = 0.95
    least: float = 0.01
    discards: bool = False

    def __post_init__(self) -> None:
        within = (self.target, self.start, self.step, self.least)
        if not all(0 < value < 1 for value in within) or not 0 < self.lowest <= self.start <= self.highest < 1:
            raise ValueError(f"all but lowest <= start <= highest are in (0, 1), and those too; got {self}")

    def book(self, size: int) -> Book:
        numbers = {"easy": self.start, "hard": self.start, "skipped": 0, "explored": 0}
        return {"streak": torch.zeros(size, dtype=torch.int16), **numbers}

    def learn(self, book: Book, groups: Groups) -> None:
        """The streak counts visits without variance, above zero easy ones, below zero hard ones."""
        streak = book["streak"][groups.ids].int()
        after = torch.zeros_like(streak)
        after = torch.where(groups.easy, streak.clamp(min=0) + 1, after)
        after = torch.where(groups.hard, streak.clamp(max=0) - 1, after)
        after = torch.where(groups.count > 0, after, streak)  # a failed rollout tells nothing
        bound = torch.iinfo(torch.int16).max
        book["streak"][groups.ids] = after.clamp(-bound, bound).short()

    def adapt(self, book: Book, shares: Mapping[str, float]) -> None:
        if shares["epoch"] < 1:
            return
        for kind, target in (("easy", self.target / 3), ("hard", self.target * 2 / 3)):
            if shares[kind] >= target:
                book[kind] = max(book[kind] - self.step, self.lowest)
            else:
                book[kind] = min(book[kind] + self.step, self.highest)

    def stats(self, book: Book, size: float) -> dict[str, float]:
        numbers = {"p_easy": book["easy"], "p_hard": book["hard"]}
        numbers |= {name: book[name] for name in ("skipped", "explored")}
        return {**numbers, "rollouts_saved": book["skipped"] * size}

    def __call__(self, book: Book, count: int, walk: Walk, key: Key) -> Int[Tensor, " count"]:
        chosen, skipped = [], []
        missing, unseen, most = count, len(walk.rest) + walk.size, count
        while missing and unseen:
            ids = walk.ahead(min(most, unseen))
            turn = self.passes(book, ids, Key(key.seed, walk.epoch))
            now = (turn == 1).nonzero()[:, 0][:missing]
            seen = int(now[-1]) + 1 if len(now) == missing else len(ids)
            later = (turn[:seen] > 1).nonzero()[:, 0]
            skipped.append(torch.stack([ids[later], turn[later].long()]))
            chosen.append(ids[now])
            walk.taken[ids[now]] = True
            walk.advance(seen)
            missing, unseen, most = missing - len(now), unseen - seen, 2 * most
        book["skipped"] += sum(turns.shape[1] for turns in skipped) - missing
        if missing:
            chosen.append(self._explored(torch.cat(skipped, dim=1), missing, walk))
            if not book["explored"]:
                checks.warn(
                    f"going through all {walk.size} prompts left {count - missing} of the {count} asked for, all "
                    "others were skipped: the last answers to them were all right or all wrong. The rest is chosen "
                    "from the skipped (exploring). Where this goes on there is little to learn from these prompts: add "
                    "others, ask for fewer, or stop"
                )
            book["explored"] += missing
        return torch.cat(chosen)

    def passes(self, book: Book, ids: Int[Tensor, " k"], key: Key) -> Float[Tensor, " k"]:
        """Which pass over the prompts takes each, if nothing else is learned: 1 where it is not skipped now."""
        streak = book["streak"][ids].double()
        p = torch.where(streak > 0, book["easy"], book["hard"]).double()
        skip = 1 - (p ** streak.abs()).clamp(min=self.least)
        number = hashing.uniform(key.seed + _PASS, key.epoch, ids).double().clamp(min=2.0**-25)
        # the first n with number >= skip ** n: it is above n with probability skip ** n
        return torch.where(number >= skip, 1.0, (number.log() / skip.log()).ceil())

    def _explored(self, skipped: Int[Tensor, "2 k"], count: int, walk: Walk) -> Int[Tensor, " count"]:
        ids, turn = skipped.flip(1)  # where a prompt was skipped in two epochs, the later counts
        ids, turn = ids[~walk.taken[ids]], turn[~walk.taken[ids]]
        first = torch.ones(len(ids), dtype=torch.bool)
        order = ids.argsort(stable=True)
        first[order[1:]] = ids[order[1:]] != ids[order[:-1]]
        ids, turn = ids[first].flip(0), turn[first].flip(0)
        return ids[turn.argsort(stable=True)[:count]]


@dataclass(frozen=True)
class mopps(Policy):
    """The prompts whose success rate, drawn from what is believed of it, is nearest to one half.

    Of each prompt a Beta(a, b) is remembered. n rewards of sum s make it a ← decay · a + (1 − decay) · a₀ + s and
    b ← decay · b + (1 − decay) · b₀ + n − s; the others stay. A proposal draws one rate r ~ Beta(a, b) for each prompt
    and takes those with the least (r − target)².

    Args:
        decay: how much of the belief is kept at a prompt's next visit, in (0, 1]: success rates change as the model
            learns. The paper's scripts have 0.5, and 1 for MATH.
        prior: a₀ and b₀; it decides until most prompts were rolled out.
        target: success rate that teaches most.
        pool: compare only the next pool · count prompts, in shuffled epochs, in place of all: the work for a proposal
            is then independent of the size. The paper's scripts have 8, and 16 for MATH.
        discards: throw away groups without variance after the rollout and propose more.
    Raises:
        ValueError: for an argument out of range.
    Source: Qu et al. 2025, arXiv:2507.04632, section 3, and the published code. Differs: the draws of all prompts are
        compared unless `pool` is given; n is the number of rewards, where the code has `... if n > 1 else 8` around the
        whole sum.
    """

    decay: float = 0.5
    prior: tuple[float, float] = (1.0, 1.0)
    target: float = 0.5
    pool: int | None = None
    discards: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1 or not 0 < self.target < 1:
            raise ValueError(f"decay must be in (0, 1] and target in (0, 1), got {self.decay} and {self.target}")
        if len(self.prior) != 2 or not all(0 < value < math.inf for value in self.prior):
            raise ValueError(f"prior must be two positive numbers, a and b of a Beta distribution, got {self.prior}")
        if self.pool is not None:
            check_whole("pool", self.pool)

    def book(self, size: int) -> Book:
        return {"a": torch.full((size,), self.prior[0]), "b": torch.full((size,), self.prior[1])}

    def learn(self, book: Book, groups: Groups) -> None:
        groups = Groups(*(values[groups.count > 0] for values in groups))
        for name, prior, new in zip("ab", self.prior, (groups.total, groups.count - groups.total), strict=True):
            book[name][groups.ids] = self.decay * book[name][groups.ids] + (1 - self.decay) * prior + new

    def __call__(self, book: Book, count: int, walk: Walk, key: Key) -> Int[Tensor, " count"]:
        ids = (~walk.taken).nonzero()[:, 0]
        if self.pool is not None and self.pool * count < len(ids):
            ids = walk.next(self.pool * count)
            walk.taken[ids] = False
        rate = hashing.beta(key.seed + _POSTERIOR, key.epoch, ids, book["a"][ids], book["b"][ids])
        return ids[(rate - self.target).square().argsort(stable=True)[:count]]


def checked(policy: Any) -> Policy:
    """Return a policy; raise where it is a class or a name."""
    if isinstance(policy, type) or not isinstance(policy, Policy):
        given = policy.__name__ + ", a class" if isinstance(policy, type) else repr(policy)
        raise UsageError(f"policy must be an object such as prompts.greso() or prompts.mopps(decay=1.0), got {given}")
    return policy
