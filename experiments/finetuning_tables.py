"""The table of docs/findings/finetuning-data.md."""

from __future__ import annotations

from measured import moments, number, results

from dataprune.lab.report.document import pipe_table


def sft_selection() -> str:
    """Accuracy of each arm, and its points above `random` within seeds with a 95 % interval."""
    measured = results("sft_selection")["sft_selection"]
    lines = []
    for arm, row in measured["result"].items():
        name, _, more = arm.partition(", ")
        accuracies = [line["accuracy"] for line in measured["points"] if line["reported"] and line["arm"] == arm]
        mean, low, high = (number(value, 1, "+") for value in row["above_random"])
        lines.append(
            [
                f"`{name}`" + f", {more}" * bool(more),
                f"{100 * row['of_target']:.0f} %",
                f"{row['trained']:,.0f}",
                f"{row['scoring']:,.0f}",
                moments(accuracies, 1, scale=100),
                "" if arm == "random" else f"{mean} ({low} to {high})",
            ]
        )
    return pipe_table(["", "of SST-2", "rows trained", "scoring, in rows", "accuracy, %", "above `random`"], lines)
