"""Every policy against a slow reference, and what its random numbers are distributed like."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from prompts.prompts_reference import Greso, Mopps, Order

from dataprune import hashing
from dataprune.errors import UsageError
from dataprune.hashing import Key
from dataprune.prompts import Groups, Policy, Prompts, Walk, filter_after, greso, mopps, uniform


def answers(generator: random.Random, ids: list[int], kinds: int = 3) -> list[list[float]]:
    """Groups of different sizes, many without variance, some failed; a prompt is mostly of the same kind."""
    groups = []
    for i in ids:
        kind = i % kinds if generator.random() < 0.8 else generator.randrange(4)
        size = generator.randrange(1, 6)
        values = {0: [1.0] * size, 1: [0.0] * size, 3: [0.25] * size}
        groups.append(values.get(kind, [generator.choice([0.0, 0.5, 1.0]) for _ in range(size)]))
        if generator.random() < 0.05:
            groups[-1] = []
    return groups


def tensors(groups: list[list[float]]) -> list[torch.Tensor]:
    return [torch.tensor(group) for group in groups]


@pytest.mark.parametrize(("size", "seed"), [(1, 0), (2, 1), (3, 2), (5, 0), (8, 3), (13, 4), (40, 5), (100, 6)])
def test_greso_is_the_reference(size: int, seed: int) -> None:
    generator = random.Random(seed)
    prompts, reference = Prompts(size, greso(), seed=seed), Greso(size, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(80):
            count = generator.randint(1, size if generator.random() < 0.3 else -(-size // 5))
            refill = count % 3 == 0 and 0 < len(reference.order.step) <= size - count
            ids = prompts.propose(count, refill=refill).tolist()
            assert ids == reference.propose(count, refill)
            groups = answers(generator, ids)
            prompts.record(ids, tensors(groups))
            reference.record(ids, groups)
    prompts.sync()
    numbers = prompts.stats()
    assert (numbers["p_easy"], numbers["p_hard"]) == (reference.p["easy"], reference.p["hard"])
    assert (numbers["skipped"], numbers["explored"]) == (reference.skipped, reference.explored)
    visits = [rewards for each in reference.visits.values() for rewards in each]
    kinds = [reference.kind(rewards) for rewards in visits]
    assert numbers["easy"] == kinds.count("easy") / len(kinds)
    assert numbers["hard"] == kinds.count("hard") / len(kinds)
    assert numbers["rollouts"] == sum(map(len, visits))
    assert numbers["rollouts_saved"] == pytest.approx(reference.skipped * sum(map(len, visits)) / len(visits))


@pytest.mark.parametrize("pool", [None, 1, 2, 8])
@pytest.mark.parametrize(("size", "decay"), [(1, 0.5), (5, 1.0), (30, 0.3)])
def test_mopps_is_the_reference(size: int, decay: float, pool: int | None) -> None:
    seed = size
    generator, prior = random.Random(seed), (0.5, 2.0)
    prompts = Prompts(size, mopps(decay=decay, prior=prior, pool=pool), seed=seed)
    reference = Mopps(size, seed, decay, prior, pool)
    for _ in range(20):
        count = generator.randint(1, -(-size // 3))
        ids = prompts.propose(count).tolist()
        assert ids == reference.propose(count)
        groups = answers(generator, ids)
        prompts.record(ids, tensors(groups))
        reference.record(ids, groups)
    state = prompts.state_dict()
    prompts.sync()
    for i, (a, b) in reference.belief.items():
        assert float(prompts.state_dict()["policy.a"][i]) == pytest.approx(a, rel=1e-4)
        assert float(prompts.state_dict()["policy.b"][i]) == pytest.approx(b, rel=1e-4)
    assert len(state["pending_index"]) == count


@pytest.mark.parametrize("policy", [uniform(), filter_after()])
@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_uniform_walks_through_shuffled_epochs(policy: Policy, size: int) -> None:
    prompts, order, generator = Prompts(size, policy, seed=size), Order(size, size), random.Random(size)
    proposed: list[int] = []
    for _ in range(30):
        count = generator.randint(1, size)
        order.step = set()
        ids = prompts.propose(count).tolist()
        for i in ids:
            assert i == order.next()
            order.step.add(i)
        proposed += ids
    times = torch.bincount(torch.tensor(proposed), minlength=size)
    assert int(times.max() - times.min()) <= 2  # an epoch begun within a step puts off what the step has


def test_whole_epochs_have_every_prompt_once() -> None:
    prompts = Prompts(12, uniform())
    for _ in range(3):
        assert sorted(torch.cat([prompts.propose(4) for _ in range(3)]).tolist()) == list(range(12))


def test_a_prompt_without_variance_is_skipped_as_often_as_said() -> None:
    """Over 4000 prompts of each kind and streak, and 20 seeds' worth of epochs."""
    size, policy = 4000, greso()
    for z, kind in ((1, 1.0), (3, 0.0), (9, 1.0)):
        book = policy.book(size) | {"easy": 0.6, "hard": 0.7}
        ids = torch.arange(size)
        for _ in range(z):
            ones = torch.ones(size)
            policy.learn(book, Groups(ids, 4 * ones, 4 * kind * ones, kind * ones, kind * ones))
        turns = torch.stack([policy.passes(book, ids, Key(seed, 7)) for seed in range(20)])
        keep = max((0.6 if kind else 0.7) ** z, 0.01)
        total = turns.numel()
        for passes in (1, 2, 3):  # geometric: the pass that takes a prompt
            wanted = keep * (1 - keep) ** (passes - 1)
            assert abs(float((turns == passes).float().mean()) - wanted) < 4 * (wanted * (1 - wanted) / total) ** 0.5


