"""Several ranks: the same selection as one process, given the same scores; one exchange an epoch; errors on all."""

from __future__ import annotations

import functools
import io
import operator
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from methods_under_test import ROWS, SIZE, Row, run, signals
from pool import Pool
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

import dataprune
from dataprune import CheckpointError, Indexed, IndexedCollate, PlanError, Pruner, PruneSampler, prune_loader

pytestmark = pytest.mark.ddp

EPOCHS = 14  # with `every` = 10, two selections of the bandits
ROW = {row.label: row for row in ROWS}


class Exchanges:
    """Counts the collective calls made inside."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Exchanges:
        self._calls = {name: getattr(dist, name) for name in COLLECTIVES}
        for name, call in self._calls.items():
            setattr(dist, name, self._counted(call))
        return self

    def __exit__(self, *error: object) -> None:
        for name, call in self._calls.items():
            setattr(dist, name, call)

    def _counted(self, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return call(*args, **kwargs)

        return counted


COLLECTIVES = [
    "all_gather", "all_gather_object", "all_gather_into_tensor", "all_reduce", "broadcast", "broadcast_object_list",
    "barrier", "gather", "scatter", "reduce", "all_to_all", "send", "recv",
]  # fmt: skip


def plain(state: dict) -> dict:
    """A state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def record(pruner: Pruner, epoch: int, index: Tensor) -> None:
    pruner.loss(index, *signals(epoch, index))


# -- what runs on the ranks ------------------------------------------------------------------------------------------


def train_all(rank: int, world_size: int, label: str, size: int, epochs: int, batch_size: int, sync: bool) -> dict:
    """A whole run: what was selected and trained on this rank, and what is remembered in the end."""
    pruner = ROW[label].build(size, epochs=epochs, seed=2)
    selected, trained = [], []
    for epoch in range(epochs):
        selection = pruner.select(epoch)
        index, weight = selection.index, selection.weight
        selected.append((index.tolist(), weight.tolist()))
        positions = []
        for number, batch in enumerate(pruner.batches(epoch, batch_size, drop_last=False)):
            record(pruner, epoch, batch)
            positions += batch.tolist()
            if sync and number % 2:
                pruner.sync()
        for batch in pruner.left_out(epoch, batch_size):
            record(pruner, epoch, batch)
        trained.append(positions)
    pruner.sync()
    return {"selected": selected, "trained": trained, "state": plain(pruner.state_dict())}


def all_methods(rank: int, world_size: int, sync: bool) -> dict:
    return {label: train_all(rank, world_size, label, SIZE, EPOCHS, 8, sync) for label in ROW}


def alone(label: str, size: int = SIZE, epochs: int = EPOCHS) -> dict:
    return train_all(0, 1, label, size, epochs, 8, False)


def edge_sizes(rank: int, world_size: int) -> list:
    """Sizes that do not come out even, down to fewer samples than ranks."""
    results = []
    for size in (1, 2, 4, 7):
        for label in ("rs2", "loss", "ucb"):
            results.append(train_all(rank, world_size, label, size, 5, 2, False))
    return results


def uneven_updates(rank: int, world_size: int, method: str) -> tuple[list, list]:
    """Ranks that record different numbers of batches, down to none at all."""
    pruner = dataprune.METHODS[method](SIZE, keep=0.3, epochs=4)
    for epoch in range(3):
        for number, batch in enumerate(pruner.batches(epoch, 4)):
            if number < 2 * rank or epoch == 2:
                record(pruner, epoch, batch)
    pruner.sync()
    return pruner.select(3).index.tolist(), pruner.book.score.nan_to_num(-1).tolist()


def exchanges(rank: int, world_size: int) -> list[tuple[str, int]]:
    """Collective calls of each thing a pruner does."""
    pruner = dataprune.emp(SIZE, keep=0.3, epochs=8)
    sampler = PruneSampler(pruner)
    counts = []

    def note(what: str, call: Any) -> Any:
        with Exchanges() as seen:
            result = call()
        counts.append((what, seen.count))
        return result

    for epoch in range(3):
        note("length", lambda: len(sampler))
        note("set_epoch", lambda epoch=epoch: sampler.set_epoch(epoch))
        note("select", lambda epoch=epoch: pruner.select(epoch))
        note("again", lambda epoch=epoch: pruner.select(epoch))
        for batch in note("batches", lambda epoch=epoch: list(pruner.batches(epoch, 8))):
            note("update", lambda epoch=epoch, batch=batch: record(pruner, epoch, batch))
        note("stats", pruner.stats)
        note("epoch", lambda: pruner.epoch)
        state = note("state_dict", pruner.state_dict)
        note("load_state_dict", lambda state=state: pruner.load_state_dict(state))
        note("length", lambda: len(sampler))
    return counts


