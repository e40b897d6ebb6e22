"""Fingerprints of datasets, and collate functions that change the order of samples."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from dataprune import content, fingerprint


@pytest.fixture
def dataset() -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(50, 3, generator=draw), torch.arange(50) % 4)


class Items(Dataset):
    def __init__(self, items: list):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


# -- fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprint_tells_datasets_apart(dataset: TensorDataset) -> None:
    x, y = dataset.tensors
    assert fingerprint(dataset) == fingerprint(TensorDataset(x.clone(), y.clone()))
    assert fingerprint(dataset) != fingerprint(TensorDataset(x[:-1], y[:-1]))
    assert fingerprint(dataset) != fingerprint(TensorDataset(x + 1, y))
    assert fingerprint(dataset) != fingerprint(TensorDataset(x, (y + 1) % 4))
    assert fingerprint(dataset) != fingerprint(TensorDataset(x.flip(0), y.flip(0)))


def test_fingerprint_takes_any_structure() -> None:
    kinds = [
        [{"text": f"sample {i}", "label": i} for i in range(20)],
        [(np.full((2, 2), i), {"b": [i, (i, None)]}) for i in range(20)],
        [str(i) for i in range(20)],
        [bytes([i]) for i in range(20)],
        [float(i) for i in range(20)],
        [torch.tensor(i, dtype=torch.bfloat16) for i in range(20)],
    ]
    prints = [fingerprint(Items(items)) for items in kinds]
    assert len(set(prints)) == len(kinds)
    for items, text in zip(kinds, prints, strict=True):
        assert fingerprint(Items(items)) == fingerprint(items) == text
        assert fingerprint(Items(items[::-1])) != text


def test_fingerprint_does_not_depend_on_addresses_or_augmentation() -> None:
    class Thing:
        pass

    assert fingerprint(Items([Thing() for _ in range(5)])) == fingerprint(Items([Thing() for _ in range(5)]))

    class Augmented(Items):
        def __getitem__(self, index: int) -> object:
            return self.items[index], torch.rand(3), np.random.rand(), random.random()

    items = list(range(30))
    assert fingerprint(Augmented(items)) == fingerprint(Augmented(items))


def test_fingerprint_leaves_global_randomness_alone() -> None:
    class Augmented(Items):
        def __getitem__(self, index: int) -> object:
            return torch.rand(3), np.random.rand(), random.random()

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    fingerprint(Augmented(list(range(9))))
    after = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    assert after == (torch.rand(1).item(), np.random.rand(), random.random())


def test_a_dataset_may_bring_its_own_fingerprint() -> None:
    class Known(Items):
        fingerprint = "v1"

        def __getitem__(self, index: int) -> object:
            raise AssertionError("read")

    assert fingerprint(Known([1, 2])) == "v1"


def test_fingerprint_of_nothing() -> None:
    assert fingerprint(Items([])) == fingerprint(Items([]))
    assert fingerprint(Items([])) != fingerprint(Items([1]))


class Drawn(Items):
    """Augments by the generator of `source`; a third of the time the sample stays as it is."""

    def __init__(self, items: list, source: str):
        super().__init__(items)
        self.source = source
        self.own = {"own": np.random.default_rng(), "own torch": torch.Generator(), "own python": random.Random()}

    def __getitem__(self, index: int) -> object:
        draw = {
            "torch": lambda: float(torch.rand(())),
            "numpy": np.random.rand,
            "python": random.random,
            "own": self.own["own"].random,
            "own torch": lambda: float(torch.rand((), generator=self.own["own torch"])),
            "own python": self.own["own python"].random,
        }[self.source]
        return torch.tensor(self.items[index]) * (1 if draw() < 1 / 3 else 2), index % 3


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_random_augmentation_gives_one_fingerprint(source: str) -> None:
    items = [[float(i), 1.0] for i in range(60)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len({fingerprint(Drawn(items, source)) for _ in range(20)}) == 1
        assert fingerprint(Drawn(items[::-1], source)) != fingerprint(Drawn(items, source))


@pytest.mark.filterwarnings("ignore:.*two reads of a sample of Drawn differ")
@pytest.mark.parametrize("source", ["own", "own torch", "own python"])
def test_a_generator_of_its_own_leaves_the_content_out(source: str) -> None:
    items = [[float(i), 1.0] for i in range(60)]
    data = Drawn(items, source)
    with pytest.warns(UserWarning, match="attribute `fingerprint`"):
        first = fingerprint(data)
    assert {fingerprint(data) for _ in range(20)} == {first}
    assert fingerprint(Drawn(items[:-1], source)) != first
    labelled = Drawn(items, source)
    labelled.targets = list(range(60))  # type: ignore[attr-defined]
    assert fingerprint(labelled) != first


def test_structure_counts_where_the_content_does_not() -> None:
    class Drawn(Items):
        dice = random.Random(0)

        def __getitem__(self, index: int) -> object:
            return self.items[0](self.dice.random())

    kinds: list[Callable[[float], Any]] = [
        lambda x: x, str, lambda x: [x], lambda x: [x, x], lambda x: [x, str(x)], lambda x: {"a": x},
        lambda x: {"b": x}, lambda x: {"a": str(x)}, lambda x: {"a": {"a": x}}, torch.tensor, np.array,
        lambda x: torch.tensor(x).half(),
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="two reads of a sample of Drawn differ"):
        assert len({fingerprint(Drawn([kind])) for kind in kinds}) == len(kinds)


def test_a_file_that_the_first_sample_opens_is_not_kept_open() -> None:
    class Lazy(Items):
        file: Any = None

        def __getitem__(self, index: int) -> object:
            self.file = self.file or object()
            return self.items[index]

    data = Lazy([1, 2, 3])
    fingerprint(data)
    assert data.file is None


class Transform:
    """Draws from a generator of its own, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.own = torch.Generator().manual_seed(5)

    def __call__(self, item: float) -> float:
        self.calls += 1
        return item + float(torch.rand((), generator=self.own))


