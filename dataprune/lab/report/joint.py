"""Rows of a grid of joint pruning summarized over seeds: differences from the base, and which cells are missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import UsageError
from .significance import moments, paired

BASE = "base"  # the arm without data selection


def summarize(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each arm, ratio and amount of which every seed is finished, and the base's.

    Differences are paired by seed: both models of a pair start from the same weights. FLOPs are means over seeds, with
    masks counted as if zeros were free.

    Args:
        content: of `joint.json`.
    Returns:
        Lines with `difference_mean`, `difference_std` (of the sample, 0 for a single seed) and `p`, see
        `significance.paired`.
    """
    seeds, rows = content["grid"]["seeds"], _by_cell(content)
    lines = []
    for arm, ratio, amount in _places(content["grid"]):
        group = [rows.get((arm, ratio, amount, seed)) for seed in seeds]
        base = [rows.get((BASE, None, amount, seed)) for seed in seeds]
        pairs = [(row, other) for row, other in zip(group, base) if row is not None and other is not None]
        if arm == BASE or len(pairs) < len(seeds):
            continue
        differences = [row["accuracy"] - other["accuracy"] for row, other in pairs]
        line: dict[str, Any] = {"arm": arm, "ratio": ratio, "amount": amount}
        for name, values in (
            ("accuracy", [row["accuracy"] for row, _ in pairs]),
            ("base", [other["accuracy"] for _, other in pairs]),
            ("difference", differences),
        ):
            line[f"{name}_mean"], line[f"{name}_std"] = moments(values)
        line["p"] = paired(differences)
        for name, part in zip(("flops", "base_flops"), zip(*pairs)):
            line[name] = moments([row["flops"]["total"] for row in part])[0]
        lines.append(line)
    return lines


def missing(content: Mapping[str, Any]) -> list[str]:
    """Names of the cells in a grid that are not finished."""
    rows = _by_cell(content)
    return [
        f"{arm}{'' if ratio is None else f' ratio {ratio:g}'} amount {amount:g} seed {seed}"
        for seed in content["grid"]["seeds"]
        for arm, ratio, amount in _places(content["grid"])
        if (arm, ratio, amount, seed) not in rows
    ]


def check_whole(content: Mapping[str, Any]) -> None:
    """Raise UsageError unless every cell of the grid is finished."""
    gaps = missing(content)
    if gaps:
        named = ", ".join(gaps[:3]) + (" ..." if len(gaps) > 3 else "")
        raise UsageError(
            f"{len(gaps)} of {len(gaps) + len(content['cells'])} cells are missing ({named}): run the command again "
            "without --table to continue"
        )


def _by_cell(content: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {(row["arm"], row["ratio"], row["amount"], row["seed"]): row for row in content["cells"]}


def _places(grid: Mapping[str, Any]) -> Iterator[tuple[str, float | None, float]]:
    for arm, ratio in [(BASE, None), *((arm, ratio) for arm in grid["arms"] for ratio in grid["ratios"])]:
        for amount in grid["amounts"]:
            yield arm, ratio, amount
