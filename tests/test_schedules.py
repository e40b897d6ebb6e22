"""Schedules: epoch -> fraction kept."""

from __future__ import annotations

import itertools
import math

import pytest

from dataprune import schedules


def test_constant() -> None:
    assert [schedules.constant(0.3)(epoch) for epoch in (0, 1, 1000)] == [0.3] * 3


def test_window_is_full_before_and_after() -> None:
    assert [schedules.window(0.2, 2, 4)(epoch) for epoch in range(6)] == [1, 1, 0.2, 0.2, 1, 1]


def test_an_empty_window_is_full() -> None:
    assert [schedules.window(0.2, 3, 3)(epoch) for epoch in range(5)] == [1] * 5
    assert [schedules.window(0.2, 4, 2)(epoch) for epoch in range(5)] == [1] * 5


def test_linear_begins_and_ends_at_its_arguments() -> None:
    schedule = schedules.linear(0.9, 0.1, 9)
    values = [schedule(epoch) for epoch in range(9)]
    assert values[0] == 0.9
    assert values[-1] == pytest.approx(0.1)
    assert all(b - a == pytest.approx(-0.1) for a, b in itertools.pairwise(values))
    assert schedules.linear(0.5, 0.1, 1)(0) == 0.5


@pytest.mark.parametrize("keep", [0, -1, 1.5, math.nan, math.inf, None, "0.5", True])
def test_fractions_outside_their_range_are_refused(keep: object) -> None:
    for build in (
        lambda: schedules.constant(keep),  # type: ignore[arg-type]
        lambda: schedules.window(keep, 0, 1),  # type: ignore[arg-type]
        lambda: schedules.linear(keep, 0.5, 3),  # type: ignore[arg-type]
        lambda: schedules.linear(0.5, keep, 3),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            build()


def test_other_arguments_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="start"):
        schedules.window(0.5, -1, 3)
    with pytest.raises(ValueError, match="epochs"):
        schedules.linear(1.0, 0.5, 0)
    with pytest.raises(ValueError, match="anneal"):
        schedules.full_from(10, 1.01)


@pytest.mark.parametrize(
    ("epochs", "anneal", "first"),
    [(200, 0.125, 175), (24, 0.125, 21), (10, 0.125, 9), (10, 0.0, 10), (10, 1.0, 0), (10, 0.7, 3), (9, 0.125, 8)],
)
def test_annealing_starts_at_the_ceiling(epochs: int, anneal: float, first: int) -> None:
    assert schedules.full_from(epochs, anneal) == first


def test_annealing_is_not_misled_by_binary_fractions() -> None:
    for epochs in range(1, 301):
        for percent in range(0, 101):
            exact = -(-(100 - percent) * epochs // 100)  # in whole numbers
            assert schedules.full_from(epochs, percent / 100) == exact


def test_a_fraction_of_a_size_may_be_a_number_of_samples() -> None:
    assert [schedules.fraction_of(keep, 10) for keep in (0.25, 1, 1.0, 2, 10)] == [0.25, 1, 1, 0.2, 1]
    with pytest.raises(ValueError, match="keep asks for 11 samples, there are 10"):
        schedules.fraction_of(11, 10)
    for keep in (0, 1.5, -1, True):
        with pytest.raises(ValueError, match=r"keep is the fraction kept, in \(0, 1\]"):
            schedules.fraction_of(keep, 10)