class Stateful(Items):
    """Counts its reads, and draws from generators that it holds and that its transform does."""

    def __init__(self, items: list, transforms: list[Transform]):
        super().__init__(items)
        self.reads, self.transforms, self.whole = 0, transforms, self
        self.numpy, self.own = np.random.default_rng(5), {"python": random.Random(5)}

    def __getitem__(self, index: int) -> object:
        self.reads += 1
        assert self.whole is self
        for transform in self.transforms:
            transform(0.0)
        return self.items[index], self.numpy.random(), self.own["python"].random()


class Plain:
    """A dataset of no base class, around another."""

    def __init__(self, inner: Any):
        self.inner, self.reads = inner, 0

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> object:
        self.reads += 1
        return self.inner[index]


@pytest.mark.parametrize(
    "around",
    [
        lambda data: data,
        lambda data: Subset(data, range(9)),
        lambda data: ConcatDataset([data, data]),
        lambda data: Subset(Plain(ConcatDataset([Subset(data, range(9))])), range(5)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*two reads of a sample")
def test_reading_changes_no_state_of_datasets_in_datasets(around: Callable[[Any], Any]) -> None:
    transform = Transform()
    data = Stateful(list(range(9)), [transform])
    fingerprint(around(data))
    assert (data.reads, transform.calls) == (0, 0)
    assert data.numpy.random() == np.random.default_rng(5).random()
    assert data.own["python"].random() == random.Random(5).random()
    assert torch.equal(
        torch.rand(3, generator=transform.own), torch.rand(3, generator=torch.Generator().manual_seed(5))
    )


# -- collate functions -----------------------------------------------------------------------------------------------


def items(lengths: tuple[int, ...] = (3, 5, 3, 2, 4)) -> list[Any]:
    return [(torch.full((length,), float(i)), i % 2) for i, length in enumerate(lengths)]


def padded(batch: list[Any]) -> Any:
    x = torch.nn.utils.rnn.pad_sequence([x for x, _ in batch], batch_first=True)
    return x, torch.tensor([y for _, y in batch])


def by_length(batch: list[Any]) -> Any:
    return padded(sorted(batch, key=lambda item: -len(item[0])))


def in_place(batch: list[Any]) -> Any:
    batch.sort(key=lambda item: -len(item[0]))
    return padded(batch)


def packed(batch: list[Any]) -> Any:
    return pack_sequence([x for x, _ in batch], enforce_sorted=False), torch.tensor([y for _, y in batch])


def shuffled(batch: list[Any]) -> Any:
    return padded(random.sample(batch, len(batch)))


def mixed(batch: list[Any]) -> Any:
    x, y = padded(batch)
    return x * torch.rand(()) + x.flip(0) * torch.rand(()), y


def negatives(batch: list[Any]) -> Any:
    x, y = padded(batch)
    return {"anchor": x, "negative": x.roll(1, 0), "label": y}


def texts(batch: list[Any]) -> Any:
    return [str(x.tolist()) for x, _ in batch]


class Opaque:
    def __init__(self, batch: list[Any]):
        self.batch = padded(batch)


@pytest.mark.parametrize(
    ("collate", "expected"),
    [
        (padded, False),
        (packed, False),
        (mixed, False),
        (negatives, False),
        (texts, False),
        (Opaque, False),
        (lambda batch: {"x": [x for x, _ in batch]}, False),
        (by_length, True),
        (in_place, True),
        (lambda batch: texts(sorted(batch, key=lambda item: len(item[0]))), True),
        (lambda batch: torch.tensor(sorted(x[0].item() for x, _ in batch)), True),
    ],
)
def test_reordering_is_seen(collate: Callable[[list[Any]], Any], expected: bool) -> None:
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    states = torch.get_rng_state(), random.getstate()
    given = items()
    assert content.reorders(collate, given) is expected
    assert all(torch.equal(a[0], b[0]) for a, b in zip(given, items(), strict=True))
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()


def test_equal_items_and_errors_tell_nothing() -> None:
    assert content.reorders(default_collate, [torch.ones(2)] * 4) is None
    assert content.reorders(default_collate, [torch.ones(2)]) is None
    assert content.reorders(default_collate, items()) is None  # of different lengths: it raises


def test_items_that_a_collate_takes_apart_are_copied() -> None:
    def popping(batch: list[Any]) -> Any:
        return {"y": torch.tensor([item.pop("y") for item in batch]), "x": torch.tensor([item["x"] for item in batch])}

    given = [{"x": i, "y": i + 1} for i in range(4)]
    assert content.reorders(popping, given) is False
    assert all("y" in item for item in given)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.ones(3, 2), 3),
        ({"a": (np.ones(4), 1)}, 4),
        (["a", "b"], 2),
        ([torch.ones(5), torch.ones(5)], 5),
        (7, None),
    ],
)
def test_rows(batch: Any, count: int | None) -> None:
    assert content.rows(batch) == count
