"""Grids of joint pruning on the tiny data set, and a result of made-up numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny

from dataprune.lab.report.joint import summarize
from dataprune.lab.sweeps.joint.grid import Grid


def grid(**changes: Any) -> Grid:
    training = {name: changes.pop(name) for name in list(changes) if name not in Grid.__dataclass_fields__}
    settings = tiny.settings(**{"model": "mlp", "epochs": 2, "warmup": 0, "method": "", "keep": None, **training})
    given: dict[str, Any] = {
        "ratios": (0.2, 0.5), "amounts": (0.0, 0.6), "seeds": (0,), "score_epochs": 3, "finetune_epochs": 2,
    }  # fmt: skip
    return Grid(settings, **(given | changes))


def made_up(seeds: int = 3) -> dict[str, Any]:
    """A result of round numbers."""
    dice = np.random.default_rng(0)
    places = {"arms": ["low", "high"], "ratios": [0.1, 0.5], "amounts": [0.0, 0.8], "seeds": list(range(seeds))}
    arms = [("base", None), *((arm, ratio) for arm in places["arms"] for ratio in places["ratios"])]
    cells = [
        {"arm": arm, "ratio": ratio, "amount": amount, "seed": seed, "accuracy": float(dice.uniform(0.8, 0.9)),
         "curve": [0.5, 0.6, 0.7], "flops": {"total": float(dice.integers(100, 200))}}
        for seed in places["seeds"] for arm, ratio in arms for amount in places["amounts"]
    ]  # fmt: skip
    training = [
        {"arm": arm, "ratio": ratio, "seed": seed, "curve": [0.4, 0.6]}
        for seed in places["seeds"]
        for arm, ratio in arms
    ]
    result = {"data": "tiny", "model": "mlp", "epochs": 2, "finetune_epochs": 2, "grid": places, "training": training}
    result |= {"cells": cells}
    return result | {"summary": summarize(result)}
