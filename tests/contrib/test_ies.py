"""Instance-dependent early stopping, against the rule in plain Python."""

from __future__ import annotations

import pytest
import torch
from methods_under_test import SIZE, signals

import dataprune
from dataprune import Pruner
from dataprune.contrib import LossBook


def change(losses: list[float]) -> float | None:
    """Mean of the last three absolute second differences, of at least four."""
    second = [losses[t] - 2 * losses[t - 1] + losses[t - 2] for t in range(2, len(losses))]
    return sum(abs(value) for value in second[-3:]) / 3 if len(second) >= 4 else None


def record(pruner: Pruner, epoch: int) -> list[int]:
    """Record all samples, trained or forwarded; returns the selection."""
    for index in [*pruner.batches(epoch, 8, drop_last=False), *pruner.left_out(epoch, 16)]:
        pruner.update(index, *signals(epoch, index))
    return pruner.select(epoch).index.tolist()


@pytest.mark.parametrize("threshold", [None, 2.0, 3.5])
def test_samples_whose_loss_has_come_to_rest_are_dropped(threshold: float | None) -> None:
    epochs, count = 14, int(0.3 * SIZE + 0.5)
    pruner = dataprune.ies(SIZE, keep=0.3, epochs=epochs, threshold=threshold)
    histories: list[list[float]] = [[] for _ in range(SIZE)]
    kept = set()
    for epoch in range(epochs):
        index = record(pruner, epoch)
        changes = [change(losses) for losses in histories]
        if epoch == 0 or (epoch < 6 and threshold is not None):
            assert len(index) == SIZE
        elif epoch < 6:
            assert len(index) == count  # drawn at random
        else:
            known = [value for value in changes if value is not None]
            assert len(known) == SIZE
            resting = 0 if threshold is None else sum(value < threshold for value in known)
            number = count if threshold is None else max(count, SIZE - resting)
            assert index == sorted(sorted(range(SIZE), key=known.__getitem__)[SIZE - number :])
            kept.add(number)
        for sample, loss in enumerate(signals(epoch, torch.arange(SIZE))[0].tolist()):
            histories[sample].append(loss)
    assert len(kept) > (threshold == 2.0)  # the threshold decides in some epochs


def test_the_book_keeps_six_losses_in_order() -> None:
    book = LossBook(3)
    book.record(torch.tensor([1, 1, 0]), torch.tensor([1.0, 2.0, 9.0]))
    for loss in (4.0, 7.0, 11.0):
        assert book.change().isnan().all()
        book.record(torch.tensor([1]), torch.tensor([loss]))
    assert book.change().isnan().all()
    book.record(torch.tensor([1]), torch.tensor([20.0]))  # second differences 1, 1, 1, 5
    assert book.change()[1] == pytest.approx(7 / 3)
    book.record(torch.tensor([1]), torch.tensor([29.0]))  # and 0
    assert book.change()[1] == pytest.approx(2)
    assert book.change()[[0, 2]].isnan().all()
    other = LossBook(3)
    other.load_state_dict(book.state_dict())
    assert torch.equal(other.change().nan_to_num(-1), book.change().nan_to_num(-1))


def test_the_plan_is_exact_without_a_threshold() -> None:
    assert dataprune.ies(100, keep=0.3, epochs=4).epoch_sizes() == [100, 30, 30, 30]
    assert dataprune.ies(100, keep=0.3, epochs=4, threshold=1e-3).epoch_sizes() == [100] * 4


def test_arguments_out_of_range() -> None:
    for threshold in (-1.0, float("nan"), float("inf"), True, "1e-3"):
        with pytest.raises(ValueError, match="threshold is the least change of a loss, at least 0, got"):
            dataprune.ies(SIZE, keep=0.3, epochs=4, threshold=threshold)  # type: ignore[arg-type]
