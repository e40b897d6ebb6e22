"""Advice from pilots, judged by what it costs to follow it.

    python experiments/advise.py --out runs/advise
    dataprune pack runs/advise --out experiments/results/advise.json
    python experiments/advise.py --out runs/advise_chosen_on --scale chosen-on
    python experiments/advise.py --out runs/advise_planned_batches --scale chosen-on --no-same-steps

Question: `dataprune advise` runs pilots on a part of the training set and names a method, or `short`. How much worse is
that at the full setting than the best method there, and how does it compare with always taking the same method?

Regret of a choice in a setting: the highest mean test accuracy among all methods (`short`, `rs2`, `loss`, `emp`,
`memory`, and what else was advised) minus that of the choice; all runs of a setting take the same number of steps. The
highest of several means is above the best method's true accuracy: "spread" is the median over methods of the standard
error of a difference to `short`, what regret means little below.

The rule (lab/sweeps/advice_rule.py): the method of the highest mean in the pilots, or `short` where none is above.
Its first form advised a method only where it was better than `short` and than `rs2` with a probability of 0.95 each,
and its pilots had the planned batch size, and so fewer steps. The six settings of "chosen-on" showed that to be too
careful: it said `short` in all of them. Rule and pilots were changed then. The six of "held-out" were written down
after the change and before any of their runs, and nothing was changed after them.

Settings of "held-out": Fashion-MNIST, where pruning was known to pay with more images and steps; a multi-layer
perceptron, with right labels and with 20 % of them random (those of the pilots' held-out samples are as wrong); a LeNet
that underfits CIFAR-100 in six epochs; small digits with noise; MNIST. Of "chosen-on": Fashion-MNIST, also with noise
and with a LeNet of four epochs, CIFAR-100 with a model that learns little of it, digits, MNIST. n: 6 settings, 3 pilot
seeds, 3 (chosen-on: 2) seeds at the full setting; one thread.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from dataprune import files
from dataprune.errors import DataError, UsageError
from dataprune.lab.sweeps.advise import Pilot, advise
from dataprune.lab.sweeps.compare import SHORT, Comparison
from dataprune.lab.sweeps.sweep import carry_out
from dataprune.lab.training.build import load_data
from dataprune.lab.training.run_folder import Environment
from dataprune.lab.training.settings import Settings

CANDIDATES = ("loss", "emp", "memory")
METHODS = (SHORT, "rs2", *CANDIDATES)
ADVISED = "advise"
SCALES: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        "digits": dict(train_size=400, model="mlp", epochs=5, budget=0.4, batch_size=16),
        "digits, noise": dict(train_size=400, model="mlp", epochs=5, budget=0.4, batch_size=16, label_noise=0.2),
    },
    "held-out": {
        "Fashion-MNIST": dict(data="fashion-mnist", train_size=8000, epochs=12, budget=0.3, shift=2, flip=True),
        "Fashion-MNIST, MLP": dict(data="fashion-mnist", train_size=6000, model="mlp", epochs=10, budget=0.3, lr=0.05),
        "Fashion-MNIST, MLP, noise": dict(
            data="fashion-mnist", train_size=6000, model="mlp", epochs=10, budget=0.3, lr=0.05, label_noise=0.2
        ),
        "CIFAR-100, LeNet, 6 epochs": dict(
            data="cifar100", train_size=6000, model="lenet", epochs=6, budget=0.4, lr=0.05, flip=True
        ),
        "digits, noise": dict(data="digits", epochs=15, budget=0.25, label_noise=0.2),
        "MNIST": dict(data="mnist", train_size=8000, epochs=10, budget=0.25, shift=1),
    },
    "chosen-on": {
        "Fashion-MNIST": dict(data="fashion-mnist", train_size=4000, epochs=12, budget=0.25, batch_size=64),
        "Fashion-MNIST, noise": dict(
            data="fashion-mnist", train_size=4000, epochs=12, budget=0.25, batch_size=64, label_noise=0.2
        ),
        "Fashion-MNIST, LeNet, 4 epochs": dict(
            data="fashion-mnist", train_size=4000, model="lenet", epochs=4, budget=0.4, batch_size=64, lr=0.05
        ),
        "CIFAR-100": dict(data="cifar100", train_size=4000, epochs=10, budget=0.3, batch_size=64, flip=True),
        "digits": dict(data="digits", epochs=12, budget=0.15),
        "MNIST, LeNet": dict(
            data="mnist", train_size=4000, model="lenet", epochs=12, budget=0.2, batch_size=64, lr=0.05
        ),
    },
}
PILOT: dict[str, dict[str, Any]] = {
    "smoke": {"size": 200, "seeds": (0, 1)},
    "held-out": {"size": 3000, "seeds": (0, 1, 2)},
    "chosen-on": {"size": 1500, "seeds": (0, 1, 2)},
}
SEEDS = {"smoke": (0, 1), "held-out": (0, 1, 2), "chosen-on": (0, 1)}


def measure(
    name: str, recipe: Mapping[str, Any], pilot: Mapping[str, Any], seeds: Sequence[int], folder: Path
) -> dict[str, Any]:
    """Run the pilots of a setting, and all methods on its test set."""
    settings = Settings(device="cpu", threads=1, **recipe)
    data = load_data(settings)
    place = folder / ("pilot" if pilot["same_steps"] else "pilot-planned-batches")
    advised = advise(Pilot(settings, CANDIDATES, margin=0, **pilot), place, data=data)
    advice = advised["advice"]
    rows = carry_out(Comparison(settings, METHODS, seeds), folder / "full", data=data)["runs"]
    accuracy = {method: [row["accuracy"] for row in rows if row["method"] == method] for method in METHODS}
    chosen = advice["method"]
    if advice["anneal"]:
        chosen = f"{chosen}, anneal {advice['anneal']:g}"
        annealed = Comparison(replace(settings, anneal=advice["anneal"]), [advice["method"]], seeds)
        accuracy[chosen] = [row["accuracy"] for row in carry_out(annealed, folder / "annealed", data=data)["runs"]]
    errors = [
        statistics.stdev(value - base for value, base in zip(values, accuracy[SHORT])) / len(seeds) ** 0.5
        for method, values in accuracy.items()
        if method != SHORT
    ]
    return {
        "setting": name,
        "settings": settings.computed(),
        "chosen": chosen,
        "accuracy": accuracy,
        "regret": regrets(accuracy, chosen),
        "spread": statistics.median(errors),
        "steps": advice["steps"],
        "pilot": {part: advised[part] for part in ("pilot", "lines", "annealed", "advice", "cost")},
    }


def regrets(accuracy: Mapping[str, Sequence[float]], chosen: str) -> dict[str, float]:
    """Regret of following the advice, and of always taking one method."""
    mean = {method: statistics.fmean(values) for method, values in accuracy.items()}
    best = max(mean.values())
    return {ADVISED: best - mean[chosen], **{method: best - mean[method] for method in METHODS}}


def table(points: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: regret in points, and the means of all settings."""
    policies = (ADVISED, *METHODS)
    best = [max(point["accuracy"], key=lambda name: statistics.fmean(point["accuracy"][name])) for point in points]
    lines = [
        "| setting | best, % | advised | " + " | ".join(f"`{name}`" for name in policies) + " | spread | pilots cost |",
        "| --- | --- | --- |" + " --- |" * (len(policies) + 2),
    ]
    for point, name in zip(points, best):
        cells = " | ".join(f"{100 * point['regret'][policy]:.2f}" for policy in policies)
        top = f"`{name}` {100 * statistics.fmean(point['accuracy'][name]):.2f}"
        cost = f"{point['pilot']['cost']['relative']:.1f} runs"
        row = (point["setting"], top, f"`{point['chosen']}`", cells, f"{100 * point['spread']:.2f}", cost)
        lines.append("| " + " | ".join(row) + " |")
    for what, of in (("mean", statistics.fmean), ("worst", max)):
        cells = " | ".join(f"{100 * of([point['regret'][policy] for point in points]):.2f}" for policy in policies)
        lines.append(f"| {what} | | | {cells} | | |")
    return "\n".join(lines) + "\n"


