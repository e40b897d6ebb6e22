"""What is recorded in an epoch: whose samples they are, and warnings of repetitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_pruner import pruner, record

from dataprune.distributed import Part
from dataprune.epoch import claim


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=3), st.lists(st.integers(-2, 2), min_size=6)
)
def test_a_sample_is_its_first_recorders(recorded: list[list[int]], before: list[int]) -> None:
    """Step by step, in each the lower rank first; who owned a sample before still does."""
    owner = np.array(before[:6], dtype=np.int16)
    wanted = before[:6]
    for step in range(6):
        for rank, index in enumerate(recorded):
            if step < len(index) and wanted[index[step]] == -1:
                wanted[index[step]] = rank
    parts = [Part([], torch.tensor(index, dtype=torch.int64), torch.zeros(len(index))) for index in recorded]
    kept = claim(parts, owner)
    assert owner.tolist() == wanted
    assert kept.tolist() == [wanted[at] == rank for rank, index in enumerate(recorded) for at in index]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([0, 0, 0, 0], "a batch of 8 samples is recorded twice running in epoch 0"),
        ([0, 1] * 10, "64 samples are recorded for epoch 0, which has 50"),
        ([0, 1, None, 0, None, 0], "epoch 0 begins again after 16 of its samples were trained"),
    ],
)
def test_repetitions_are_warned_of_once(batches: list[int | None], message: str) -> None:
    p = pruner()
    p.select(0)
    with pytest.warns(UserWarning) as warned:
        for batch in batches:
            if batch is None:
                p.begin(0, tail=0)
            else:
                record(p, list(range(8 * batch, 8 * batch + 8)), [1.0] * 8)
    assert len(warned) == 1 and message in str(warned[0].message)