def test_p_moves_so_that_the_target_is_met_and_not_in_the_first_epoch() -> None:
    prompts = Prompts(40, greso())
    for step in range(8):
        ids = prompts.propose(10)
        expected = 0.5 if step < 5 else 0.5 - 0.01 * (step - 4)
        assert prompts.stats()["p_easy"] == pytest.approx(expected)
        rewards = torch.zeros(10, 4)
        rewards[:, 0] = 1.0
        rewards[0] = 1.0  # one in ten is easy, above 25 % / 3; none is hard
        prompts.record(ids, rewards)
    assert prompts.stats()["p_hard"] == pytest.approx(0.53)


def test_p_has_bounds_and_the_share_meets_its_target() -> None:
    """Half of the prompts are solved, and stay so: the share of easy ones falls from a half to the target."""
    generator = torch.Generator().manual_seed(0)
    solved = torch.arange(2000) % 2 == 0
    prompts = Prompts(2000, greso(target=0.3))
    shares = []
    for _ in range(400):
        ids = prompts.propose(100)
        shares.append(float(solved[ids].float().mean()))
        rewards = (torch.rand(100, 8, generator=generator) < 0.5).float()
        rewards[solved[ids]] = 1.0
        prompts.record(ids, rewards)
        numbers = prompts.stats()
        assert 0.05 <= numbers["p_easy"] <= 0.95 and 0.05 <= numbers["p_hard"] <= 0.95
    assert sum(shares[:20]) / 20 == pytest.approx(0.5, abs=0.03)
    assert sum(shares[-100:]) / 100 == pytest.approx(0.1, abs=0.03)


def test_partial_rewards_that_are_equal_are_without_variance() -> None:
    prompts = Prompts(3, greso())
    prompts.record([0, 1, 2], torch.tensor([[0.5, 0.5], [0.4, 0.4], [0.4, 0.5]]))
    prompts.sync()
    assert prompts.state_dict()["policy.streak"].tolist() == [1, -1, 0]
    prompts.record([0, 1], torch.tensor([[0.0, 0.0], [0.2, 0.2]]))
    prompts.sync()
    assert prompts.state_dict()["policy.streak"].tolist() == [-1, -2, 0]


def test_all_skipped_are_explored_and_the_warning_says_so_once() -> None:
    prompts = Prompts(300, greso())
    with pytest.warns(
        UserWarning, match="going through all 300 prompts left .* of the 30 asked for, all others were skipped"
    ) as caught:
        for _ in range(60):
            prompts.record(prompts.propose(30), torch.ones(30, 4))
    assert len(caught) == 1
    numbers = prompts.stats()
    assert numbers["explored"] > 0 and numbers["no_variance"] == 1.0
    assert numbers["never_seen"] == 0


