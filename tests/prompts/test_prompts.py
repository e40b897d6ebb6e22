"""Records, bad input, states, and sets that grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dataprune.errors import CheckpointError
from dataprune.prompts import Policy, Prompts, filter_after, greso, mopps, uniform

POLICIES = [uniform(), filter_after(), greso(), greso(discards=True), mopps(), mopps(pool=2)]


def rewards(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """Mostly without variance, as a third of the prompts is too easy and a third too hard."""
    draws = torch.rand(len(ids), 4, generator=torch.Generator().manual_seed(seed))
    return (draws < torch.tensor([0.0, 0.5, 1.0])[ids % 3, None]).float()


def run(prompts: Prompts, rounds: range) -> list[list[int]]:
    proposed = []
    for step in rounds:
        ids = prompts.propose(6, refill=step % 4 == 3)
        prompts.record(ids, rewards(ids, step))
        proposed.append(ids.tolist())
    return proposed


@pytest.mark.filterwarnings("ignore:going through all")
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_resumed_run_proposes_the_same(policy: Policy, tmp_path: Any) -> None:
    for at in (0, 1, 7, 15):
        whole, first = Prompts(40, policy, seed=5), Prompts(40, policy, seed=5)
        wanted = run(whole, range(30))
        assert run(first, range(at)) == wanted[:at]
        torch.save(first.state_dict(), tmp_path / "state")
        again = Prompts(40, policy)
        again.load_state_dict(torch.load(tmp_path / "state"))
        assert run(again, range(at, 30)) == wanted[at:]
        assert again.stats() == whole.stats()
        for name, value in again.state_dict().items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda one, other: one == other
            assert same(value, whole.state_dict()[name]), name


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_state_has_at_most_16_bytes_a_prompt(policy: Policy) -> None:
    prompts = Prompts(10_000, policy)
    run(prompts, range(5))
    tensors = [value for value in prompts.state_dict().values() if isinstance(value, torch.Tensor)]
    held = [prompts._visits, prompts._walk.rest, prompts._walk.taken, *prompts._book.values()]
    for part in (tensors, [value for value in held if isinstance(value, torch.Tensor)]):
        assert sum(value.numel() * value.element_size() for value in part) <= 16 * 10_000


def test_seeds_differ_and_global_randomness_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    proposals = [run(Prompts(500, mopps(), seed=seed), range(3)) for seed in (0, 0, 1)]
    assert proposals[0] == proposals[1] != proposals[2]
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("form", ["tensor", "array", "list", "unequal", "whole numbers"])
def test_rewards_in_any_form(form: str) -> None:
    values: Any = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    given = {"tensor": values, "array": values.numpy(), "list": values.tolist(), "whole numbers": (values > 0.6).long()}
    prompts = Prompts(5, mopps(decay=1.0))
    ids: Any = np.array([3, 1]) if form == "array" else [3, 1]
    prompts.record(ids, given.get(form, [torch.tensor([0.0, 1.0, 1.0]), torch.tensor([])]))
    prompts.sync()
    numbers = prompts.stats()
    if form == "unequal":
        assert (numbers["rollouts"], numbers["failed"], numbers["no_variance"], numbers["never_seen"]) == (3, 1, 0, 4)
        assert prompts.state_dict()["policy.a"].tolist() == [1, 1, 1, 3, 1]
    else:
        assert (numbers["rollouts"], numbers["failed"], numbers["no_variance"], numbers["never_seen"]) == (4, 0, 0.5, 3)


def test_parts_of_a_group_are_one_group() -> None:
    """Micro-batches, or ranks, may hold parts of the answers to a prompt."""
    prompts = Prompts(3, greso())
    for part in ([0.0, 0.0], [1.0, 1.0]):
        prompts.record([1], [part])
    prompts.record([0], [[1.0]])
    prompts.sync()
    assert prompts.state_dict()["policy.streak"].tolist() == [1, 0, 0]
    numbers = prompts.stats()
    assert (numbers["rollouts"], numbers["easy"], numbers["never_seen"]) == (5, 0.5, 1)


def test_a_failed_rollout_tells_nothing() -> None:
    for policy in (greso(), mopps()):
        prompts = Prompts(2, policy)
        prompts.record([0, 1], torch.ones(2, 3))
        prompts.sync()
        before = prompts.state_dict()
        prompts.record([0, 1], [torch.zeros(0), torch.zeros(0)])
        prompts.sync()
        after = prompts.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before if isinstance(before[name], torch.Tensor))
        assert prompts.stats()["failed"] == 2


def test_stats_before_the_first_record() -> None:
    numbers = Prompts(7, greso()).stats()
    assert numbers["never_seen"] == 7 and numbers["rollouts"] == numbers["rollouts_saved"] == 0
    assert np.isnan(numbers["no_variance"])


BAD = [
    ([0, 1], [[1.0, -1.0], [0.0, 1.0]], ValueError, r"between -1 and 1 .* one of prompt 0\): record \(reward - lowest"),
    ([0, 1], [[0.0, 1.0], [3.0, 1.0]], ValueError, "between 0 and 3 .* one of prompt 1"),
    ([4], [[float("nan"), 1.0]], ValueError, "rewards of prompt 4 are NaN: leave out rollouts"),
    ([4], [[float("inf"), 1.0]], ValueError, "between 1 and inf"),
    ([2, 3, 2], [[1.0], [1.0], [1.0]], ValueError, "prompt 2 is 2 times in one record"),
    ([2, 3], [[1.0, 1.0]], ValueError, "2 prompts have 1 groups of rewards"),
    ([2, 3], [1.0, 0.0], ValueError, r"rewards of prompt 2 have the shape \(\)"),
    ([-1], [[1.0]], IndexError, "ids hold -1 to -1, but there are prompts 0 to 9"),
    ([10], [[1.0]], IndexError, r"for a set that grows call grow\(size\) first"),
    ([0.5], [[1.0]], TypeError, "ids must be .* whole numbers, got torch.float32"),
    ([[1]], [[1.0]], TypeError, r"whole numbers, got torch.int64 \(1, 1\)"),
]


@pytest.mark.parametrize(("ids", "given", "error", "message"), BAD, ids=[str(case[3]) for case in BAD])
def test_a_bad_record_is_refused_and_leaves_nothing(ids: Any, given: Any, error: Any, message: str) -> None:
    prompts = Prompts(10, greso())
    with pytest.raises(error, match=message):
        prompts.record(ids, given)
    prompts.sync()
    assert prompts.stats()["rollouts"] == 0


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", True])
def test_a_count_is_a_whole_number(count: Any) -> None:
    with pytest.raises(ValueError, match="count must be a whole number of at least 1"):
        Prompts(10, uniform()).propose(count)


def test_a_count_above_the_size_is_refused() -> None:
    prompts = Prompts(10, mopps())
    assert sorted(prompts.propose(10).tolist()) == list(range(10))
    with pytest.raises(ValueError, match="count=11 is above the 10 prompts: each is proposed at most once a step"):
        prompts.propose(11)
    with pytest.raises(ValueError, match="size must be a whole number of at least 1, got a list: give its length"):
        Prompts([1, 2], mopps())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:going through all")
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_set_that_grows(policy: Policy) -> None:
    """What is known stays, and the new prompts have their turn in the running epoch."""
    prompts = Prompts(12, policy, seed=1)
    run(prompts, range(3))
    before = prompts.state_dict()
    prompts.grow(18)
    after = prompts.state_dict()
    assert prompts.size == 18 and torch.equal(after["visits"][:12], before["visits"])
    for name, value in before.items():
        if name.startswith("policy.") and isinstance(value, torch.Tensor):
            assert torch.equal(after[name][:12], value)
    seen = {i for ids in run(prompts, range(4, 12)) for i in ids}
    assert seen >= set(range(12, 18)) or isinstance(policy, mopps)  # which draws, and has no turns
    again = Prompts(18, policy)
    again.load_state_dict(prompts.state_dict())
    assert run(again, range(12, 16)) == run(prompts, range(12, 16))
    with pytest.raises(ValueError, match="size must be a whole number of at least 18"):
        prompts.grow(12)
    prompts.grow(18)


def test_grown_before_the_first_proposal() -> None:
    prompts = Prompts(2, uniform())
    prompts.grow(4)
    assert sorted(prompts.propose(4).tolist()) == [0, 1, 2, 3]


def test_the_state_of_another_set_is_refused() -> None:
    state = Prompts(10, greso()).state_dict()
    with pytest.raises(CheckpointError, match=r"of 10 prompts, this set has 20: .* build Prompts\(10, .* grow\(20\)"):
        Prompts(20, greso()).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"of the policy greso\(target=0.25.*, here it is mopps"):
        Prompts(10, mopps()).load_state_dict(state)
    with pytest.raises(CheckpointError, match="not the state of a Prompts object"):
        Prompts(10, greso()).load_state_dict({"size": 10})
    with pytest.raises(CheckpointError, match="has schema 0"):
        Prompts(10, greso()).load_state_dict(state | {"schema": 0})


def test_a_set_is_known_by_its_prompts() -> None:
    first, second = [[{"prompt": f"{kind} {i}"} for i in range(10)] for kind in ("one", "other")]
    prompts = Prompts(10, greso())
    prompts.bind(first)
    prompts.bind(first)
    with pytest.raises(CheckpointError, match="the scores are of other data"):
        prompts.bind(second)
    with pytest.raises(ValueError, match="the training set has 9 prompts, Prompts was built for 10"):
        prompts.bind(first[1:])
    other = Prompts(10, greso())
    other.bind(second)
    with pytest.raises(CheckpointError, match="the scores are of other data"):
        other.load_state_dict(prompts.state_dict())


@pytest.mark.parametrize(
    "name",
    ["seed", "round", "epoch", "rest", "step", "visits", "total", "shares", "pending_index", "policy.streak", "rank"],
)
def test_a_damaged_state_is_refused(name: str) -> None:
    prompts = Prompts(10, greso())
    run(prompts, range(3))
    for wrong in ({}, {name: "x"}, {name: torch.tensor([[10]])}):
        state = {key: value for key, value in prompts.state_dict().items() if key != name} | wrong
        with pytest.raises(CheckpointError, match="the saved state is damaged"):
            Prompts(10, greso()).load_state_dict(state)


def test_it_says_what_it_is() -> None:
    assert repr(Prompts(3, filter_after(), seed=2)) == "Prompts(3, filter_after(), seed=2)"
