"""A small dataset, loader and pruner that tests of loading share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
)

import dataprune
from dataprune import Pruner

SIZE, BATCH, EPOCHS = 43, 4, 6


class Items(Dataset):
    """Item i is made by `make`(i); a class of its own, so that spawned workers can build it."""

    def __init__(self, kind: str = "tuple", size: int = SIZE):
        self.kind = kind
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.size:
            raise IndexError(index)
        x = torch.full((3,), float(index))
        return {
            "tensor": x,
            "number": index,
            "tuple": (x, index % 5),
            "dict": {"x": x, "text": f"t{index}"},
            "nested": {"a": (x, [index, {"b": x}])},
        }[self.kind]


class Fetched(Items):
    """Reads many items at once."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(self[index], "many") for index in indices]


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(SIZE))


def ragged(items: list[Any]) -> dict[str, Any]:
    """A collate function of the user's own."""
    return {"count": len(items), "first": [item[0] for item in items]}


def pruner(name: str = "rs2", *, size: int = SIZE, epochs: int = EPOCHS, keep: float = 0.5, **options: Any) -> Pruner:
    return dataprune.METHODS[name](size, keep=keep, epochs=epochs, **options)


def loader(dataset: Any = None, **options: Any) -> DataLoader:
    return DataLoader(Items() if dataset is None else dataset, **{"batch_size": BATCH, "shuffle": True, **options})


def record(p: Pruner, index: Tensor) -> None:
    p.update(index, 1.0 + index.float() % 7)


def positions(batches: Any) -> list[list[int]]:
    return [index.tolist() for index, _ in batches]


def reloaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def train(p: Pruner, batches: Any, stop: int | None = None) -> list[list[int]]:
    """From wherever the pruner is; stops right after `stop` batches were recorded."""
    steps: list[list[int]] = []
    if stop == 0:
        return steps
    for _ in range(p.epoch, p.epochs):
        for index, _ in batches:
            record(p, index)
            steps.append(index.tolist())
            if len(steps) == stop:
                return steps
    return steps


def check_resuming(build: Callable[[], tuple[Pruner, DataLoader]]) -> None:
    """A run that is resumed after any batch, the ends of epochs included, trains what an uninterrupted one does."""
    whole = train(*build())
    for instant in range(len(whole) + 1):
        p, batches = build()
        train(p, batches, stop=instant)
        state = reloaded(p.state_dict())
        p, batches = build()
        p.load_state_dict(state)
        assert train(p, batches) == whole[instant:], instant
