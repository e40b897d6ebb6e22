"""Figures, each as SVG and PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..training import runs
from .tables import percent


def accuracy_against_samples(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Mean accuracy of each method, with its standard deviation, against the samples it back-propagated.

    Args:
        result: what `compare.json` holds.
        path: without suffix; `.svg` and `.png` are written, the same bytes for the same result.
    Returns:
        The two files.
    Raises:
        OSError: if they cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, max(4.2, 0.24 * len(result["summary"]))), layout="constrained")
    axes = figure.add_subplot()
    summary = sorted(result["summary"], key=lambda line: line["accuracy_mean"], reverse=True)
    most = max(line["samples"] for line in summary)
    # methods of one budget stand on one spot: spread them a little, in the order of their accuracy
    shift = _spread([line["samples"] for line in summary], most)
    end = max(line["samples"] + moved + line.get("scoring_samples", 0) for line, moved in zip(summary, shift))
    for number, (line, moved) in enumerate(zip(summary, shift, strict=True)):
        count = sum(row["method"] == line["method"] for row in result["runs"])
        value = percent(line["accuracy_mean"], line["accuracy_std"], count, 1)
        axes.errorbar(
            line["samples"] + moved,
            100 * line["accuracy_mean"],
            yerr=100 * line["accuracy_std"] if count > 1 else None,
            fmt="osD^v<>Ph*Xp"[number % 12],
            color=f"C{number % 10}",
            capsize=3,
            label=f"{line['method']}  {value}",
        )
        if line.get("scoring_samples"):
            axes.plot(
                [line["samples"] + moved, line["samples"] + moved + line["scoring_samples"]],
                [100 * line["accuracy_mean"]] * 2,
                color=f"C{number % 10}",
                linewidth=0.8,
                linestyle=":",
                marker="|",
                markevery=[1],
            )
    axes.set_xlim(0, max(1.08 * most, 1.02 * end))
    scored = any(line.get("scoring_samples") for line in summary)
    axes.set_xlabel(
        "samples back-propagated (methods with the same budget stand side by side)"
        + ("\ndotted: with the run that scores for static methods" if scored else "")
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("test accuracy, %")
    seeds = len({row["seed"] for row in result["runs"]})
    axes.set_title(
        f"{result['data']}, {result['model']}: {result['epochs']} epochs, keep {result['keep']:.3g}, "
        f"{seeds} seed{'s' if seeds != 1 else ''}",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    files = [path.with_name(path.name + suffix) for suffix in (".svg", ".png")]
    for file in files:
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "dataprune"}):
            form = file.suffix[1:]
            figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
        runs.write(file, buffer.getvalue())
    return files


def _spread(samples: Sequence[float], most: float) -> list[float]:
    """A shift for each, so that equal ones stand side by side."""
    shifts = []
    for number, value in enumerate(samples):
        alike = [place for place, other in enumerate(samples) if abs(other - value) < 0.01 * most]
        shifts.append(0.012 * most * (alike.index(number) - (len(alike) - 1) / 2))
    return shifts
