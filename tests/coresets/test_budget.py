"""What selectors share: sizes of chunks, checks of features, and places by class."""

from __future__ import annotations

import pytest
import torch

from dataprune import Key
from dataprune.coresets import budget


@pytest.mark.parametrize(
    ("size", "memory", "row", "rows", "used"),
    [
        (1000, 1000, 10, 90, "1000 B"),  # what fits beside the fixed part
        (33, 10_000, 28, 33, "1 KiB"),  # all
        (10**9, 10**12, 64, budget._CHUNK // 64, "32 MiB"),  # no more than a chunk, whatever fits
        (10**9, 10**12, 2 * budget._CHUNK, 1, "64 MiB"),
        (1000, 100, 0, 1000, "100 B"),  # without chunks
    ],
)
def test_rows_of_a_chunk(
    size: int, memory: int, row: int, rows: int, used: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "dataprune.coresets"):
        assert budget.chunk_rows("it", size, memory, fixed=100, row=row) == rows
    assert f"{used} beyond its input, in chunks of {rows} rows" in caplog.text


def test_finite_values_are_fine_although_their_sum_overflows() -> None:
    values = torch.full((4, 2), 3e38)
    budget.check_finite("features", values, 3)
    values[3, 1] = torch.inf
    with pytest.raises(ValueError, match="features hold NaN or infinity, first at position 3:"):
        budget.check_finite("features", values, 3)


@pytest.mark.parametrize(
    ("classes", "named"), [(3, "class 1 (1 samples), 2 (1 samples):"), (12, "10 (1 samples) and 1 more:")]
)
def test_classes_without_a_place_are_named(classes: int, named: str) -> None:
    labels = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.arange(1, classes)])
    with pytest.raises(ValueError) as error:
        budget.split(len(labels), 10, labels, "proportional", Key(0, 0))
    assert named in str(error.value)