def draw(points: Sequence[Mapping[str, Any]]) -> Figure:
    policies = (ADVISED, *METHODS)
    figure = Figure(figsize=(8, 0.8 + 0.62 * len(points)), layout="constrained")
    axes = figure.subplots()
    for number, policy in enumerate(policies):
        values = [100 * point["regret"][policy] for point in points]
        places = [place + 0.13 * (number - (len(policies) - 1) / 2) for place in range(len(points))]
        colour = "black" if policy == ADVISED else f"C{number - 1}"
        axes.barh(places, values, height=0.12, color=colour, label=policy)
    axes.set_yticks(range(len(points)), [point["setting"] for point in points], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)
    marks = (0, 0.5, 1, 2, 5, 10, 30)
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("regret: points of test accuracy below the best method", fontsize=9)
    axes.legend(fontsize=8)
    return figure


def main(scale: str, out: Path, work: Path, same_steps: bool = True) -> list[dict[str, Any]]:
    points = []
    for number, (name, recipe) in enumerate(SCALES[scale].items()):
        pilot = PILOT[scale] | {"same_steps": same_steps}
        points.append(measure(name, recipe, pilot, SEEDS[scale], work / f"{scale}{number}"))
        print(f"{name}: {points[-1]['chosen']}, regret {points[-1]['regret']}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "scale": scale,
        "seeds": SEEDS[scale],
        "machine": asdict(Environment.current(torch.device("cpu"))),
        "points": points,
    }
    files.write_json(out / "advise.json", record)
    files.write_bytes(out / "table.md", table(points).encode())
    for form in ("svg", "png"):
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "dataprune"}):
            metadata = {"Date": None} if form == "svg" else None
            draw(points).savefig(buffer, format=form, dpi=130, metadata=metadata)
        files.write_bytes(out / f"advise.{form}", buffer.getvalue())
    return points


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Advice from pilots, judged by what it costs to follow it.")
    parser.add_argument("--scale", choices=SCALES, default="held-out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/advise"), help="Folder of the runs.")
    parser.add_argument("--same-steps", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    try:
        main(given.scale, given.out, given.work, given.same_steps)
    except (DataError, UsageError) as error:
        sys.exit(str(error))