def test_a_refill_differs_from_what_the_step_has_and_does_not_adapt() -> None:
    prompts = Prompts(20, greso())
    for _ in range(4):
        step = prompts.propose(5)
        prompts.record(step, torch.ones(5, 2))
    before = prompts.stats()["p_easy"]
    step = prompts.propose(5)
    moved = prompts.stats()["p_easy"]
    for _ in range(3):
        prompts.record(step[-5:], torch.ones(5, 2))
        step = torch.cat([step, prompts.propose(5, refill=True)])
        assert prompts.stats()["p_easy"] == moved
    assert len(step.unique()) == 20 and before == 0.5
    with pytest.raises(ValueError, match="count=1 is above the 0 prompts that are not in this step yet"):
        prompts.propose(1, refill=True)


def test_what_a_policy_discards_is_not_to_be_trained_on() -> None:
    rewards = [torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), torch.zeros(0), torch.tensor([0.0])]
    for policy in (filter_after(), greso(discards=True), mopps(discards=True)):
        assert Prompts(4, policy).record([0, 1, 2, 3], rewards).tolist() == [False, True, False, False]
    for policy in (uniform(), greso(), mopps()):
        assert Prompts(4, policy).record([0, 1, 2, 3], rewards).tolist() == [True, True, False, True]


def test_the_posterior_proposes_prompts_near_one_half() -> None:
    """With known rates and a belief of many rollouts, those proposed are the ones in the middle."""
    rates = torch.linspace(0, 1, 101)
    prompts = Prompts(101, mopps(decay=1.0))
    prompts.record(
        range(101), [torch.cat([torch.ones(int(1000 * r)), torch.zeros(1000 - int(1000 * r))]) for r in rates]
    )
    ids = prompts.propose(11)
    assert (rates[ids] - 0.5).abs().max() < 0.15


@pytest.mark.parametrize(
    "wrong",
    [dict(target=0.0), dict(start=1.0), dict(step=0.0), dict(lowest=0.6), dict(highest=0.4), dict(least=1.0)],
    ids=str,
)
def test_greso_refuses_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="all but lowest <= start <= highest are in"):
        greso(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(decay=0.0), "decay must be in"),
        (dict(target=1.0), "target in"),
        (dict(prior=(0.0, 1.0)), "two positive numbers"),
        (dict(pool=0), "pool must be a whole number"),
    ],
    ids=str,
)
def test_mopps_refuses_numbers_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mopps(**wrong)


@pytest.mark.parametrize("policy", [greso, "greso", lambda *_: None])
def test_a_policy_is_an_object(policy: Any) -> None:
    with pytest.raises(UsageError, match=r"policy must be an object such as prompts\.greso\(\)"):
        Prompts(4, policy)


class Longest(Policy):
    """A policy of one's own: the prompts with the highest number first."""

    def __call__(self, book: Any, count: int, walk: Walk, key: Key) -> Any:
        return (~walk.taken).nonzero()[:, 0].flip(0)[:count]


class Wrong(Policy):
    def __call__(self, book: Any, count: int, walk: Walk, key: Key) -> Any:
        return torch.zeros(count, dtype=torch.int64)


def test_a_policy_of_ones_own() -> None:
    prompts = Prompts(5, Longest())
    assert prompts.propose(2).tolist() == [4, 3] and prompts.propose(2, refill=True).tolist() == [2, 1]
    with pytest.raises(ValueError, match="proposed 1 different prompts where 2 were asked for"):
        Prompts(5, Wrong()).propose(2)


def test_draws_do_not_depend_on_the_others() -> None:
    """Hashes of (seed, round, prompt): one alone draws what it draws among all, but for the last bit of a logarithm."""
    ids = torch.arange(50)
    a, b = torch.linspace(0.1, 5, 50), torch.linspace(4, 0.2, 50)
    together = hashing.beta(3, 4, ids, a, b)
    alone = torch.cat([hashing.beta(3, 4, ids[i : i + 1], a[i : i + 1], b[i : i + 1]) for i in range(50)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


def test_streaks_stop_at_the_largest_number() -> None:
    policy, one = greso(), torch.ones(1)
    for kind in (1.0, 0.0):
        book = policy.book(1)
        book["streak"][:] = 32767 if kind else -32767
        policy.learn(book, Groups(torch.tensor([0]), one, kind * one, kind * one, kind * one))
        assert abs(int(book["streak"])) == 32767
        assert policy.passes(book, torch.tensor([0]), Key(0, 0)) > 1
