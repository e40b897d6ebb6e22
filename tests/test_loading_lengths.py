"""Batches of samples of similar length, in pruned epochs: less padding, the same samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_loader import BATCH, SIZE, check_resuming, loader, positions, pruner
from torch import Tensor

from dataprune import PruneSampler, prune_loader
from dataprune.loading import grouped

LENGTHS = torch.randint(1, 100, (SIZE,), generator=torch.Generator().manual_seed(3))


def by_hand(order: list[int], lengths: list[int], batch: int) -> list[int]:
    """The same in plain Python."""
    whole = len(order) // batch * batch
    size = batch * min(max(whole // (4 * batch), 1), 50)
    result: list[int] = []
    for start in range(0, whole, size):
        result += sorted(order[start : min(start + size, whole)], key=lambda i: -lengths[i])  # equal ones stay in order
    result += order[whole:]
    first = max(range(len(order)), key=lambda at: lengths[result[at]])
    result[0], result[first] = result[first], result[0]
    return result


@given(st.lists(st.integers(0, 20), min_size=1, max_size=90, unique=False), st.integers(1, 9), st.randoms())
def test_the_order_is_that_of_a_plain_reference(lengths: list[int], batch: int, random: Any) -> None:
    order = random.sample(range(len(lengths)), random.randint(1, len(lengths)))
    result = grouped(torch.tensor(order), torch.tensor(lengths), batch).tolist()
    assert result == by_hand(order, lengths, batch)
    assert sorted(result) == sorted(order) and lengths[result[0]] == max(lengths[i] for i in order)


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def padding(batches: list[list[int]], lengths: Tensor) -> float:
    """Share of the cells of padded batches that hold no token."""
    cells = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / cells


def test_a_pruned_epoch_has_less_padding_and_the_same_samples() -> None:
    size, lengths = 4000, torch.randint(1, 400, (4000,), generator=torch.Generator().manual_seed(0))
    runs = {}
    for name, given_lengths in (("plain", None), ("grouped", lengths)):
        p = pruner("rs2", size=size, keep=0.5)
        sampler = PruneSampler(p, batch_size=16, lengths=given_lengths)
        runs[name] = [positions_of(sampler, epoch, 16) for epoch in range(2)]
    for plain, similar in zip(runs["plain"], runs["grouped"], strict=True):
        assert sorted(flat(plain)) == sorted(flat(similar)) and len(flat(plain)) == size // 2
        assert padding(plain, lengths) > 0.4 and padding(similar, lengths) < 0.05
    assert runs["grouped"][0] != runs["grouped"][1]


def positions_of(sampler: PruneSampler, epoch: int, batch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    order = list(sampler)
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def test_order_follows_seed_and_epoch() -> None:
    def run(seed: int) -> list[list[list[int]]]:
        p = pruner("rs2", seed=seed)
        batches = prune_loader(loader(), p, lengths=LENGTHS)
        return [positions(batches) for _ in range(3)]

    assert run(0) == run(0) != run(1)
    assert [sum(map(len, epoch)) for epoch in run(0)] == [22, 22, 22]


def test_ranks_share_the_batches_of_one_order() -> None:
    ranks = []
    for rank in range(2):
        sampler = PruneSampler(pruner("rs2", keep=0.75), rank=rank, world_size=2, batch_size=BATCH, lengths=LENGTHS)
        ranks.append(list(sampler))
    assert len(ranks[0]) == len(ranks[1]) == 16 and len({*ranks[0], *ranks[1]}) == 32
    lengths = [LENGTHS[rank] for rank in ranks]
    for step in range(4):  # what the ranks train at once is of similar length, in descending order
        first, second = (rank[step * BATCH : (step + 1) * BATCH] for rank in lengths)
        assert (first[1:] >= second[1:]).all()
    assert max(int(rank.max()) for rank in lengths) == int(lengths[0][0])


def test_a_dropped_batch_is_drawn_at_random() -> None:
    """Sorted to the end it would always be of the shortest."""
    lengths = torch.arange(SIZE)
    dropped = []
    for seed in range(60):
        batches = prune_loader(
            loader(drop_last=True, batch_size=20), pruner("full", epochs=1, seed=seed), lengths=lengths
        )
        kept = set(flat(positions(batches)))
        dropped += [i for i in range(SIZE) if i not in kept]
    assert len(dropped) == 60 * 3 and abs(sum(dropped) / len(dropped) - 20.5) < 4  # 42, the longest, is never dropped


@pytest.mark.parametrize("drop_last", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_resuming_after_any_batch(drop_last: bool) -> None:
    def build() -> Any:
        p = pruner("loss", epochs=4, seed=5)
        return p, prune_loader(loader(drop_last=drop_last), p, lengths=LENGTHS.tolist())

    check_resuming(build)


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="42 lengths for 43 samples"):
        prune_loader(loader(), pruner(), lengths=LENGTHS[1:])
    with pytest.raises(ValueError, match="shuffle, and give PruneSampler batch_size="):
        prune_loader(loader(shuffle=False), pruner(), lengths=LENGTHS)
    with pytest.raises(ValueError, match="batch_size="):
        PruneSampler(pruner(), lengths=LENGTHS)
