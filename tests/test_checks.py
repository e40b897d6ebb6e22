"""Errors raised where the mistake is made: what a batch, a selection and a trained epoch must be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from small_pruner import SIZE, pruner, record, train

import dataprune
from dataprune import PlanError, criteria

CRITERIA = [criteria.entropy, criteria.entropy_of("softmax"), criteria.loss_plus_entropy()]

# -- probabilities in the place of logits ----------------------------------------------------------------------------


def batches_of(outputs: torch.Tensor, p: Any, size: int) -> None:
    targets = None if outputs.ndim == 2 else torch.zeros(len(outputs), outputs.shape[1], dtype=torch.int64)
    for rows in torch.arange(len(outputs)).split(size):
        p.loss(rows, torch.ones(len(rows)), outputs[rows], None if targets is None else targets[rows])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("classes", "size"), [(2, 16), (1000, 8), (10, 3), (10, 1)])
def test_probabilities_are_refused(criterion: Any, dtype: torch.dtype, classes: int, size: int) -> None:
    outputs = torch.softmax(3 * torch.randn(SIZE, classes), dim=1).to(dtype)
    p = pruner(criterion=criterion)
    with pytest.raises(ValueError, match=r"outputs are probabilities.*before its softmax; the logarithms"):
        batches_of(outputs, p, size)
    assert p.recorded < 8  # the first rows
    p.loss(torch.arange(20, 30), torch.ones(10), torch.randn(10, classes).to(dtype))


@pytest.mark.parametrize("dim", [1, 2])
def test_probabilities_of_sequences_are_refused(dim: int) -> None:
    outputs = torch.softmax(torch.randn(SIZE, 6, 6), dim=dim)
    with pytest.raises(ValueError, match="outputs are probabilities"):
        batches_of(outputs, pruner(criterion=criteria.loss_plus_entropy()), 4)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    "outputs",
    [
        torch.softmax(torch.randn(SIZE, 4), dim=1).log(),
        torch.zeros(SIZE, 4),
        torch.rand(SIZE, 4),
        torch.full((SIZE, 4), 0.2),
        torch.sigmoid(torch.randn(SIZE, 4)),
        torch.tensor([[0.75, 0.75, -0.5]]).repeat(SIZE, 1),  # sum to 1
        torch.tensor([[1.5, -0.5]]).repeat(SIZE, 1),
        torch.tensor([[0.25, 0.75]]).repeat(SIZE, 1) + 0.1 * torch.rand(SIZE, 2),  # one of them may sum to 1
        torch.cat([torch.tensor([[0.25, 0.75]]).repeat(7, 1), torch.randn(SIZE - 7, 2)]),  # so may a few
    ],
)
def test_logits_are_not_taken_for_probabilities(criterion: Any, outputs: torch.Tensor) -> None:
    for size in (16, 1):
        batches_of(outputs, pruner(criterion=criterion), size)


def test_probabilities_are_fine_where_they_are_not_read_as_logits() -> None:
    outputs = torch.softmax(torch.randn(SIZE, 4), dim=1)

    def least_confident(losses: torch.Tensor, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return -outputs.amax(dim=1)

    for criterion in (criteria.loss, least_confident):
        batches_of(outputs, pruner(criterion=criterion), 16)


@pytest.mark.gpu
def test_probabilities_on_a_gpu_are_refused_at_the_next_selection() -> None:
    p = pruner(criterion=criteria.entropy)
    p.select(0)
    batches_of(torch.softmax(torch.randn(SIZE, 4, device="cuda"), dim=1), p, 16)
    with pytest.raises(ValueError, match="outputs are probabilities"):
        p.select(1)


# -- weights that are lost -------------------------------------------------------------------------------------------


def trained(p: Any, step: Callable[[torch.Tensor, torch.Tensor], Any]) -> list[str]:
    """The warnings of three epochs; `step` gets the positions and losses of a batch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(3):
            for index in p.batches(epoch, 8):
                step(index, (1.0 + index % 7).requires_grad_())
    return [str(each.message) for each in caught]


def test_weights_that_are_lost_are_told_once() -> None:
    p = dataprune.infobatch(SIZE, keep=0.5, epochs=4)
    texts = trained(p, p.update)
    assert len(texts) == 1 and "weights are lost" in texts[0] and "pruner.weight(index)" in texts[0]


@pytest.mark.parametrize("name", ["infobatch", "loss"])
@pytest.mark.parametrize(
    "step",
    [
        lambda p, index, losses: p.loss(index, losses),
        lambda p, index, losses: (p.update(index, losses), p.weight(index)),
        lambda p, index, losses: (p.weight(index), p.update(index, losses)),
        lambda p, index, losses: p.update(index, losses.detach()),  # scores, and trains nothing
        lambda p, index, losses: (p.loss(index, losses, record=False), p.update(index, losses)),
    ],
)
def test_loops_that_weight_are_not_warned(name: str, step: Any) -> None:
    p = dataprune.METHODS[name](SIZE, keep=0.5, epochs=4)
    assert trained(p, lambda index, losses: step(p, index, losses)) == []


def test_methods_that_do_not_weight_may_update_alone() -> None:
    p = dataprune.loss(SIZE, keep=0.5, epochs=4)
    assert trained(p, p.update) == []


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
