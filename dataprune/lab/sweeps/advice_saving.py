"""What pilots say can be saved at equal accuracy: `full`, and budgets from the largest down while a method is level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..report import saving_part
from ..report.saving import FULL, LEVEL, Row, seeds_needed, summarize

Pilots = Callable[[Sequence[str], float], Sequence[Row]]  # runs of methods at a budget, on each seed


def estimate(
    methods: Sequence[str],
    budgets: Sequence[float],
    pilots: Pilots,
    *,
    prior: float,
    margin: float,
    held_out: int,
    seeds: int,
) -> dict[str, Any]:
    """Estimate what methods save, with as few pilots as tell it.

    None is run where so many seeds could not show that two equal methods are equal. Otherwise those of `full`, and of
    the methods at the budgets in descending order, each until it is not level: what lies below would not count.

    Args:
        methods: names; with `short`, what others save beyond it is told.
        budgets: shares of the steps of `full`.
        pilots: carries runs out.
        prior: variance of paired differences.
        margin: points of accuracy that a method may lose and be level.
        held_out: samples that each pilot is evaluated on.
        seeds: how many seeds `pilots` has.
    Returns:
        As in saving.json `margin`, `deviation`, `full`, `saving` and `cells`; and a `sentence`.
    """
    share, planned = margin / 100, dict.fromkeys(methods, budgets)
    content = {**summarize([], margin=share, held_out=held_out, planned=planned), "deviation": math.sqrt(prior)}
    needed = seeds_needed(content["deviation"], share)
    if needed is not None and needed <= seeds:
        rows, level = list(pilots([FULL], 1.0)), list(methods)
        for budget in sorted(budgets, reverse=True):
            rows += pilots(level, budget) if level else []
            content = summarize(rows, margin=share, held_out=held_out)
            states = {cell["method"]: cell["state"] for cell in content["cells"] if cell["budget"] == budget}
            level = [method for method in level if states[method] == LEVEL]
    del content["converged"]  # pilots show nothing of it
    return {**content, "sentence": _sentence(content, held_out, seeds)}


def _sentence(content: dict[str, Any], held_out: int, seeds: int) -> str:
    """As that of `dataprune saving`, on the pilots."""
    told = [line for line in content["saving"] if line["saved"] is not None]
    untold = [saving_part.name(line["method"]) for line in content["saving"] if line["saved"] is None]
    texts = [saving_part.sentence({**content, "saving": told})] if told else []
    if untold:
        options: dict[str, Any] = {"least": seeds + 1, "seeds": "--seeds", "what": "held-out"}
        why = saving_part.power(content["deviation"], content["margin"], held_out, **options)
        texts.append(f"How much {' or '.join(untold)} saves is not told: {why}.")
    return " ".join(texts)