def differing(rank: int, world_size: int, how: str) -> str | None:
    """The error that this rank sees, where rank 1 is not like the others."""
    odd = rank == 1
    pruner = dataprune.loss(SIZE, keep=0.3 if how != "keep" or not odd else 0.4, epochs=8, seed=how == "seed" and odd)
    try:
        if how == "policy":
            pruner.policy = dataprune.policies.Function(
                lambda book, count, key: dataprune.Selection.of(torch.arange(count) + rank * int(book.drawn.max()))
            )
        for epoch in range(2):
            for batch in pruner.batches(epoch, 8):
                record(pruner, epoch, batch)
            if epoch == 1 and how == "book" and odd:
                pruner.book.score[3] = 100.0
            if epoch == 1 and how == "forgotten" and odd:
                pruner.book.score[3] = float("nan")
        pruner.select(3 if how == "epoch" and odd else 2)
    except (PlanError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def framework(rank: int, world_size: int, how: str, workers: int) -> str | None:
    """The error that this rank sees, where a framework meddles with the loader."""
    pruner = dataprune.loss(SIZE, keep=0.5, epochs=4)
    data = Indexed([(float(i), i) for i in range(SIZE)])
    sampler = PruneSampler(pruner)
    options: dict[str, Any] = {"batch_size": 4, "collate_fn": IndexedCollate(), "num_workers": workers}
    if workers:
        options["multiprocessing_context"] = "fork"  # spawned ones take seconds to start
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*a framework has replaced the sampler")  # which comes before the error
        try:
            for epoch in range(3):
                pruner.select(epoch)
                if how == "sharded twice":
                    loader = DataLoader(data, sampler=_EveryOther(sampler, rank, world_size), **options)
                elif how == "unsharded":
                    loader = DataLoader(data, sampler=PruneSampler(pruner, rank=0, world_size=1), **options)
                elif how == "replaced":
                    loader = DataLoader(data, sampler=DistributedSampler(data), **options)
                elif how == "padded":
                    loader = DataLoader(data, sampler=_Even(sampler, 4), **options)
                else:
                    loader = DataLoader(data, sampler=sampler, **options)
                for index, _ in loader:
                    record(pruner, epoch, index)
        except PlanError as error:
            return str(error)
    return None


class _EveryOther:
    """A sampler as a framework shards it again."""

    def __init__(self, sampler: PruneSampler, rank: int, world_size: int):
        self.sampler, self.rank, self.world_size = sampler, rank, world_size

    def __iter__(self) -> Any:
        return iter(list(self.sampler)[self.rank :: self.world_size])

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.world_size)


class _Even:
    """A sampler as accelerate evens its last batch out: filled up from the beginning."""

    def __init__(self, sampler: PruneSampler, batch_size: int):
        self.sampler, self.batch_size = sampler, batch_size

    def __iter__(self) -> Any:
        order = list(self.sampler)
        return iter(order + order[: -len(order) % self.batch_size])

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size) * self.batch_size


def resumed(rank: int, world_size: int, label: str, stop: int | None, state: Any, sync: bool) -> tuple[list, dict, int]:
    """Train `stop` steps from a state (one for all ranks, or one each); the steps, the state then, and its epoch."""
    pruner = ROW[label].build(SIZE, epochs=6, seed=4)
    if state is not None:
        pruner.load_state_dict(state[rank] if isinstance(state, list) else state)
    steps = run(pruner, batch_size=4, drop_last=False, stop=stop)
    epoch = pruner.epoch
    if sync:
        pruner.sync()
    return steps, plain(pruner.state_dict()), epoch


def many_resumed(rank: int, world_size: int, label: str, stops: list[int], sync: bool) -> list:
    """`resumed`, for many instants; each state goes through rank 0 if it was synced, else stays on its rank."""
    results = []
    for stop in stops:
        before, state, epoch = resumed(rank, world_size, label, stop, None, sync)
        if sync:
            shared = [state]
            dist.broadcast_object_list(shared, 0)
            state = shared[0]
        after, _, _ = resumed(rank, world_size, label, None, state, sync)
        results.append((before, after, epoch))
    return results


def foreign_state(rank: int, world_size: int) -> list[str]:
    """The error of loading a state that was not synced, on the other rank; then after `sync`."""
    pruner = dataprune.loss(SIZE, keep=0.3, epochs=4)
    for number, batch in enumerate(pruner.batches(0, 8)):
        record(pruner, 0, batch)
        if number == 2:
            break
    messages = []
    for sync in (False, True):
        if sync:
            pruner.sync()
        states: list[Any] = [None] * world_size
        dist.all_gather_object(states, pruner.state_dict())
        other = dataprune.loss(SIZE, keep=0.3, epochs=4)
        try:
            other.load_state_dict(states[1 - rank])
            messages.append("loaded")
        except CheckpointError as error:
            messages.append(str(error))
    return messages


