"""Grids that are invalid, or do not fit data and model, are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny_joint import grid
from torch import nn

from dataprune.errors import UsageError
from dataprune.lab.models import build
from dataprune.lab.sweeps.sweep import carry_out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amounts": (0.5, 1.0)}, r"--amounts are shares of the weights in \[0, 1\), got 1"),
        ({"amounts": (-0.1,)}, "got -0.1"),
        ({"amounts": (float("nan"),)}, "got nan"),
        ({"amounts": (0.5, 0.5)}, "--amounts names a number twice"),
        ({"ratios": (0.0,)}, r"--ratios are fractions of the data in \(0, 1\), got 0"),
        ({"ratios": (1.0,)}, r"in \(0, 1\), got 1"),
        ({"ratios": ()}, "at least one"),
        ({"seeds": ()}, "at least one"),
        ({"score_epochs": 1}, "must be at least 2"),
        ({"finetune_epochs": 0}, "--finetune-epochs"),
        ({"finetune_on": "none"}, "unknown --finetune-on 'none'"),
        ({"finetune_lr": 0.0}, "--finetune-lr must be positive"),
        ({"scope": "layers"}, "did you mean 'layer'"),
        ({"data_methods": ("epm",)}, "did you mean 'emp'"),
        ({"data_methods": ("emp", "emp")}, "names a method twice"),
        ({"option": ("beta=3",)}, "--option is for the methods of --data-method"),
        ({"model": "lenett"}, "did you mean 'lenet'"),
    ],
)
def test_invalid_grids(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grid(**changes)


def nothing_to_prune(shape: Any, classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d((1, classes)), nn.Flatten(), nn.BatchNorm1d(classes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": f"{__name__}:nothing_to_prune"}, "nothing to prune: Sequential has no convolution"),
        ({"ratios": (0.02,)}, "0.02 of 400 samples are 8, fewer than a batch of 16"),
        ({"data_methods": ("emp",), "option": ("betta=3",)}, "did you mean 'beta'"),
        ({"data_methods": ("rs2",), "ratios": (0.01,)}, "fewer than one batch"),
    ],
)
def test_grids_that_do_not_fit_are_refused_before_anything_is_trained(
    changes: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_import", lambda name: nothing_to_prune)
    with pytest.raises(UsageError, match=message):
        carry_out(grid(**changes), tmp_path / "run", data=tiny.data())
    assert not (tmp_path / "run").exists()
