"""A position belongs to its sample: collate functions, samplers, datasets and states that would part them."""

from __future__ import annotations

import pickle
import re
import traceback
import warnings
from typing import Any

import pytest
import torch
from methods_under_test import signals
from small_loader import BATCH, SIZE, Items, loader, positions, pruner, record, reloaded
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

import dataprune
from dataprune import CheckpointError, Indexed, IndexedCollate, PlanError, prune_loader

# -- collate functions -----------------------------------------------------------------------------------------------


class Numbers(Dataset):
    def __init__(self, size: int = SIZE, unreadable: tuple[int, ...] = ()):
        self.size, self.unreadable = size, unreadable

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int | None:
        return None if index in self.unreadable else index


def ordered(batch: list[int]) -> torch.Tensor:
    return torch.tensor(sorted(batch))


def readable(batch: list[int | None]) -> torch.Tensor:
    return default_collate([item for item in batch if item is not None])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_collate_that_reorders_is_refused(workers: int) -> None:
    batches = prune_loader(loader(Numbers(), collate_fn=ordered, num_workers=workers), pruner("full", keep=None))
    with pytest.raises(TypeError, match=r"collate_fn \(ordered\).*another order") as raised:
        positions(batches)
    # the frames hold the iterator in a cycle: collected as garbage, it would wait five seconds for each worker
    traceback.clear_frames(raised.tb)


def test_unreadable_samples_take_their_positions_along() -> None:
    gone = (3, 8, 21)
    p = pruner("full", keep=None)
    seen = []
    for index, batch in prune_loader(loader(Numbers(unreadable=gone), collate_fn=readable), p):
        assert torch.equal(index, batch)
        record(p, index)
        seen += index.tolist()
    assert sorted(seen) == [i for i in range(SIZE) if i not in gone]
    assert p.next_epoch == 1


@pytest.mark.parametrize("name", ["loss", "memory", "emp_reverse", "ucb", "epsilon_greedy", "infobatch"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_samples_that_cannot_be_read_do_not_come_first_for_ever(name: str, drop_last: bool) -> None:
    size, gone = 200, set(range(0, 200, 10))
    options = {"every": 1} if name in ("ucb", "epsilon_greedy") else {}

    def build() -> Any:
        return pruner(name, size=size, keep=0.2, epochs=9, **options)

    def epoch(p: Any, data: Dataset) -> tuple[int, list[str]]:
        batches = DataLoader(data, batch_size=8, shuffle=True, drop_last=drop_last, collate_fn=readable)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for index, _ in prune_loader(batches, p):
                losses, logits, targets = signals(p.selected or 0, index)
                p.loss(index, losses, logits, targets)
            p.select(p.next_epoch)
        return len(gone & set(p.select(p.selected).index.tolist())), [str(each.message) for each in caught]

    data, p = Numbers(size, tuple(gone)), build()
    data.fingerprint = "numbers"  # type: ignore[attr-defined]
    selected, texts = epoch(p, data)  # of all samples
    assert not texts  # one reading may fail by accident
    assert set(p.book.score.isinf().nonzero()[:, 0].tolist()) >= gone
    resumed = build()
    resumed.load_state_dict(reloaded(p.state_dict()))
    later = [epoch(p, data) for _ in range(4)]
    texts = [text for _, each in later for text in each]
    assert len(texts) == 1 and re.match(r"\d+ samples were .* in two epochs and recorded in none \(positions", texts[0])
    for count in [selected, *(count for count, _ in later)]:  # as many as of the others; infobatch keeps more than 0.2
        assert count <= (len(gone) if name == "infobatch" else len(gone) / 2)
    assert [count for count, _ in (epoch(resumed, data) for _ in range(4))] == [count for count, _ in later]
    data.unreadable = ()
    for _ in range(3):
        epoch(p, data)
    assert gone & set(p.book.score.isfinite().nonzero()[:, 0].tolist())  # what is read again is scored again


def test_too_many_unreadable_samples_are_named() -> None:
    p = pruner("loss", keep=0.5)
    data = Numbers(unreadable=tuple(range(0, SIZE, 2)))
    for index, _ in prune_loader(loader(data, batch_size=16, collate_fn=readable), p):
        record(p, index)
    with pytest.raises(PlanError, match=r"22 of them .* \(positions 0, 2, 4, 6, 8 \.\.\.\).*cannot be read"):
        p.select(1)


def test_a_dropped_tail_is_not_unreadable() -> None:
    p = pruner("loss", size=200, keep=0.3, epochs=12, warmup=3)
    for _ in range(12):
        for index, _ in prune_loader(loader(Numbers(200), batch_size=32, drop_last=True), p):
            record(p, index)
    assert p.book.score.isfinite().all()


def test_a_collate_that_fills_unreadable_samples_keeps_their_positions() -> None:
    collate = IndexedCollate(lambda batch: torch.tensor([-1 if item is None else item for item in batch]))
    index, batch = collate([(0, 0), (1, None), (2, 2)])
    assert index.tolist() == [0, 1, 2] and batch.tolist() == [0, -1, 2]


def test_a_collate_that_drops_other_samples_is_named_by_the_pruner() -> None:
    index, batch = IndexedCollate(lambda batch: torch.tensor([item for item in batch if item != 2]))(
        [(1, 1), (2, 2), (3, 3)]
    )
    with pytest.raises(ValueError, match="collate_fn that drops samples"):
        pruner().update(index, batch.float())


# -- samplers --------------------------------------------------------------------------------------------------------


class Weighted(DistributedSampler):
    pass


class Grouped(RandomSampler):
    pass


class Backwards(SequentialSampler):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda data: Weighted(data, num_replicas=1, rank=0),
        Grouped,
        Backwards,
    ],
)
def test_subclasses_of_samplers_are_refused(make: Any) -> None:
    data = Items()
    with pytest.raises(TypeError, match="chooses samples itself"):
        prune_loader(loader(data, shuffle=False, sampler=make(data)), pruner())