def by_loader(rank: int, world_size: int, workers: int) -> list[tuple[int, list[int]]]:
    """What a rebuilt loader yields: (length promised, positions) of every epoch."""
    pruner = dataprune.loss(SIZE, keep=0.3, epochs=4)
    loader = prune_loader(DataLoader(range(SIZE), batch_size=4, shuffle=True, num_workers=workers), pruner)  # type: ignore[arg-type]
    epochs = []
    for epoch in range(4):
        promised = len(loader.sampler)  # type: ignore[arg-type]
        positions = []
        for index, _ in loader:
            record(pruner, epoch, index)
            positions += index.tolist()
        epochs.append((promised, positions))
    return epochs


# -- the same as one process -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "sync"), [(2, False), (3, False), (3, True)])
def test_every_method_selects_what_one_process_selects(pool: Pool, world_size: int, sync: bool) -> None:
    """Padded duplicates count once, with smoothing below 1 (the bandits) and with `sync` in mid-epoch too."""
    ranks = pool.run(all_methods, sync, world_size=world_size)
    for label, row in ROW.items():
        wanted = ranks[0][label] if row.batchwise else alone(label)
        for result in ranks:
            assert result[label]["selected"] == wanted["selected"], label
            for name in ("score", "drawn", "variance"):
                if name in wanted["state"]:
                    first, second = result[label]["state"][name], wanted["state"][name]
                    assert torch.equal(first.nan_to_num(-9), second.nan_to_num(-9)), (label, name)
        for epoch in range(EPOCHS):
            shards = [result[label]["trained"][epoch] for result in ranks]
            selected = wanted["selected"][epoch][0]
            assert len({len(shard) for shard in shards}) == 1
            counts = Counter(functools.reduce(operator.iadd, shards, []))
            assert set(counts) == set(selected)
            assert sum(counts.values()) - len(selected) == -len(selected) % world_size <= world_size - 1
            assert all(len(set(shard)) == len(shard) for shard in shards)


@pytest.mark.parametrize("world_size", [2, 3])
def test_uneven_sizes_do_not_deadlock(pool: Pool, world_size: int) -> None:
    ranks = pool.run(edge_sizes, world_size=world_size)
    place = 0
    for size in (1, 2, 4, 7):
        for label in ("rs2", "loss", "ucb"):
            wanted = alone(label, size, 5)
            assert all(results[place]["selected"] == wanted["selected"] for results in ranks), (size, label)
            place += 1


@pytest.mark.parametrize(("world_size", "method"), [(2, "loss"), (3, "loss"), (2, "information")])
def test_ranks_may_record_different_numbers_of_batches(pool: Pool, world_size: int, method: str) -> None:
    results = pool.run(uneven_updates, method, world_size=world_size)
    assert all(result == results[0] for result in results)


def test_loaders_take_rank_and_world_size_from_the_group(pool: Pool) -> None:
    results = pool.run(by_loader, 0, world_size=2)
    for epoch in range(4):
        (promised, first), (_, second) = results[0][epoch], results[1][epoch]
        assert len(first) == len(second) == promised
        count = SIZE if epoch == 0 else 29
        assert len(set(first) | set(second)) == count
        assert len(first) + len(second) - count <= 1


# -- one exchange ----------------------------------------------------------------------------------------------------


def test_ranks_exchange_once_an_epoch_and_nowhere_else(pool: Pool) -> None:
    for counts in pool.run(exchanges, world_size=2):
        for what, count in counts:
            # one exchange: a header, the indices, the scores
            assert count == (3 if what == "select" else 0), what


# -- ranks that disagree ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("book", "score books"),
        ("forgotten", "score books"),
        ("seed", "different arguments"),
        ("keep", "different arguments"),
        ("policy", "different selections"),
        ("epoch", "different epochs"),
    ],
)
def test_a_rank_that_differs_raises_on_all(pool: Pool, how: str, message: str) -> None:
    for error in pool.run(differing, how, world_size=3):
        assert error is not None
        assert error.startswith("PlanError")
        assert message in error


def test_ranks_that_agree_do_not_raise(pool: Pool) -> None:
    assert pool.run(differing, "nothing", world_size=3) == [None] * 3


