"""Compute of a run, scoring included, in units of trained samples and as a share of that of `full`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from ... import coresets, network
from ..models.build import build
from ..training.run_folder import PASSES
from ..training.settings import ONLINE
from .formatting import share

BY_PASSES = ("features", "logits", "gradients", "validation", "model")  # what needs passes after the scoring run


def compute_share(row: Mapping[str, Any], full: Mapping[str, Any]) -> float | None:
    """Share of the compute of `full` that a run took, what was spent on its scores included.

    A sample trained counts 1, one that was only forwarded a third: a backward pass costs two forward passes. Samples of
    a scoring model count with the ratio of the two models' forward FLOPs. Not counted: evaluation and
    `--recalibrate-bn`, which all runs share, the choice of learning rates, and the arithmetic of a selector, such as
    distances, whose time is in the seconds.

    Args:
        row: a run of `compare.json`; it has `method`, `samples` (trained), and where they are not 0
            `forwarded_samples`, `scoring_samples` (trained to score), `scoring_forwarded_samples` and `scoring_flops`
            (forward FLOPs of the scoring model, relative to those of the run's; 1 by default).
        full: the run of `full` on the same data, model and epochs, or anything with its `samples`.
    Returns:
        None where the row does not tell what its scores cost.
    Example:
        >>> row = {"method": "el2n", "samples": 200, "scoring_samples": 100, "scoring_forwarded_samples": 0}
        >>> compute_share(row, {"samples": 1000})
        0.3

    Source: Evci et al. 2020, arXiv:1911.11134, appendix, for the factor of three. Differs: nothing.
    """
    spent = compute(row)
    return None if spent is None else spent / full["samples"]


def compute(row: Mapping[str, Any]) -> float | None:
    """Compute of a run in trained samples, None where it is not known; see `compute_share`."""
    method = coresets.METHODS.get(row["method"])
    if method is not None and method.needs != "nothing":
        known = "scoring_samples" in row and ("scoring_forwarded_samples" in row or method.needs not in BY_PASSES)
        if not known:  # trained on a coreset of unknown cost, or recorded before passes were counted
            return None
    return row["samples"] + row.get("forwarded_samples", 0) / PASSES + scoring_compute(row)


def scoring_compute(row: Mapping[str, Any]) -> float:
    """What was spent before training on the scores of a static method, in trained samples of the run's model."""
    spent = row.get("scoring_samples", 0) + row.get("scoring_forwarded_samples", 0) / PASSES
    return row.get("scoring_flops", 1.0) * spent


def reached(result: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a run of a comparison at equal FLOPs took as much compute as was planned, up to a step."""
    if result.get("equal") != "flops" or row.get("flops") is None:
        return False
    spent = compute(row) or 1.0
    of_steps = spent if row["method"].startswith(ONLINE) else row["samples"]  # whose steps score too
    step = row["flops"] / spent * of_steps / row["steps"]
    return abs(result["planned_flops"] - row["flops"]) < 1.001 * step


def short_of_plan(result: Mapping[str, Any]) -> list[str]:
    """The methods with a run that took another compute than was planned for equal FLOPs, with their mean share."""
    others = {row["method"] for row in result["runs"] if row["method"] != "full" and not reached(result, row)}
    return [f"{line['method']} {share(line['flops'])}" for line in result["summary"] if line["method"] in others]


@cache
def relative_flops(model: str, other: str, shape: Sequence[int], classes: int) -> float:
    """Forward FLOPs of a model on one sample of `shape` (C, H, W), relative to those of another, as torch counts them.

    Convolutions, matrix products and attention are counted, in evaluation mode.
    """
    sample = torch.zeros(1, *shape)
    flops = [network.training_flops(build(name, shape, classes, 0), sample, 0, scored=1) for name in (model, other)]
    return flops[0] / flops[1]