def test_a_sampler_of_other_data_is_refused() -> None:
    with pytest.raises(ValueError, match="10 samples"):
        prune_loader(
            loader(shuffle=False, sampler=DistributedSampler(Items(size=10), num_replicas=1, rank=0)), pruner()
        )


class WithArguments(DataLoader):
    def __init__(self, dataset: Any, flavour: str, **options: Any):
        super().__init__(dataset, **options)


class Narrow(DataLoader):
    def __init__(self, dataset: Any, batch_size: int):
        super().__init__(dataset, batch_size=batch_size)


class Renamed(DataLoader):
    """Takes all of DataLoader's arguments."""


def test_loader_subclasses_with_arguments_of_their_own_are_named() -> None:
    with pytest.raises(TypeError, match=r"WithArguments has arguments of its own \(flavour\)"):
        prune_loader(WithArguments(Items(), "sweet", batch_size=BATCH), pruner())
    with pytest.raises(TypeError, match="Narrow has arguments of its own"):
        prune_loader(Narrow(Items(), BATCH), pruner())
    assert isinstance(prune_loader(Renamed(Items(), batch_size=BATCH), pruner()), Renamed)


# -- datasets --------------------------------------------------------------------------------------------------------


def test_attributes_of_the_dataset_go_through() -> None:
    data = Items()
    data.classes, data.mosaic = ["a", "b"], True  # type: ignore[attr-defined]
    pruned: Any = prune_loader(loader(data), pruner()).dataset
    assert pruned.classes == ["a", "b"]
    pruned.mosaic = False
    assert data.mosaic is False  # type: ignore[attr-defined]
    del pruned.mosaic
    assert not hasattr(data, "mosaic") and not hasattr(pruned, "mosaic")
    with pytest.raises(AttributeError, match="flavour"):
        _ = pruned.flavour
    copied = pickle.loads(pickle.dumps(Indexed(Items())))
    assert copied[3][0] == 3 and copied.kind == "tuple"


def test_a_dataset_that_changes_its_length_is_noticed_at_the_next_epoch() -> None:
    data = Items()
    p = pruner()
    batches = prune_loader(loader(data), p)
    positions(batches)
    data.size += 1
    with pytest.raises(ValueError, match=r"44 samples.*built for 43.*new pruner"):
        positions(batches)


def test_a_state_is_refused_with_other_data_or_another_order() -> None:
    x = torch.randn(SIZE, 3)
    data, other = TensorDataset(x, torch.arange(SIZE)), TensorDataset(x.flip(0), torch.arange(SIZE).flip(0))
    p = pruner("loss")
    for index, _ in prune_loader(loader(data), p):
        record(p, index)
    state = reloaded(p.state_dict())
    for first in (True, False):  # the loader before the state, and after it
        q = pruner("loss")
        if first:
            prune_loader(loader(other), q)
            with pytest.raises(CheckpointError, match="other data, or of the same samples in another order"):
                q.load_state_dict(state)
        else:
            q.load_state_dict(state)
            with pytest.raises(CheckpointError, match="another order"):
                prune_loader(loader(other), q)
        right = pruner("loss")
        right.load_state_dict(state)
        prune_loader(loader(TensorDataset(x.clone(), torch.arange(SIZE))), right)
        assert right.state_dict()["data"] == state["data"]
    unbound = pruner("loss")  # in a loop without a loader, as before
    unbound.load_state_dict(state)
    assert unbound.state_dict()["data"] == state["data"]


@pytest.mark.parametrize("name", ["loss", "rs2"])
def test_a_pruner_that_has_trained_is_refused_other_data_of_the_same_size(name: str) -> None:
    data, other = TensorDataset(torch.randn(SIZE, 3)), TensorDataset(torch.randn(SIZE, 3))
    p = pruner(name)
    prune_loader(loader(other), p)  # nothing is recorded yet, so that nothing can go to other samples
    for index, _ in prune_loader(loader(data), p):
        record(p, index)
    prune_loader(loader(TensorDataset(data.tensors[0].clone())), p)
    with pytest.raises(CheckpointError, match=r"scores are of other data.*another pruner"):
        prune_loader(loader(other), p)
    state = reloaded(p.state_dict())
    fresh = pruner(name)
    fresh.load_state_dict(state)
    prune_loader(loader(data), fresh)
    with pytest.raises(CheckpointError, match="other data"):
        prune_loader(loader(other), fresh)


def test_balance_takes_names_of_classes() -> None:
    names = [("cat", "dog", "eel")[i % 3] for i in range(SIZE)]
    by_name = dataprune.loss(SIZE, keep=0.5, epochs=4, balance=names)
    by_number = dataprune.loss(SIZE, keep=0.5, epochs=4, balance=[i % 3 for i in range(SIZE)])
    for p in (by_name, by_number):
        p.update(torch.arange(SIZE), torch.rand(SIZE, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(by_name.select(1).index, by_number.select(1).index)
