"""Learning rates over real steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods_under_test import ROWS, Row, signals
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

import dataprune
from dataprune import Pruner, learning_rate
from dataprune.learning_rate import Progress

SIZE, BATCH = 97, 8


def optimizer(rate: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def walk(
    pruner: Pruner, *, accumulate: int = 1, drop_last: bool = False, each: Callable[[], Any] = lambda: None
) -> list[float]:
    """A whole run; the share done after every step."""
    counter = Progress(pruner, BATCH, accumulate=accumulate, drop_last=drop_last)
    done = []
    for epoch in range(pruner.epochs):
        waiting = 0
        for index in pruner.batches(epoch, BATCH, drop_last=drop_last):
            pruner.update(index, *signals(epoch, index))
            waiting += 1
            if waiting == accumulate:
                done.append(counter.step())
                each()
                waiting = 0
        if waiting:
            done.append(counter.step())
            each()
        for index in pruner.left_out(epoch, BATCH):
            pruner.update(index, *signals(epoch, index))
    return done


@pytest.mark.parametrize("row", [row for row in ROWS if row.exact], ids=lambda row: row.label)
@pytest.mark.parametrize(("accumulate", "drop_last"), [(1, False), (1, True), (3, True), (3, False)])
def test_fixed_budgets_progress_evenly(row: Row, accumulate: int, drop_last: bool) -> None:
    pruner = row.build(SIZE, epochs=9)
    steps = pruner.planned_steps(BATCH, accumulate=accumulate, drop_last=drop_last)
    done = walk(pruner, accumulate=accumulate, drop_last=drop_last)
    assert len(done) == steps
    assert done == pytest.approx([(i + 1) / steps for i in range(steps)], abs=1e-12)
    assert done[-1] == 1.0


@pytest.mark.parametrize(
    "options", [{"keep": 0.3}, {"keep": 0.8}, {"prune_probability": 0.5}, {"keep": 0.05, "anneal": 0.0}]
)
@pytest.mark.parametrize("epochs", [4, 9, 16])
@pytest.mark.parametrize("drop_last", [False, True])
def test_data_dependent_budgets_end_at_one(options: dict, epochs: int, drop_last: bool) -> None:
    done = walk(dataprune.infobatch(SIZE, epochs=epochs, **options), drop_last=drop_last)
    assert done[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(done))


def test_epochs_to_come_are_as_long_as_the_running_one_and_full_ones_full() -> None:
    pruner = dataprune.infobatch(SIZE, keep=0.1, epochs=8, anneal=0.25)
    done, taken = walk(pruner), 0
    selected = dataprune.infobatch(SIZE, keep=0.1, epochs=8, anneal=0.25)
    for epoch in range(8):
        batches = list(selected.batches(epoch, BATCH, drop_last=False))
        for index in batches:
            selected.update(index, *signals(epoch, index))
        pruned, full = max(0, 5 - epoch), min(2, 7 - epoch)
        left = len(batches) * (1 + pruned) + math.ceil(SIZE / BATCH) * full
        if epoch > 0:  # pruned ones are expected as long as the full first one before that
            assert done[taken] == pytest.approx(done[taken - 1] + (1 - done[taken - 1]) / left)
        taken += len(batches)


def test_torchs_cosine() -> None:
    pruner = dataprune.emp(SIZE, keep=0.3, epochs=9)
    steps = pruner.planned_steps(BATCH)
    expected = optimizer(0.1)
    actual = optimizer(0.1)
    reference = CosineAnnealingLR(expected, T_max=steps)
    counter = Progress(pruner, BATCH)
    schedule = counter.scheduler(actual, learning_rate.cosine())
    assert actual.param_groups[0]["lr"] == 0.1
    for epoch in range(9):
        for index in pruner.batches(epoch, BATCH, drop_last=False):
            pruner.update(index, *signals(epoch, index))
            for stepped in (expected, actual):
                stepped.step()
            counter.step()
            schedule.step()
            reference.step()
            assert actual.param_groups[0]["lr"] == pytest.approx(expected.param_groups[0]["lr"], abs=1e-9)
    assert actual.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def rates(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    """The learning rate of each step, the first included."""
    sgd = optimizer(1.0)
    schedule = make(sgd)
    values = []
    for _ in range(steps):
        values.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    return values


@pytest.mark.parametrize("steps", [200, 1000])
def test_torchs_one_cycle(steps: int) -> None:
    """Torch's, whose peak and end come one step earlier: it counts from the first step to the last one taken."""
    expected = rates(lambda sgd: OneCycleLR(sgd, 1.0, total_steps=steps, pct_start=0.3), steps)
    shape = learning_rate.one_cycle()
    assert expected[0] == pytest.approx(shape(0), abs=1e-9)
    for place, value in enumerate(expected):
        assert shape(place / steps) == pytest.approx(value, abs=6 / steps)  # a step on the steepest slope
    assert expected[-1] == pytest.approx(shape(1), abs=1e-9)
    assert max(expected) == pytest.approx(shape(0.3), abs=1e-3)


