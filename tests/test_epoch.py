"""Who trained a sample, where several ranks recorded it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

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
