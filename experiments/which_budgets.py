"""The question behind the papers in one figure: what dynamic methods are above `short`, over all data sets.

    python experiments/which_budgets.py

It joins the packed results of `dataprune reproduce which_budgets` and `which_budgets_language`, whose numbers of seeds
differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dataprune.lab.report import pack, reproductions

NAMES = ("which_budgets", "which_budgets_language")


def joined(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result with the panels of several that have the same shares and arms."""
    first = results[0]
    for other in results[1:]:
        if (other["keep"], other["arms"]) != (first["keep"], first["arms"]):
            raise SystemExit(f"{other['name']} and {first['name']} have other shares or arms")
    seeds = sorted({result["seeds"] for result in results})
    panels = [panel for result in results for panel in result["panels"]]
    return {
        **first,
        "seeds": " to ".join(map(str, seeds)),
        "plan": {},
        "panels": sorted(panels, key=lambda panel: "noise" in panel),
        "rows": [row for result in results for row in result["rows"]],
    }


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description="Draw which budgets pay, over all data sets.")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/which_budgets/all"), help="Of the figure, without suffix."
    )
    given = parser.parse_args()
    results = [pack.read(given.results / f"{name}.json")[0].result or {} for name in NAMES]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    print(*reproductions.figure(joined(results), given.out), sep="\n")


if __name__ == "__main__":
    main()
