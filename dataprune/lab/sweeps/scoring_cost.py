"""What the scores of a static method cost, as columns of its row, and the steps that are left beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ... import coresets, distributed
from ...errors import UsageError
from ..data.named import Data
from ..report import compute
from ..training.run_folder import RunRecord

if TYPE_CHECKING:
    from .compare import Comparison

Cost = Mapping[str, float]  # the columns `scoring_*` that `compute.compute_share` reads


def needed(method: str) -> bool:
    """Whether a method needs a scoring run: a static one does, unless it chooses at random."""
    return method in coresets.METHODS and coresets.METHODS[method].needs != "nothing"


def planned(comparison: Comparison, method: str, data: Data) -> Cost:
    """What a method's scores will cost, as far as it is known before."""
    if not needed(method):
        return {}
    size = len(data.train)
    passed = size if coresets.METHODS[method].needs in compute.BY_PASSES else 0
    trained = size * comparison.scoring(0).epochs * comparison.score_runs
    return {"scoring_samples": trained, "scoring_forwarded_samples": passed, **_relative(comparison, data)}


def spent(comparison: Comparison, data: Data, runs: Sequence[RunRecord], selected: Mapping[str, Any]) -> Cost:
    """What a method's scores have cost, by the records of the scoring runs and the metadata of the coreset."""
    if not runs:
        return {}
    cost = {"scoring_samples": sum(run.samples for run in runs), **_relative(comparison, data)}
    if "forwarded_samples" in selected:  # which coresets of earlier versions do not say
        cost["scoring_forwarded_samples"] = selected["forwarded_samples"]
    return {**cost, "scoring_seconds": sum(run.seconds for run in runs) + selected["seconds"]}


def steps_left(comparison: Comparison, method: str, size: int, cost: Cost) -> int:
    """Steps of a run that trains after its scores had a `cost`, for N training samples.

    Those of the plan; if FLOPs are to be equal, those that the rest of its compute is enough for.

    Raises:
        UsageError: if none is left.
    """
    steps, batch = comparison.plan(size).steps, comparison.settings.batch_size * distributed.world_size()
    if comparison.equal == "steps" or not cost:
        return steps
    scoring = compute.scoring_compute(cost)
    if (left := steps - math.ceil(scoring / batch)) >= 1:
        return left
    trained = compute.scoring_compute({**cost, "scoring_forwarded_samples": 0})
    fewer = math.floor((batch * (steps - 1) - (scoring - trained)) / (trained / comparison.scoring(0).epochs))
    advice = f"give --score-epochs {fewer}" + " or fewer" * (fewer > 1)
    raise UsageError(
        f"{method}: scoring costs as much as {scoring:,.0f} trained samples, and with --equal flops scoring and "
        f"training together may cost {batch * steps:,} ({steps:,} steps of {batch}): "
        + (advice if fewer >= 1 else "even one epoch of scoring is too much: give a smaller --score-model")
        + ", raise --keep or --budget, or take --equal steps"
    )


def _relative(comparison: Comparison, data: Data) -> Cost:
    """Forward FLOPs of the scoring model relative to those of the model, where they are two."""
    model, own = comparison.settings.model, comparison.score_model
    if own in (None, model):
        return {}
    return {"scoring_flops": compute.relative_flops(own, model, tuple(data.shape), len(data.classes))}
