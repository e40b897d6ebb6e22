"""Errors raised where the mistake is made: what a batch, a selection and a trained epoch must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from small_pruner import SIZE, pruner, record, train

import dataprune
from dataprune import PlanError

# -- bad input -------------------------------------------------------------------------------------------------------


def test_the_error_for_a_scalar_loss_names_reduction() -> None:
    p = pruner()
    with pytest.raises(ValueError, match="reduction='none'"):
        p.loss(torch.tensor([0, 1]), torch.tensor(0.3))


@pytest.mark.parametrize(
    ("index", "losses", "error"),
    [
        (torch.tensor([0, 1]), torch.rand(3), ValueError),
        (torch.tensor([0, 1]), torch.rand(2, 1), ValueError),
        (torch.tensor([[0, 1]]), torch.rand(1, 2), ValueError),
        (torch.tensor(0), torch.rand(1), ValueError),
        (torch.tensor([0.0, 1.0]), torch.rand(2), TypeError),
        (torch.tensor([True, False]), torch.rand(2), TypeError),
        (torch.tensor([0, 1]), torch.tensor([1, 2]), TypeError),
        ([0, 1], torch.rand(2), TypeError),
        (torch.tensor([0, 1]), [0.1, 0.2], TypeError),
        (torch.tensor([0, SIZE]), torch.rand(2), IndexError),
        (torch.tensor([-1, 0]), torch.rand(2), IndexError),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_at_once(index: Any, losses: Any, error: type[Exception]) -> None:
    p = pruner()
    p.select(0)
    for call in (p.loss, p.update):
        with pytest.raises(error) as raised:
            call(index, losses)
        assert "index" in str(raised.value) or "losses" in str(raised.value)
    assert p.state_dict()["score"].isnan().all()  # and nothing of it is kept


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_refused_at_once(bad: float) -> None:
    p = pruner()
    p.select(0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        record(p, [0, 1, 2], [0.1, bad, 0.2])
    with pytest.raises(ValueError, match="NaN or infinite"):
        record(p, [0, 1], [math.inf, -math.inf])
    record(p, [0, 1], [3e38, 3e38])  # whose sum is not finite, but each is
    assert p.state_dict()["score"].isnan().sum() == SIZE - 2


@pytest.mark.parametrize(("trained", "fine"), [(lambda number: number != 2, True), (lambda number: number % 2, False)])
def test_batches_that_were_never_recorded(trained: Callable[[int], bool], fine: bool) -> None:
    """One that is left out on purpose is the user's business; half of them are a loop that forgets to record."""
    p = pruner(size=10 * SIZE)
    loader = dataprune.prune_loader(torch.utils.data.DataLoader(range(10 * SIZE), batch_size=8), p)  # type: ignore[arg-type]
    for number, (index, _) in enumerate(loader):
        if trained(number):
            p.update(index, torch.ones(len(index)))
    with nullcontext() if fine else pytest.raises(PlanError, match="never recorded"):
        p.select(1)


def test_a_criterion_of_the_wrong_shape_is_refused() -> None:
    p = pruner(criterion=lambda losses, outputs, targets: losses.mean())
    with pytest.raises(ValueError, match="criterion"):
        record(p, [0, 1], [1.0, 2.0])


def test_samples_that_were_not_selected_are_named() -> None:
    p = pruner()
    train(p, 0)
    selected = set(p.select(1).index.tolist())
    strange = next(i for i in range(SIZE) if i not in selected)
    record(p, [strange], [1.0])
    with pytest.raises(PlanError, match="not selected"):
        p.select(2)


def test_batches_smaller_than_one_are_refused() -> None:
    p = pruner()
    with pytest.raises(ValueError, match="batch_size"):
        p.batches(0, 0)
    with pytest.raises(ValueError, match="fewer than one batch"):
        p.batches(0, SIZE + 1)
    assert [len(index) for index in p.batches(0, SIZE + 1, drop_last=False)] == [SIZE]


def test_batches_are_the_selection_in_random_order() -> None:
    p = pruner()
    train(p, 0)
    for drop_last, sizes in ((True, [8, 8]), (False, [8, 8, 4])):
        batches = list(p.batches(1, 8, drop_last=drop_last, device="cpu"))
        assert [len(index) for index in batches] == sizes
        flat = torch.cat(batches).tolist()
        assert set(flat) <= set(p.select(1).index.tolist())
        assert len(set(flat)) == len(flat)
        assert flat != sorted(flat)