def test_shapes_at_their_ends() -> None:
    assert learning_rate.constant()(0.3) == 1
    assert (learning_rate.cosine()(0), learning_rate.cosine()(1)) == (1, pytest.approx(0, abs=1e-15))
    assert learning_rate.cosine(0.1)(1) == pytest.approx(0.1)
    assert [learning_rate.linear()(x) for x in (0, 0.25, 1)] == [1, 0.75, 0]
    assert learning_rate.linear(0.2)(1) == pytest.approx(0.2)
    assert [learning_rate.step()(x) for x in (0, 0.33, 1 / 3, 0.5, 2 / 3, 1)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert learning_rate.step((0.5,), 0.2)(0.5) == 0.2
    assert learning_rate.exponential(0.01)(0.5) == pytest.approx(0.1)
    assert learning_rate.exponential(0.01)(1) == pytest.approx(0.01)
    shape = learning_rate.one_cycle(0.3, 25, 1e4)
    assert (shape(0), shape(0.3), shape(1)) == pytest.approx((1 / 25, 1, 1 / 25e4))


def test_the_steps_of_imagenet() -> None:
    """Times 0.1 every 30 of 90 epochs."""
    shape = learning_rate.step()
    for epoch in range(90):
        assert shape(epoch / 90) == pytest.approx(0.1 ** (epoch // 30))


def test_warming_up() -> None:
    shape = learning_rate.warmed_up(learning_rate.linear(), 0.2)
    assert [shape(x) for x in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    plain = learning_rate.cosine()
    assert learning_rate.warmed_up(plain, 0)(0.4) == plain(0.4)
    assert learning_rate.warmed_up(lambda done: 0.5, 0.25)(0.25) == 0.5  # the rise is over
    for share in (-0.1, 1.0, 2.0):
        with pytest.raises(ValueError, match="warm-up"):
            learning_rate.warmed_up(plain, share)


SHAPES = {
    "cosine": learning_rate.cosine(),
    "linear": learning_rate.linear(),
    "step": learning_rate.step(),
    "one_cycle": learning_rate.one_cycle(),
    "exponential": learning_rate.exponential(),
    "warmed_up": learning_rate.warmed_up(learning_rate.cosine(0.1), 0.05),
}


@pytest.mark.parametrize("name", SHAPES)
@given(done=st.floats(0, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_factors_stay_between_zero_and_one(name: str, done: float) -> None:
    assert -1e-12 <= SHAPES[name](done) <= 1 + 1e-12


def test_resuming() -> None:
    def build() -> tuple[Pruner, Progress]:
        pruner = dataprune.infobatch(SIZE, keep=0.6, epochs=8)
        return pruner, Progress(pruner, BATCH)

    def go(pruner: Pruner, counter: Progress, stop: int | None = None) -> list[float]:
        done: list[float] = []
        for epoch in range(pruner.epoch, 8):
            for index in pruner.batches(epoch, BATCH, drop_last=False):
                pruner.update(index, *signals(epoch, index))
                done.append(counter.step())
                if len(done) == stop:
                    return done
        return done

    whole = go(*build())
    for stop in (1, 12, 13, 14, 20, len(whole) - 1):
        pruner, counter = build()
        go(pruner, counter, stop)
        again, other = build()
        again.load_state_dict(pruner.state_dict())
        other.load_state_dict(counter.state_dict())
        assert other.done == counter.done
        assert go(again, other) == whole[stop:]


def test_the_error_for_a_step_before_the_first_epoch_names_the_cause() -> None:
    with pytest.raises(ValueError, match="no epoch"):
        Progress(dataprune.rs2(SIZE, keep=0.5, epochs=4), BATCH).step()


def test_more_steps_than_planned_do_not_pass_the_end() -> None:
    pruner = dataprune.rs2(SIZE, keep=0.5, epochs=1)
    counter = Progress(pruner, BATCH)
    pruner.select(0)
    assert max(counter.step() for _ in range(50)) == 1.0
    assert math.isclose(counter.done, 1.0)


def test_a_run_that_goes_on_for_more_epochs_follows_the_new_plan() -> None:
    def trained(epochs: int, first: int, last: int, state: dict | None = None) -> tuple[Progress, list[float]]:
        pruner = dataprune.rs2(100, keep=0.5, epochs=epochs)
        progress = Progress(pruner, 10)
        if state is not None:
            progress.load_state_dict(state)
        shares = []
        for epoch in range(first, last):
            for _ in pruner.batches(epoch, 10):
                shares.append(progress.step())
        return progress, shares

    half, _ = trained(4, 0, 3)
    _, rest = trained(8, 3, 8, half.state_dict())
    _, whole = trained(8, 0, 8)
    assert rest == pytest.approx(whole[15:])
