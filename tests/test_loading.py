"""Loaders: what they yield, what they refuse, and how epochs follow one another."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch
from small_loader import BATCH, EPOCHS, SIZE, Fetched, Items, Stream, loader, positions, pruner, ragged, record
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import dataprune
from dataprune import Indexed, IndexedCollate, PruneSampler, prune_loader

# -- what is yielded -------------------------------------------------------------------------------------------------


def test_four_lines() -> None:
    """The loop of the README."""
    x, y = torch.randn(SIZE, 3), torch.arange(SIZE) % 2
    train_set = TensorDataset(x, y)
    model = torch.nn.Linear(3, 2)
    p = dataprune.emp(len(train_set), keep=0.5, epochs=8)
    batches = prune_loader(DataLoader(train_set, batch_size=BATCH, shuffle=True), p)
    counts = []
    for _ in range(8):
        seen = []
        for index, (bx, by) in batches:
            assert torch.equal(bx, x[index])
            assert torch.equal(by, y[index])
            logits = model(bx)
            p.loss(index, torch.nn.functional.cross_entropy(logits, by, reduction="none"), logits, by).backward()
            seen += index.tolist()
        assert len(set(seen)) == len(seen)
        counts.append(len(seen))
    assert counts == p.epoch_sizes() == [43] + [22] * 7


@pytest.mark.parametrize("kind", ["tensor", "number", "tuple", "dict", "nested"])
def test_any_structure_comes_through_as_the_loader_gives_it(kind: str) -> None:
    p = pruner()
    dataset = Items(kind)
    selected = set(p.select(0).index.tolist())
    seen = set()
    for index, batch in prune_loader(loader(dataset), p):
        wanted = torch.utils.data.default_collate([dataset[i] for i in index.tolist()])
        assert index.dtype == torch.int64
        assert _same(batch, wanted)
        seen |= set(index.tolist())
    assert seen == selected


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def test_collate_fn_is_kept() -> None:
    for index, batch in prune_loader(loader(collate_fn=ragged), pruner()):
        assert batch["count"] == len(index)
        assert torch.equal(torch.stack(batch["first"])[:, 0].long(), index)


def test_getitems_is_used() -> None:
    for index, (item, how) in prune_loader(loader(Fetched()), pruner()):
        assert set(how) == {"many"}
        assert torch.equal(item[0][:, 0].long(), index)


def test_list_like_data_works() -> None:
    data = [(float(i), i) for i in range(SIZE)]
    for index, (x, y) in prune_loader(loader(data), pruner()):
        assert torch.equal(index, y)
        assert torch.equal(x, y.double())


def test_a_subset_is_pruned_by_positions_in_the_subset() -> None:
    subset = Subset(Items("number"), list(range(10, 30)))
    for index, value in prune_loader(loader(subset), pruner(size=20)):
        assert torch.equal(index + 10, value)


def test_a_plain_batch_sampler_is_rebuilt() -> None:
    dataset = Items()
    batch_sampler = BatchSampler(RandomSampler(dataset), batch_size=5, drop_last=True)
    batches = positions(prune_loader(DataLoader(dataset, batch_sampler=batch_sampler), pruner()))
    assert [len(batch) for batch in batches] == [5] * 4


def test_sequential_loaders_stay_in_order() -> None:
    p = pruner()
    flat = functools.reduce(operator.iadd, positions(prune_loader(loader(shuffle=False), p)), [])
    assert flat == sorted(p.select(0).index.tolist())


def test_shuffling_loaders_shuffle_by_the_seed() -> None:
    runs = [
        functools.reduce(operator.iadd, positions(prune_loader(loader(), pruner("full", keep=None, seed=seed))), [])
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0] != sorted(runs[0])


def test_options_of_the_loader_are_kept() -> None:
    generator = torch.Generator()
    given = {
        "num_workers": 2,
        "prefetch_factor": 3,
        "persistent_workers": True,
        "timeout": 60,
        "generator": generator,
        "worker_init_fn": _nothing,
        "multiprocessing_context": "spawn",
        "drop_last": True,
        "in_order": False,
    }
    rebuilt = prune_loader(loader(**given), pruner())
    assert rebuilt.batch_size == BATCH
    assert rebuilt.drop_last is True
    for name in (
        "num_workers",
        "prefetch_factor",
        "persistent_workers",
        "timeout",
        "generator",
        "worker_init_fn",
        "in_order",
    ):
        assert getattr(rebuilt, name) == given[name], name
    assert rebuilt.multiprocessing_context.get_start_method() == "spawn"


def _nothing(worker: int) -> None:
    pass


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")  # torch's own, where there is no accelerator
def test_pin_memory_is_accepted() -> None:
    rebuilt = prune_loader(loader(pin_memory=True), pruner())
    assert rebuilt.pin_memory is True
    assert len(positions(rebuilt)) == 6


# -- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_forked_workers_yield_what_the_main_process_does(persistent: bool) -> None:
    runs = []
    for workers in (0, 2):
        p = pruner("loss", warmup=0)
        options = {"multiprocessing_context": "fork", "persistent_workers": persistent} if workers else {}
        batches = prune_loader(loader(num_workers=workers, **options), p)
        run = []
        for _ in range(EPOCHS):
            for index, (x, _) in batches:
                assert torch.equal(x[:, 0].long(), index)
                record(p, index)
                run.append(index.tolist())
        runs.append(run)
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_spawned_workers_yield_what_the_main_process_does() -> None:
    p, other = pruner(), pruner()
    spawned = prune_loader(loader(num_workers=2, multiprocessing_context="spawn", persistent_workers=True), p)
    for _ in range(2):
        run = []
        for index, (x, _) in spawned:
            assert torch.equal(x[:, 0].long(), index)
            record(p, index)
            run.append(index.tolist())
        epoch = p.selected
        assert epoch is not None
        assert run == [batch.tolist() for batch in other.batches(epoch, BATCH, drop_last=False)]


# -- refusals --------------------------------------------------------------------------------------------------------


class OwnBatches(BatchSampler):
    pass


def refused() -> dict[str, Any]:
    data = Items()
    weights = torch.ones(SIZE)
    return {
        "stream": lambda: DataLoader(Stream(), batch_size=BATCH),
        "weighted": lambda: loader(data, shuffle=False, sampler=WeightedRandomSampler(weights, SIZE)),
        "subset": lambda: loader(data, shuffle=False, sampler=SubsetRandomSampler(range(SIZE))),
        "replacement": lambda: loader(data, shuffle=False, sampler=RandomSampler(data, replacement=True)),
        "part": lambda: loader(data, shuffle=False, sampler=RandomSampler(data, num_samples=10)),
        "part of the positions": lambda: loader(data, shuffle=False, sampler=RandomSampler(range(10))),
        "first of the positions": lambda: loader(data, shuffle=False, sampler=SequentialSampler(range(10))),
        "list": lambda: loader(data, shuffle=False, sampler=list(range(SIZE))),
        "own batches": lambda: DataLoader(data, batch_sampler=OwnBatches(RandomSampler(data), BATCH, False)),
        "batches in a list": lambda: DataLoader(data, batch_sampler=[[0, 1], [2, 3]]),
        "no batches": lambda: DataLoader(data, batch_size=None),
    }


@pytest.mark.parametrize("which", refused())
def test_loaders_that_choose_samples_themselves_are_refused(which: str) -> None:
    with pytest.raises(TypeError) as error:
        prune_loader(refused()[which](), pruner())
    assert len(str(error.value)) > 60  # says what to do
    named = {
        "stream": "map-style",
        "weighted": "WeightedRandomSampler",
        "subset": "SubsetRandomSampler",
        "own batches": "OwnBatches",
    }
    assert named.get(which, "") in str(error.value)


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"43.*44"):
        prune_loader(loader(), pruner(size=44))


def test_a_kept_epoch_smaller_than_a_batch_is_refused_where_it_would_be_dropped() -> None:
    p = pruner(keep=0.05)  # 2 samples
    with pytest.raises(ValueError, match=r"fewer than one batch.*drop_last=False"):
        prune_loader(loader(drop_last=True), p)
    assert [len(batch) for batch in positions(prune_loader(loader(), p))] == [2]
    with pytest.raises(ValueError, match="fewer than one batch"):
        prune_loader(loader(drop_last=True, batch_size=8), pruner(keep=0.3), rank=0, world_size=2)
    with pytest.raises(ValueError, match="fewer than one batch"):
        p.batches(0, 4)


def test_indexed_refuses_streams() -> None:
    with pytest.raises(TypeError, match="map-style"):
        Indexed(Stream())
    with pytest.raises(TypeError, match="map-style"):
        Indexed(iter([1, 2]))


def test_rank_and_world_size_come_together() -> None:
    for options in ({"rank": 0}, {"world_size": 2}, {"rank": 2, "world_size": 2}, {"rank": -1, "world_size": 2}):
        with pytest.raises(ValueError, match="rank"):
            PruneSampler(pruner(), **options)


def test_indexed_and_collate_work_without_a_pruner() -> None:
    data = Indexed(Items("number"))
    assert len(data) == SIZE
    assert data[7] == (7, 7)
    assert data.__getitems__([3, 1]) == [(3, 3), (1, 1)]
    index, batch = IndexedCollate()([(3, 30), (1, 10)])
    assert index.tolist() == [3, 1]
    assert batch.tolist() == [30, 10]


# -- epochs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("name", ["rs2", "loss", "full", "ucb"])
def test_length_is_known_before_iteration(name: str, drop_last: bool) -> None:
    p = pruner(name)
    batches = prune_loader(loader(drop_last=drop_last), p)
    for epoch in range(EPOCHS):
        promised, samples = len(batches), len(batches.sampler)  # type: ignore[arg-type]
        yielded = []
        for index, _ in batches:
            assert len(batches) == promised  # stays so while it runs
            record(p, index)
            yielded += [len(index)]
        assert promised == len(yielded)
        assert samples == p.epoch_sizes()[epoch]
        if not drop_last:
            assert sum(yielded) == samples
        else:
            assert set(yielded) == {BATCH}


def test_length_of_a_soft_pruned_epoch_is_exact_once_it_is_selected() -> None:
    p = pruner("infobatch", epochs=16)
    batches = prune_loader(loader(), p)
    for epoch in range(3):
        assert len(batches) * BATCH >= len(p.select(epoch).index)
        promised = len(batches)
        count = 0
        for index, _ in batches:
            record(p, index)
            count += 1
        assert count == promised


def test_an_exhausted_iterator_advances_the_epoch() -> None:
    p = pruner()
    batches = prune_loader(loader(), p)
    assert batches.sampler.epoch == 0  # type: ignore[attr-defined]
    first, second = positions(batches), positions(batches)
    assert p.selected == 1
    wanted = pruner()
    assert [first, second] == [[b.tolist() for b in wanted.batches(e, BATCH, drop_last=False)] for e in (0, 1)]


def test_epochs_end() -> None:
    batches = prune_loader(loader(), pruner(epochs=2))
    positions(batches), positions(batches)
    with pytest.raises(ValueError, match="epoch 2"):
        positions(batches)


@pytest.mark.filterwarnings("ignore:.*the loop left the epoch early")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_iteration_advances_nothing(workers: int) -> None:
    p = pruner()
    batches = prune_loader(loader(num_workers=workers), p)
    first = None
    for stop in (1, 3, 4, 5):  # of six batches; workers have fetched all of them by then
        for number, (index, _) in enumerate(batches, start=1):
            if number == 1:
                first = first or index.tolist()
                assert index.tolist() == first
            if stop < 4:
                record(p, index)
            if number == stop:
                break
        assert p.selected == 0
        assert len(batches) == 6
    assert int(p.book.drawn.sum()) == p.counts[0]
    assert positions(batches)[0] == first
    assert p.selected == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_iteration_of_many_workers_does_not_stop_the_next_epoch(workers: int) -> None:
    p = pruner()
    batches = prune_loader(loader(num_workers=workers), p)
    for epoch in range(3):
        batches.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for number, (index, _) in enumerate(batches):
            record(p, index)
            if number == 2:
                break
    assert p.selected == 2


def test_set_epoch_is_idempotent() -> None:
    p = pruner()
    batches = prune_loader(loader(), p)
    sampler = batches.sampler
    assert isinstance(sampler, PruneSampler)
    runs = []
    for epoch in (0, 0, 1, 1, 1, 3):
        sampler.set_epoch(epoch)
        sampler.set_epoch(epoch)
        assert len(batches) == 6
        runs.append(positions(batches))
    assert runs[0] == runs[1]
    assert runs[2] == runs[3] == runs[4]
    assert p.stats()["draws"] is not None
    assert int(p.book.drawn.sum()) == p.counts[0] * 3  # 0, 1 and 3: once each


def test_set_epoch_again_after_the_epoch_repeats_it() -> None:
    p = pruner()
    batches = prune_loader(loader(), p)
    first = positions(batches)
    batches.sampler.set_epoch(0)  # type: ignore[attr-defined]
    assert positions(batches) == first


def test_set_epoch_while_iterating_decides_the_next() -> None:
    p = pruner()
    batches = prune_loader(loader(), p)
    for number, _ in enumerate(batches):
        if number == 2:
            batches.sampler.set_epoch(4)  # type: ignore[attr-defined]
    assert number == 5
    positions(batches)
    assert p.selected == 4


def test_asking_twice_for_an_iterator_changes_nothing() -> None:
    p = pruner()
    batches = prune_loader(loader(), p)
    first, second = iter(batches), iter(batches)
    assert next(first)[0].tolist() == next(second)[0].tolist()


# -- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 22, 60])
def test_shards_are_disjoint_but_for_the_padding(world_size: int, shuffle: bool) -> None:
    shards = []
    for rank in range(world_size):
        sampler = PruneSampler(pruner(), rank=rank, world_size=world_size, shuffle=shuffle)
        promised = len(sampler)
        shards.append(list(sampler))
        assert len(shards[-1]) == promised
    together = functools.reduce(operator.iadd, shards, [])
    assert set(together) == set(pruner().select(0).index.tolist())
    assert len({len(shard) for shard in shards}) == 1
    assert len(together) - len(set(together)) <= world_size - 1 or world_size > 22
    assert len(together) == -(-22 // world_size) * world_size


def test_a_distributed_sampler_hands_its_share_over() -> None:
    data = Items()
    for shuffle in (True, False):
        runs = []
        for rank in range(2):
            sampler = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=shuffle)
            runs.append(positions(prune_loader(loader(data, shuffle=False, sampler=sampler), pruner())))
        flat = [functools.reduce(operator.iadd, run, []) for run in runs]
        assert len(flat[0]) == len(flat[1]) == 11
        assert set(flat[0]) | set(flat[1]) == set(pruner().select(0).index.tolist())
        assert (flat[0] == sorted(flat[0])) is not shuffle
