"""Loaders resume where training was, torchdata's StatefulDataLoader as well."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from small_loader import BATCH, EPOCHS, Items, check_resuming, loader, positions, pruner, record, reloaded, train
from torch.utils.data import (
    DataLoader,
)

from dataprune import Indexed, IndexedCollate, Pruner, PruneSampler, prune_loader

# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("drop_last", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_after_any_batch(workers: int, drop_last: bool) -> None:
    """The position is what was recorded, not what was prefetched; the ends of epochs included."""

    def build() -> tuple[Pruner, DataLoader]:
        p = pruner("loss", epochs=4, seed=5)
        return p, prune_loader(loader(num_workers=workers, drop_last=drop_last), p)

    whole = train(*build())
    # 10 (or 11) batches in the full epoch, then 5 (or 6) in each of three
    per_epoch = [10, 5, 5, 5] if drop_last else [11, 6, 6, 6]
    assert len(whole) == sum(per_epoch)
    # with workers, which are slow to start, where prefetching could matter: the end of an epoch and inside the next
    instants = range(len(whole) + 1) if not workers else [per_epoch[0], per_epoch[0] + 2]
    for instant in instants:
        p, batches = build()
        assert train(p, batches, stop=instant) == whole[:instant]
        state = reloaded(p.state_dict())
        p, batches = build()
        p.load_state_dict(state)
        done = [sum(per_epoch[:e]) for e in range(5)]
        epoch = max(e for e in range(5) if done[e] <= instant)
        assert p.epoch == epoch  # an epoch of which all was trained is over
        if epoch < 4:
            assert len(batches) == done[epoch + 1] - instant
        assert train(p, batches) == whole[instant:], f"resumed after batch {instant}"


def test_resuming_with_set_epoch() -> None:
    p = pruner("loss", seed=5)
    batches = prune_loader(loader(), p)
    steps = train(p, batches, stop=13)  # two batches into epoch 1
    q = pruner("loss", seed=5)
    again = prune_loader(loader(), q)
    q.load_state_dict(reloaded(p.state_dict()))
    for epoch in range(q.epoch, EPOCHS):
        again.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for index, _ in again:
            record(q, index)
            steps.append(index.tolist())
    p = pruner("loss", seed=5)
    assert steps == train(p, prune_loader(loader(), p))


@pytest.mark.filterwarnings("ignore:.*the loop left the epoch early")
def test_a_state_loaded_after_the_loader_was_used_counts() -> None:
    p = pruner("loss", seed=5)
    batches = prune_loader(loader(), p)
    whole = train(p, batches)
    q = pruner("loss", seed=5)
    other = prune_loader(loader(), q)
    train(q, other, stop=8)
    state = reloaded(q.state_dict())
    train(q, other, stop=2)
    q.load_state_dict(state)
    assert train(q, other) == whole[8:]


def test_resuming_a_sampler_in_a_plain_loader() -> None:
    def build() -> tuple[Pruner, DataLoader]:
        p = pruner("loss", epochs=4)
        return p, DataLoader(Indexed(Items()), batch_size=BATCH, sampler=PruneSampler(p), collate_fn=IndexedCollate())

    check_resuming(build)


def test_a_new_run_with_another_loader_of_the_same_pruner() -> None:
    """Two loaders over one pruner: both see its epochs."""
    p, q = pruner(), pruner()
    first, second, only = (prune_loader(loader(), each) for each in (p, p, q))
    assert [positions(first), positions(second)] == [positions(only), positions(only)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_batches_skipped_by_the_state_and_by_the_loop_are_named(workers: int) -> None:
    p = pruner("loss")
    train(p, prune_loader(loader(), p), stop=3)
    for skipped in (0, 3):
        q = pruner("loss")
        batches = prune_loader(loader(num_workers=workers), q)
        q.load_state_dict(reloaded(p.state_dict()))
        expected = pytest.warns(UserWarning, match="skip_first_batches") if skipped else contextlib.nullcontext()
        with expected:
            for number, (index, _) in enumerate(batches):
                if number >= skipped:
                    record(q, index)


# -- torchdata -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*set_vital.*:UserWarning")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_stateful_loader_goes_on_in_mid_epoch(workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def build() -> tuple[Pruner, Any]:
        p = pruner("loss", epochs=4, seed=5)
        stateful_loader = stateful.StatefulDataLoader(Items(), batch_size=BATCH, shuffle=True, num_workers=workers)
        rebuilt = prune_loader(stateful_loader, p)
        assert isinstance(rebuilt, stateful.StatefulDataLoader)
        return p, rebuilt

    whole = train(*build())
    for instant in (5, 13) if workers else (1, 5, 10, 13, 18):
        p, batches = build()
        assert train(p, batches, stop=instant) == whole[:instant]
        saved = reloaded(p.state_dict()), batches.state_dict()
        p, batches = build()
        p.load_state_dict(saved[0])
        batches.load_state_dict(saved[1])
        assert train(p, batches) == whole[instant:], f"resumed after batch {instant}"


@pytest.mark.filterwarnings("ignore:.*set_vital.*:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", [pytest.param("rs2", marks=pytest.mark.slow), "loss"])
def test_stateful_loader_saved_at_the_end_of_an_epoch(name: str, workers: int) -> None:
    """It yields the empty rest of that epoch first, and selects nothing anew."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def build() -> tuple[Pruner, Any]:
        p = pruner(name, epochs=4, seed=5)
        return p, prune_loader(stateful.StatefulDataLoader(Items(), batch_size=BATCH, num_workers=workers), p)

    whole = train(*build())
    p, batches = build()
    first = len(batches)
    head = train(p, batches, stop=first)
    saved = reloaded(p.state_dict()), batches.state_dict()
    p, batches = build()
    p.load_state_dict(saved[0])
    batches.load_state_dict(saved[1])
    assert list(batches) == []
    assert p.epoch == 1
    assert head + train(p, batches) == whole


@pytest.mark.filterwarnings("ignore:.*set_vital.*:UserWarning")
def test_options_of_a_stateful_loader_are_kept() -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    stateful_loader = stateful.StatefulDataLoader(Items(), batch_size=BATCH, snapshot_every_n_steps=7)
    assert prune_loader(stateful_loader, pruner()).snapshot_every_n_steps == 7  # type: ignore[attr-defined]


def test_iterators_of_the_sampler_have_a_state() -> None:
    p = pruner()
    running = iter(PruneSampler(p))
    first = [next(running) for _ in range(9)]
    state = reloaded(running.state_dict())
    rest = list(running)
    again = iter(PruneSampler(pruner()))
    again.load_state_dict(state)
    assert list(again) == rest
    assert not set(first) & set(rest)
    assert set(first) | set(rest) == set(p.select(0).index.tolist())


def test_a_fresh_iterators_state_is_the_beginning() -> None:
    running = iter(PruneSampler(pruner()))
    state = reloaded(running.state_dict())
    again = iter(PruneSampler(pruner()))
    again.load_state_dict(state)
    assert list(again) == list(running)
