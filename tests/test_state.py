"""States of a pruner: whole, copied, and refused where they are damaged or of another run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods_under_test import signals
from small_pruner import SIZE, pruner, record, reloaded, train
from torch import Tensor

import dataprune
from dataprune import CheckpointError, PruneSampler

# -- resuming --------------------------------------------------------------------------------------------------------


def test_a_state_holds_tensors_and_plain_values() -> None:
    p = pruner()
    train(p, 0)
    p.select(1)
    state = p.state_dict()
    assert "schema" in state
    assert all(value is None or isinstance(value, (Tensor, int, float, str)) for value in state.values())
    again = reloaded(state)
    assert again.keys() == state.keys()


def test_a_state_is_a_copy() -> None:
    p = pruner()
    train(p, 0)
    state = p.state_dict()
    before = reloaded(state)
    p.select(1)
    train(p, 1)
    p.select(2)
    for name, value in state.items():
        assert (
            torch.equal(value.nan_to_num(-9), before[name].nan_to_num(-9))
            if isinstance(value, Tensor)
            else value == before[name]
        )


def test_loading_does_not_tie_the_pruner_to_the_state() -> None:
    p = pruner()
    train(p, 0)
    state = p.state_dict()
    before = reloaded(state)
    q = pruner()
    q.load_state_dict(state)
    for epoch in (1, 2):
        train(q, epoch)
    q.select(3)
    for name, value in state.items():
        assert not isinstance(value, Tensor) or torch.equal(value.nan_to_num(-9), before[name].nan_to_num(-9)), name


def test_selection_and_stats_come_back() -> None:
    p = dataprune.infobatch(SIZE, keep=0.7, epochs=16)
    for epoch in range(3):
        train(p, epoch)
    q = dataprune.infobatch(SIZE, keep=0.7, epochs=16)
    q.load_state_dict(reloaded(p.state_dict()))
    assert q.stats() == p.stats()
    assert torch.equal(q.select(2).index, p.select(2).index)
    assert torch.equal(q.select(2).weight, p.select(2).weight)
    assert q.selected == 2
    assert q.epoch == 3


def test_an_epoch_goes_on_at_the_batch_where_it_was() -> None:
    """In the pruner's own batches and in a sampler; a state is saved twice in the epoch."""
    order = pruner().order(0, 0, 1).tolist()
    p = pruner()
    for begin in (0, 8, 24):
        sampler = PruneSampler(p, batch_size=8)
        assert len(sampler) == SIZE - begin and list(sampler) == order[begin:]
        left = [index.tolist() for index in p.batches(0, 8, drop_last=False)]
        assert left == [order[at : at + 8] for at in range(begin, SIZE, 8)]
        for index in left[: 1 + begin // 8]:
            p.update(torch.tensor(index), *signals(0, torch.tensor(index)))
        state, p = p.state_dict(), pruner()
        p.load_state_dict(reloaded(state))


def test_a_resumed_loop_that_leaves_out_its_first_batch_is_warned() -> None:
    p, q = pruner(), pruner()
    for index in list(p.batches(0, 8))[:2]:
        p.update(index, torch.ones(8))
    q.load_state_dict(p.state_dict())
    rest = list(PruneSampler(q, batch_size=8))
    with pytest.warns(UserWarning, match="skip_first_batches"):
        record(q, rest[8:16], [1.0] * 8)


def test_an_iterator_that_goes_on_may_leave_out_batches() -> None:
    """As a loader with workers does that repeats what it had fetched since its last snapshot."""
    q = pruner()
    running = iter(PruneSampler(q))
    running.load_state_dict({"epoch": 0, "position": 8})
    rest = list(running)
    assert rest == q.order(0, 0, 1).tolist()[8:]
    record(q, rest[8:16], [1.0] * 8)  # warns of nothing


def a_state() -> dict:
    p = pruner()
    train(p, 0)
    p.select(1)
    return reloaded(p.state_dict())


@pytest.mark.parametrize("state", [{}, {"schema": 1}, {"weights": torch.zeros(3)}, None, [], "state", 7])
def test_invalid_states_are_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="state"):
        pruner().load_state_dict(state)


def test_states_of_other_runs_are_refused() -> None:
    state = a_state()
    with pytest.raises(CheckpointError, match=r"schema 999"):
        pruner().load_state_dict(state | {"schema": 999})
    with pytest.raises(CheckpointError, match=r"50.*51"):
        pruner(51).load_state_dict(state)
    for other in (pruner(keep=0.5), pruner(epochs=5), pruner(smoothing=0.5), dataprune.ucb(SIZE, keep=0.4, epochs=6)):
        with pytest.raises(CheckpointError, match="other arguments"):
            other.load_state_dict(state)


def damages() -> list[tuple[str, str]]:
    """Every entry of a state, left out, cut short or replaced."""
    damages = []
    for name, value in a_state().items():
        damages.append((name, "missing"))
        if name not in ("seed", "data"):  # which may be anything
            damages.append((name, "text"))
        if isinstance(value, Tensor) and len(value):
            damages.append((name, "short"))
    return damages


@pytest.mark.parametrize(("name", "damage"), damages())
def test_a_corrupt_state_is_refused_and_changes_nothing(name: str, damage: str) -> None:
    state = a_state()
    if damage == "missing":
        del state[name]
    else:
        state[name] = state[name][:-3] if damage == "short" else "text"
    p = pruner()
    train(p, 0)
    before = reloaded(p.state_dict())
    with pytest.raises(CheckpointError):
        p.load_state_dict(state)
    after = p.state_dict()
    for key, kept in before.items():
        assert (
            torch.equal(kept.nan_to_num(-9), after[key].nan_to_num(-9))
            if isinstance(kept, Tensor)
            else kept == after[key]
        )


@pytest.mark.parametrize("name", ["epoch", "tail", "largest", "rank", "world_size"])
def test_a_state_with_a_negative_number_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        pruner().load_state_dict(a_state() | {name: -1})


def test_records_that_were_not_flushed_are_loaded_by_their_rank_alone() -> None:
    state = a_state() | {"pending_index": torch.tensor([0]), "pending_score": torch.ones(1)}
    p = pruner()
    p.load_state_dict(state)
    assert p.recorded == 1
    for other in ({"rank": 1, "world_size": 2}, {"rank": 0, "world_size": 2}):
        with pytest.raises(CheckpointError, match=rf"saved by rank {other['rank']} of 2 .*call pruner.sync"):
            p.load_state_dict(state | other)


def test_a_state_beyond_the_run_is_refused() -> None:
    p = pruner(epochs=9)
    for epoch in range(8):
        train(p, epoch)
    with pytest.raises(CheckpointError, match="epoch"):
        pruner(epochs=5).load_state_dict(reloaded(p.state_dict()))


def test_a_state_with_strange_positions_is_refused() -> None:
    with pytest.raises(CheckpointError):
        pruner().load_state_dict(
            a_state() | {"pending_index": torch.tensor([SIZE + 3]), "pending_score": torch.ones(1)}
        )


@pytest.mark.gpu
def test_a_state_loaded_onto_a_gpu_moves_to_the_cpu() -> None:
    state = {key: value.cuda() if isinstance(value, Tensor) else value for key, value in a_state().items()}
    p = pruner()
    p.load_state_dict(state)
    train(p, 1)
    assert len(p.select(2).index) == 20
