"""Student's t against scipy.stats, and its special cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dataprune.lab.report import significance

stats = pytest.importorskip("scipy.stats")
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
def test_paired_equals_scipys(count: int) -> None:
    values = RANDOM.normal(0.5, 1, count)
    assert significance.paired(values.tolist()) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_mean_at_the_detectable_distance_has_p_at_the_level(count: int) -> None:
    values = RANDOM.normal(0, 1, count)
    standard = (values - values.mean()) / values.std(ddof=1)
    distance = significance.detectable(count)
    assert distance is not None
    assert significance.paired((standard + distance).tolist()) == pytest.approx(significance.LEVEL)


def test_probability_positive_is_half_of_p_on_the_other_side() -> None:
    for mean, freedom in itertools.product((-2.0, 0.3, 1.5), (1, 4, 20)):
        assert significance.probability_positive(mean, 0.7, freedom) == pytest.approx(stats.t.cdf(mean / 0.7, freedom))


@pytest.mark.parametrize(("value", "p"), [(0.125, 0.0), (-0.1, 0.0), (0.0, 1.0)])
def test_equal_differences_are_certain(value: float, p: float) -> None:
    assert significance.paired([value] * 3) == p
    assert significance.probability_positive(value, 0.0, 2) == {0.125: 1.0, -0.1: 0.0, 0.0: 0.5}[value]


def test_rounding_is_no_spread() -> None:
    assert significance.paired([0.1 + 0.2, 0.3, 0.3]) == 0.0
    assert significance.paired([0.1 + 0.2 - 0.3, 0.0, 0.0]) == 1.0


def test_a_single_value_has_no_test() -> None:
    assert significance.paired([1.0]) is None and significance.detectable(1) is None
    assert significance.moments([2.0]) == (2.0, 0.0)
