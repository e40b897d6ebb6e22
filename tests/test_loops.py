"""Epochs follow one another in any loop over a pruned loader: what is recorded says where training is."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_loader import Items
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

import dataprune
from dataprune import Indexed, IndexedCollate, PlanError, Pruner, PruneSampler, prune_loader

SIZE, BATCH, EPOCHS, KEPT = 200, 20, 5, 60


def pruner(name: str = "rs2", **options: Any) -> Pruner:
    return dataprune.METHODS[name](SIZE, keep=0.3, **{"epochs": EPOCHS, **options})


def pruned(p: Pruner, **options: Any) -> DataLoader:
    data = TensorDataset(torch.randn(SIZE, 3))
    return prune_loader(DataLoader(data, **{"batch_size": BATCH, "shuffle": True, **options}), p)


def own_batches(p: Pruner, drop_last: bool = False) -> DataLoader:
    batches = BatchSampler(PruneSampler(p), BATCH, drop_last)
    return DataLoader(Indexed(Items(size=SIZE)), batch_sampler=batches, collate_fn=IndexedCollate())


def stateful(p: Pruner) -> Any:
    data = pytest.importorskip("torchdata.stateful_dataloader")
    return prune_loader(data.StatefulDataLoader(Items(size=SIZE), batch_size=BATCH, shuffle=True), p)


# Each yields the indices of one epoch, and never asks for one batch more than it has.


def counted(loader: Any) -> Iterator[torch.Tensor]:
    iterator = iter(loader)
    for _ in range(len(loader)):
        yield next(iterator)[0]


def sliced(loader: Any) -> Iterator[torch.Tensor]:
    yield from (index for index, _ in itertools.islice(loader, len(loader)))


def zipped(loader: Any) -> Iterator[torch.Tensor]:
    for _, (index, _) in zip(range(len(loader)), loader):
        yield index


def left_at_the_last(loader: Any) -> Iterator[torch.Tensor]:
    last = len(loader) - 1
    for number, (index, _) in enumerate(loader):
        yield index
        if number == last:
            return


def to_the_end(loader: Any) -> Iterator[torch.Tensor]:
    yield from (index for index, _ in loader)


LOOPS = [counted, sliced, zipped, left_at_the_last, to_the_end]
LOADERS: dict[str, Callable[[Pruner], Any]] = {
    "plain": pruned,
    "drop_last": lambda p: pruned(p, drop_last=True),
    "batches of seven": lambda p: pruned(p, batch_size=7, drop_last=True),
    "own batch sampler": own_batches,
    "own batch sampler that drops": lambda p: own_batches(p, drop_last=True),
    "stateful": stateful,
    "workers": lambda p: pruned(p, num_workers=2),
    "persistent workers": lambda p: pruned(p, num_workers=2, persistent_workers=True),
}


def record(p: Pruner, index: torch.Tensor) -> None:
    p.update(index, 1.0 + index.float() % 11)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*set_vital.*:UserWarning")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", LOADERS)
def test_a_recorded_epoch_is_over_whatever_the_loop_asks_next(kind: str, loop: Callable[..., Any]) -> None:
    p = pruner()
    loader, seen = LOADERS[kind](p), set()
    for epoch in range(EPOCHS):
        for index in loop(loader):
            assert p.epoch == epoch
            record(p, index)
            seen |= set(index.tolist())
    missed = EPOCHS * (KEPT % 7) if kind == "batches of seven" else 0
    assert len(seen) >= SIZE - missed
    assert p.epoch == EPOCHS


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["emp", "loss", "ucb", "infobatch"])
def test_methods_that_score_prune_in_such_loops(name: str, loop: Callable[..., Any]) -> None:
    p = pruner(name)
    loader, lengths = pruned(p), []
    for _ in range(EPOCHS):
        lengths.append(0)
        for index in loop(loader):
            logits = torch.randn(len(index), 3)
            p.update(index, torch.rand(len(index)), logits, torch.zeros(len(index), dtype=torch.int64))
            lengths[-1] += len(index)
    assert lengths[0] == SIZE
    assert all(length < SIZE for length in lengths[1:])


@pytest.mark.parametrize("loop", LOOPS)
def test_without_records_an_iterated_epoch_counts_where_none_are_needed(loop: Callable[..., Any]) -> None:
    p = pruner()
    loader = pruned(p)
    seen = {position for _ in range(EPOCHS) for index in loop(loader) for position in index.tolist()}
    assert len(seen) == SIZE


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*set_vital.*:UserWarning")
def test_looks_at_the_loader_use_up_nothing(kind: str) -> None:
    p, q = pruner("loss", warmup=0), pruner("loss", warmup=0)
    loader, other = LOADERS[kind](p), LOADERS[kind](q)
    next(iter(loader))  # before training
    for epoch in range(EPOCHS):
        plain = []
        for index in to_the_end(other):
            record(q, index)
            plain.append(index.tolist())
        watched = []
        for number, index in enumerate(to_the_end(loader)):
            # in the middle of an epoch; torch itself begins persistent workers anew, for both loops
            if number == 1 and kind != "persistent workers":
                assert sum(1 for _ in loader) == len(plain)
            record(p, index)
            watched.append(index.tolist())
        assert watched == plain
        drawn = p.book.drawn.clone()
        for _ in range(2):  # between epochs, and after the last
            batches = list(loader)
            assert len(batches) == (len(plain) if epoch + 1 < EPOCHS else len(watched))
        assert p.epoch == epoch + 1
        assert int((p.book.drawn - drawn).sum()) in (0, KEPT)  # the next epoch is selected once
    torch.testing.assert_close(p.book.score, q.book.score, rtol=0, atol=0, equal_nan=True)


def test_training_after_the_last_epoch_is_refused() -> None:
    p = pruner(epochs=2)
    loader = pruned(p)
    for _ in range(2):
        for index in to_the_end(loader):
            record(p, index)
    last = {position for index in to_the_end(loader) for position in index.tolist()}
    assert last == set(p.select(1).index.tolist())
    with pytest.raises(PlanError, match=r"all 2 epochs.*epochs=\.\.\. of the whole run"):
        record(p, next(to_the_end(loader)))


def test_batches_that_are_skipped_do_not_stop_the_epochs() -> None:
    """As where a loss is not finite: the loop came to its end, and what it left out is not trained."""
    p = pruner(warmup=1)
    loader = pruned(p)
    for epoch in range(EPOCHS):
        assert p.next_epoch == epoch
        for number, index in enumerate(to_the_end(loader)):
            if number != 1 or epoch:
                record(p, index)


def test_too_many_records_are_warned_of() -> None:
    p = pruner("loss")
    loader = pruned(p)
    repeated = itertools.cycle(loader)  # keeps the batches of the first epoch
    with pytest.warns(UserWarning, match=r"epoch 0, which has 200.*itertools\.cycle"):
        for _ in range(12):
            record(p, next(repeated)[0])
    views = pruner("loss")
    with pytest.warns(UserWarning, match="two views"):
        for index in to_the_end(pruned(views)):
            record(views, index.repeat(2))


def test_a_second_pass_over_a_batch_is_not_recorded() -> None:
    p, once = pruner("loss"), pruner("loss")
    for index in p.batches(0, BATCH):
        losses = torch.rand(len(index), requires_grad=True)
        assert p.loss(index, losses) == once.loss(index, losses) == p.loss(index, losses, record=False)
    assert torch.equal(p.state_dict()["score"], once.state_dict()["score"])
    with pytest.raises(ValueError, match="reduction='none'"):
        p.loss(index, losses.mean(), record=False)
    with pytest.warns(UserWarning, match=r"recorded twice running.*record=False"):
        for index in p.batches(1, BATCH):
            p.loss(index, losses[: len(index)])
            p.loss(index, losses[: len(index)])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_only_equal_batches_are_the_same_twice_running(dtype: torch.dtype) -> None:
    p = dataprune.METHODS["full"](8, epochs=1)
    p.select(0)
    for index in ([0, 2, 4, 7], [0, 1, 3, 7]):  # warnings are errors
        p.loss(torch.tensor(index, dtype=dtype), torch.ones(4))
    with pytest.warns(UserWarning, match="recorded twice running"):
        p.loss(torch.tensor([0, 1, 3, 7], dtype=dtype), torch.ones(4))


def begins_again(loader: Any) -> Iterator[torch.Tensor]:
    while True:
        yield next(iter(loader))[0]


def stops_after_two(loader: Any) -> Iterator[torch.Tensor]:
    for _ in range(3):
        yield from (index for index, _ in itertools.islice(loader, 2))


def zipped_with_a_shorter_one(loader: Any) -> Iterator[torch.Tensor]:
    for _ in range(3):
        yield from (index for (index, _), _ in zip(loader, range(2)))


@pytest.mark.parametrize("loop", [begins_again, stops_after_two, zipped_with_a_shorter_one])
def test_an_epoch_that_is_left_early_and_begins_again_is_warned_of_once(loop: Callable[..., Any]) -> None:
    p = pruner("loss")
    with pytest.warns(UserWarning, match="begins again after .* the loop left the epoch early") as warned:
        for index in itertools.islice(loop(pruned(p)), 6):
            record(p, index)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_epochs_that_are_left_early_and_numbered_go_on() -> None:
    p = pruner("rs2")
    loader, seen = pruned(p), set()
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for index, _ in itertools.islice(loader, 2):
            record(p, index)
            seen |= set(index.tolist())
    assert len(seen) > 2 * BATCH


def test_a_loop_that_never_records_is_warned_of() -> None:
    p = pruner("emp")
    loader = pruned(p)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)  # a look before training
    with pytest.warns(UserWarning, match="handed out twice, but none was recorded"):
        list(loader)


def test_records_that_come_after_the_next_epoch_began_are_named() -> None:
    p = pruner("loss")
    loader = pruned(p)
    waiting: list[torch.Tensor] = []
    with pytest.raises(PlanError, match="begins the next epoch before it has recorded the last batch"):
        for _ in range(4):
            for index in to_the_end(loader):
                waiting.append(index)
                if len(waiting) > 2:
                    record(p, waiting.pop(0))
