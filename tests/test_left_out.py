"""Methods that read the scores of what an epoch leaves out: which samples a loop forwards, and what if it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods_under_test import CLASSES, signals
from small_pruner import SIZE, reloaded
from torch import Tensor
from torch.utils.data import DataLoader

import dataprune
from dataprune import PlanError, Pruner, learning_rate, prune_loader


def pruner(epochs: int = 6, **options: Any) -> Pruner:
    return dataprune.ies(SIZE, keep=0.4, epochs=epochs, **options)


def loader(p: Pruner, **options: Any) -> DataLoader:
    return prune_loader(DataLoader(range(SIZE), batch_size=8, shuffle=True, **options), p)  # type: ignore[arg-type]


def record(p: Pruner, epoch: int, index: Tensor) -> None:
    """With the right class for certain, so that kakurenbo hides all that it may."""
    losses, _, targets = signals(epoch, index)
    p.update(index, losses, 10 * F.one_hot(targets, CLASSES).float(), targets)


def train(p: Pruner, epoch: int, batches: Any = None) -> None:
    for index in p.batches(epoch, 8, drop_last=False) if batches is None else (index for index, _ in batches):
        record(p, epoch, index)


def forward(p: Pruner, epoch: int, stop: int | None = None) -> list[int]:
    """The positions that were forwarded, at most `stop` batches of seven."""
    positions: list[int] = []
    for index in list(p.left_out(epoch, 7))[:stop]:
        record(p, epoch, index)
        positions += index.tolist()
    return positions


def test_what_is_left_out_is_handed_out_once() -> None:
    p = pruner()
    train(p, 0)
    assert forward(p, 0) == []  # a full epoch
    selected = set(p.select(1).index.tolist())
    train(p, 1)
    assert forward(p, 1) == sorted(set(range(SIZE)) - selected)
    assert p.stats()["draws"] == [0, 30, 20]  # what was forwarded is not drawn
    p.select(2)
    assert bool((p.book.score == signals(1, torch.arange(SIZE))[0]).all())


def test_in_the_last_epoch_nothing_is_forwarded() -> None:
    p = pruner(epochs=2, warmup=0)
    for epoch, count in ((0, 30), (1, 0)):
        train(p, epoch)
        assert len(forward(p, epoch)) == count
    assert p.epoch == 2


@pytest.mark.parametrize("name", ["loss", "rs2", "infobatch"])
def test_other_methods_forward_nothing(name: str) -> None:
    p = dataprune.METHODS[name](SIZE, keep=0.7, epochs=4)
    for epoch in range(4):
        train(p, epoch)
        assert forward(p, epoch) == []
    assert p.epoch == 4


@pytest.mark.parametrize("name", ["ies", "kakurenbo"])
@pytest.mark.parametrize("by_loader", [False, True])
def test_a_loop_that_forwards_nothing_is_told_what_to_do(name: str, by_loader: bool) -> None:
    p = dataprune.METHODS[name](SIZE, keep=0.4, epochs=6, warmup=0)
    batches = loader(p) if by_loader else None
    train(p, 0, batches)
    forward(p, 0)
    train(p, 1, batches)
    left = SIZE - len(p.select(1))
    message = rf"epoch 1 left out {left} samples, and {left} of them were not forwarded: .*pruner\.left_out\(epoch"
    with pytest.raises(PlanError, match=message):
        train(p, 2, batches)


def test_a_few_that_are_not_forwarded_may_be_unreadable() -> None:
    p = pruner()
    train(p, 0)
    train(p, 1)
    forward(p, 1, stop=4)  # 28 of 30
    p.select(2)


def test_an_abandoned_epoch_needs_no_forwards() -> None:
    p = pruner()
    train(p, 0)
    record(p, 1, next(iter(p.batches(1, 8))))
    p.select(2)


@pytest.mark.parametrize("stop", range(6))
@pytest.mark.parametrize("by_loader", [False, True])
def test_resuming_while_samples_are_forwarded(stop: int, by_loader: bool) -> None:
    """The resumed loop begins in the same epoch, trains nothing again, and forwards the rest."""
    p = pruner()
    batches = loader(p) if by_loader else None
    for epoch in (0, 1):
        train(p, epoch, batches)
        first = forward(p, epoch, stop=stop)
    q = pruner()
    q.load_state_dict(reloaded(p.state_dict()))
    left = sorted(set(range(SIZE)) - set(p.select(1).index.tolist()) - set(first))
    assert q.epoch == (1 if left else 2)
    if not left:
        return
    batches = loader(q) if by_loader else None
    recorded = q.recorded
    train(q, 1, batches)
    assert q.recorded == recorded
    assert forward(q, 1) == left
    whole = pruner()
    for epoch in (0, 1):
        train(whole, epoch)
        forward(whole, epoch)
    train(q, 2, batches)
    assert q.recorded == 20
    assert torch.equal(q.select(2).index, whole.select(2).index)
    assert torch.equal(q.book.score, whole.book.score)


def test_the_learning_rate_of_kakurenbo_rises_by_what_may_be_hidden() -> None:
    for rate in (True, False):
        p = dataprune.kakurenbo(SIZE, keep=0.4, epochs=4, rate=rate)
        progress = learning_rate.Progress(p, 10)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = progress.scheduler(optimizer, learning_rate.constant())
        assert progress.factor == 1.0
        for epoch, factor in ((0, 1.0), (1, 2.5 if rate else 1.0)):
            for index in p.batches(epoch, 10):
                record(p, epoch, index)
                optimizer.step()
                progress.step()
                scheduler.step()
            assert progress.factor == factor
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * factor)
            forward(p, epoch)
    assert learning_rate.Progress(dataprune.rs2(SIZE, keep=0.4, epochs=4), 10).factor == 1.0