@pytest.mark.parametrize(
    ("how", "workers", "message"),
    [
        ("sharded twice", 0, "shards"),
        ("sharded twice", 1, "shards"),
        ("unsharded", 0, "replaced the sampler"),
        ("replaced", 0, "replaced the sampler"),
    ],
)
def test_a_framework_that_meddles_is_named_on_all_ranks(pool: Pool, how: str, workers: int, message: str) -> None:
    for error in pool.run(framework, how, workers, world_size=2):
        assert error is not None
        assert message in error


@pytest.mark.parametrize(("how", "workers"), [("nothing", 0), ("nothing", 1), ("padded", 0)])
def test_frameworks_that_behave_are_not_accused(pool: Pool, how: str, workers: int) -> None:
    assert pool.run(framework, how, workers, world_size=3) == [None] * 3


# -- resuming --------------------------------------------------------------------------------------------------------


def whole_run(pool: Pool, label: str, world_size: int) -> list[list]:
    return [steps for steps, _, _ in pool.run(resumed, label, None, None, True, world_size=world_size)]


@pytest.mark.parametrize("label", ["loss", "ucb", "infobatch", "rs2"])
@pytest.mark.parametrize("synced", [True, False])
def test_resuming_on_as_many_ranks_changes_nothing(pool: Pool, label: str, synced: bool) -> None:
    """With `sync`, all load rank 0's state; without it every rank loads its own."""
    whole = whole_run(pool, label, 2)
    borders = [i for i in range(1, len(whole[0])) if whole[0][i].epoch != whole[0][i - 1].epoch]
    stops = [0, 1, 3, borders[0] - 1, borders[0], borders[0] + 2, borders[2] - 1, borders[2], len(whole[0])]
    for rank, results in enumerate(pool.run(many_resumed, label, stops, synced, world_size=2)):
        for stop, (before, after, epoch) in zip(stops, results, strict=True):
            assert before == whole[rank][:stop]
            assert after == whole[rank][stop:], (rank, stop)
            following = whole[rank][stop].epoch if stop < len(whole[rank]) else 6
            assert epoch == following, (rank, stop)


@pytest.mark.parametrize("label", ["loss", "ucb", "infobatch"])
@pytest.mark.parametrize(("ranks_before", "ranks_after"), [(2, 1), (2, 3), (1, 2), (3, 2)])
def test_resuming_on_another_number_of_ranks(pool: Pool, label: str, ranks_before: int, ranks_after: int) -> None:
    """In mid-epoch: exactly what was not yet trained is, and every later epoch selects what one process would."""
    wanted = alone_run(label)
    for stop in (3, 29 // ranks_before):  # in the full epoch, and past it
        first = call(pool, resumed, label, stop, None, True, world_size=ranks_before)
        state = first[0][1]
        second = call(pool, resumed, label, None, state, True, world_size=ranks_after)
        for epoch, selected in wanted.items():
            before = Counter(i for steps, _, _ in first for step in steps if step.epoch == epoch for i in step.index)
            after = Counter(i for steps, _, _ in second for step in steps if step.epoch == epoch for i in step.index)
            assert set(before) | set(after) == selected, (stop, epoch)
            twice = (before + after).total() - len(selected)
            assert twice <= (ranks_before - 1) * bool(before) + (ranks_after - 1) * bool(after), (stop, epoch)
        assert sum(1 for step in first[0][0]) == stop


def alone_run(label: str) -> dict[int, set[int]]:
    selected: dict[int, set[int]] = {}
    for step in resumed(0, 1, label, None, None, True)[0]:
        selected.setdefault(step.epoch, set()).update(step.index)
    return selected


def call(pool: Pool, function: Any, *args: Any, world_size: int) -> list[Any]:
    """On the pool, or here where one rank is enough."""
    return [function(0, 1, *args)] if world_size == 1 else pool.run(function, *args, world_size=world_size)


def test_padding_counts_once_after_resuming_on_another_number_of_ranks(pool: Pool) -> None:
    wanted = resumed(0, 1, "ucb", None, None, True)[1]
    state = pool.run(resumed, "ucb", 5, None, True, world_size=3)[0][1]
    ended = pool.run(resumed, "ucb", None, state, True, world_size=2)[0][1]
    for name in ("score", "variance", "drawn"):
        assert torch.equal(ended[name].nan_to_num(-9), wanted[name].nan_to_num(-9)), name


def test_a_state_that_was_not_synced_stays_on_its_rank(pool: Pool) -> None:
    for before, after in pool.run(foreign_state, world_size=2):
        assert "sync" in before
        assert "rank" in before
        assert after == "loaded"


def test_without_a_group_there_is_one_rank() -> None:
    pruner = Row("loss", warmup=1).build()
    with Exchanges() as seen:
        pruner.select(0)
        pruner.sync()
    assert seen.count == 0
    assert PruneSampler(pruner).world_size == 1
    assert PruneSampler(pruner).rank == 0
