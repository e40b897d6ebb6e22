"""Accelerate in one process: looks at a prepared loader, and batches that are skipped twice."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("accelerate", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

import torch
import torch.nn.functional as F
from accelerate import Accelerator, skip_first_batches
from torch.utils.data import DataLoader, TensorDataset

import dataprune

SIZE, BATCH, EPOCHS = 48, 8, 4


def emp() -> Any:
    """48, 15, 15, 48 samples."""
    return dataprune.emp(SIZE, keep=0.3125, epochs=EPOCHS, anneal=0.25)


def memory() -> Any:
    return dataprune.memory(SIZE, keep=0.5, epochs=EPOCHS)


def rs2() -> Any:
    return dataprune.rs2(SIZE, keep=0.25, epochs=EPOCHS)


def loader(pruner: Any, prepare: bool = True) -> Any:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(SIZE, 10, generator=generator), torch.randint(3, (SIZE,), generator=generator))
    pruned = dataprune.prune_loader(DataLoader(data, batch_size=BATCH, shuffle=True), pruner)
    return Accelerator(cpu=True).prepare(pruned) if prepare else pruned


def trained(pruner: Any, batches: Any) -> list[int]:
    """Positions of an epoch, in order."""
    torch.manual_seed(0)
    layer, seen = torch.nn.Linear(10, 3), []
    for index, (x, y) in batches:
        pruner.loss(index, F.cross_entropy(layer(x), y, reduction="none"), layer(x), y)
        seen += index.tolist()
    return seen


@pytest.mark.parametrize(
    ("build", "looks"), [(emp, (0,)), (emp, (0, 1, 2, 3, 3)), (memory, (2, 2)), (rs2, (1,)), (rs2, (1, 2, 2, 3))]
)
def test_a_look_at_a_prepared_loader_uses_up_no_epoch(build: Any, looks: tuple[int, ...]) -> None:
    plain, pruner = build(), build()
    alone, prepared = loader(plain, prepare=False), loader(pruner)
    for epoch in range(EPOCHS):
        for _ in range(looks.count(epoch)):
            assert sum(len(index) for index, _ in prepared) > 0  # an accuracy
        assert trained(pruner, prepared) == trained(plain, alone), epoch
    assert pruner.epoch == EPOCHS
    assert torch.allclose(pruner.book.score, plain.book.score, rtol=0, atol=0, equal_nan=True)


def test_a_loop_that_records_nothing_at_all_goes_on() -> None:
    plain, pruner = rs2(), rs2()
    alone, prepared = loader(plain, prepare=False), loader(pruner)
    for _ in range(EPOCHS):
        assert [index.tolist() for index, _ in prepared] == [index.tolist() for index, _ in alone]


def test_a_loop_that_sets_its_epochs_itself_is_obeyed() -> None:
    pruner = emp()
    pruned = loader(pruner, prepare=False)
    for epoch in range(EPOCHS):
        pruned.sampler.set_epoch(epoch)
        trained(pruner, pruned)
        sum(len(index) for index, _ in pruned)  # a look that sets none
        assert pruner.selected == min(epoch + 1, EPOCHS - 1)


@pytest.mark.parametrize("prepare", [False, True])
def test_batches_that_are_skipped_twice_are_warned_of(prepare: bool) -> None:
    pruner = emp()
    batches = iter(loader(pruner, prepare))
    trained(pruner, (next(batches) for _ in range(3)))
    state = pruner.state_dict()

    again = emp()
    again.load_state_dict(state)
    rest = loader(again, prepare)
    with pytest.warns(UserWarning, match=r"Do not skip batches as well \(accelerate.skip_first_batches"):
        trained(again, skip_first_batches(rest, 1))

    right = emp()
    right.load_state_dict(state)
    assert len(trained(right, loader(right, prepare))) == 24
