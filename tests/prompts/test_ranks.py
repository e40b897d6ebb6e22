"""Several ranks propose the same, whoever rolled out what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pool import Pool

from dataprune.errors import CheckpointError, PlanError
from dataprune.prompts import Policy, Prompts, greso, mopps

pytestmark = pytest.mark.ddp
SIZE = 40


def rewards(ids: torch.Tensor, seed: int) -> torch.Tensor:
    draws = torch.rand(SIZE, 4, generator=torch.Generator().manual_seed(seed))[ids]
    return (draws < torch.tensor([0.0, 0.5, 1.0])[ids % 3, None]).float()


def trained(rank: int, world_size: int, policy: Policy, split: str) -> Any:
    """Each rank has its own prompts, or its part of the answers to each; the state is taken up half-way."""
    prompts, proposed = Prompts(SIZE, policy, seed=3), []
    for step in range(16):
        ids = prompts.propose(6)
        answers = rewards(ids, step)
        if split == "prompts":
            prompts.record(ids[rank::world_size], answers[rank::world_size])
        elif split == "answers":
            prompts.record(ids, answers[:, rank::world_size])
        elif rank == world_size - 1:
            prompts.record(ids, answers)
        proposed.append(ids.tolist())
        if step == 8:
            prompts.sync()
            state = prompts.state_dict()
            prompts = Prompts(SIZE, policy)
            prompts.load_state_dict(state)
    prompts.sync()
    return proposed, prompts.stats()


@pytest.mark.parametrize("split", ["prompts", "answers", "one rank"])
@pytest.mark.parametrize("policy", [greso(), mopps()], ids=["greso", "mopps"])
def test_ranks_propose_what_one_process_proposes(pool: Pool, policy: Policy, split: str) -> None:
    alone = trained(0, 1, policy, "prompts")
    assert pool.run(trained, policy, split, world_size=2) == [alone, alone]


def different(rank: int, world_size: int, what: str) -> str:
    prompts = Prompts(SIZE, greso(), seed=rank if what == "seed" else 0)
    try:
        if what == "records":
            for step in range(4):
                ids = prompts.propose(30)
                answers = torch.rand(30, 8, generator=torch.Generator().manual_seed(step))
                prompts.record(ids, answers.round())
        prompts.propose(4 + (rank if what == "count" else 0))
    except PlanError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("count", "the ranks propose for different rounds, counts or refills"),
        ("seed", "hold different Prompts"),
        ("records", "all 2 ranks recorded the same rewards of the same prompts"),
    ],
)
def test_ranks_that_differ_are_told(pool: Pool, what: str, message: str) -> None:
    assert all(message in text for text in pool.run(different, what, world_size=2))


def unsynced(rank: int, world_size: int) -> list[Any]:
    """States with rewards that no other rank has."""
    prompts = Prompts(SIZE, greso())
    ids = prompts.propose(4)
    prompts.record(ids[rank::2], rewards(ids, 0)[rank::2])
    own = prompts.state_dict()
    again = Prompts(SIZE, greso())
    again.load_state_dict(own)
    after = again.propose(4).tolist() == prompts.propose(4).tolist()
    try:
        again.load_state_dict(own | {"rank": 1 - rank})
    except CheckpointError as error:
        return [after, again.stats()["rollouts"], str(error)]
    return []


def test_a_state_without_sync_is_of_its_rank(pool: Pool) -> None:
    for rank, (same, rollouts, message) in enumerate(pool.run(unsynced, world_size=2)):
        assert same and rollouts == 16
        assert message.startswith(f"this state has rewards that only rank {1 - rank} of 2 has, and this is rank {rank}")


def on_more(rank: int, world_size: int, state: dict[str, Any]) -> float:
    prompts = Prompts(SIZE, greso())
    prompts.load_state_dict(state)
    prompts.sync()
    return prompts.stats()["rollouts"]


def test_the_state_of_one_process_counts_once_on_two(pool: Pool) -> None:
    prompts = Prompts(SIZE, greso())
    ids = prompts.propose(4)
    prompts.record(ids, rewards(ids, 0))
    assert pool.run(on_more, prompts.state_dict(), world_size=2) == [16, 16]
