"""How far apart two views are, of samples that were pruned, against the share that was: EMP's Figure 5, 61 trainings.

    python experiments/emp_figure5.py --out runs/emp_figure5
    dataprune pack runs/emp_figure5 --out experiments/results/emp_figure5.json

Given again, it does what is missing and draws anew.

Claim (Xiao et al., arXiv:2408.16031, section 3.4, Figure 5): with a random share r of the samples, B, left out, the
mean over B of ‖f(x_i) − f(x_j)‖₂ under A(D − B), the first term of Eq. 11, "becomes more pronounced" as r rises: EMP's
memory term, which lacks it, is for small r. Paper: CIFAR-10, ResNet-50, static random pruning, five runs a point.

Here: 1,000 images of CIFAR-100, a CNN of four convolutions, SimCLR with the paper's views, temperature and Adam,
batches of 50 (`--scale paper`: all of CIFAR-10, ResNet-50, 100 epochs in batches of 256; configured, not run). All
start from the same weights; order and views depend on epoch and sample alone. Five random orders of the samples say who
is pruned first, so that within a repetition a larger B contains the smaller. Two arms: 16 epochs, as we read the paper,
where pruning shortens the training; and as many steps as all the data has in 16 epochs. A model is measured on pruned
and on kept samples, 4 pairs of views each, the same for all runs, in evaluation mode. Distances are also set in
relation to the mean length of f, as features grow while a model learns. n: 61 trainings, one seed, five repetitions.
About 12 minutes of one CPU core. What counts as agreeing was fixed before the run: see `analyse`. Its p takes 30
trainings for independent, which nested sets B are not.

Came out: over all r the loss does not rise (Spearman 0.11 and, at equal steps, 0.24; neither p < 0.05). At equal epochs
it rises by 18 % up to r = 0.7 and falls below its start at 0.9, where 32 steps leave features short. Divided by their
length it rises in both arms (0.89, 0.58). What was kept rises nearly as much: most of it is a model trained for fewer
steps. Being left out makes 1.6 % of it at r = 0.9 and equal steps.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from emp_figure4 import DISTANCE, Ledger, Study, command, rounded, save
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from dataprune import files

RATES = dict.fromkeys(("cpu", "paper"), (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)) | {"smoke": (1 / 3, 2 / 3)}
REPEATS = {"smoke": 2, "cpu": 5, "paper": 5}
PAIRS = {"smoke": 2, "cpu": 4, "paper": 4}
ARMS = {"epochs": "equal epochs: pruning shortens the training", "steps": "equal steps: as many as with all samples"}


def batches(study: Study, kept: Int[Tensor, " k"], arm: str) -> list[tuple[int, Tensor]]:
    """Whole batches of the kept samples, epoch after epoch in the order that all the data has there."""
    size = study.settings.batch_size
    keeps = torch.zeros(len(study.images), dtype=torch.bool)
    keeps[kept] = True
    steps = study.settings.epochs * (len(study.images if arm == "steps" else kept) // size)
    dealt: list[tuple[int, Tensor]] = []
    for epoch in range(steps):  # more than are needed
        order = study.draw("order", epoch)
        order = order[keeps[order]]
        dealt += [(epoch, index) for index in order[: len(order) // size * size].split(size)]
        if len(dealt) >= steps:
            break
    return dealt[:steps]


def measure(study: Study, rates: tuple[float, ...], repeats: int, ledger: Ledger) -> None:
    """All trainings that the ledger lacks."""
    if "all" not in ledger.lines:
        everyone = torch.arange(len(study.images))
        each, figures = trained(study, everyone, everyone[:0], "epochs")
        ledger.add("all", arm="all", rate=0, distances=rounded(each), **figures)
    whole = torch.tensor(ledger.lines["all"]["distances"])
    todo = [(arm, rate, repeat) for repeat in range(repeats) for rate in rates for arm in ARMS]
    for number, (arm, rate, repeat) in enumerate(todo, start=1):
        name = f"{arm} {rate:.3g} {repeat}"
        if name in ledger.lines:
            continue
        order = study.draw("pruned", repeat)
        pruned, kept = order[: round(rate * len(order))], order[round(rate * len(order)) :]
        _, figures = trained(study, kept, pruned, arm)
        figures |= {"pruned_under_all": float(whole[pruned].mean()), "kept_under_all": float(whole[kept].mean())}
        ledger.add(name, arm=arm, rate=rate, repeat=repeat, **figures)
        print(f"{number}/{len(todo)} {name}: {figures['pruned']:.4f}", flush=True)


def trained(study: Study, kept: Tensor, pruned: Tensor, arm: str) -> tuple[Float[Tensor, " n"], dict[str, Any]]:
    """The distance of every sample after a training on those that are kept, and its line of the ledger."""
    started = time.process_time()
    model, losses = study.retrain(batches(study, kept, arm))
    distance, norm = study.distances(model, torch.arange(len(study.images)))
    each = distance.mean(1)
    return each, {
        "steps": len(losses),
        "pruned": float(each[pruned].mean()) if len(pruned) else None,
        "kept": float(each[kept].mean()),
        "length": norm,  # over all samples
        "cpu_seconds": round(time.process_time() - started, 2),
    }


def analyse(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The claim in numbers, for each arm.

    1. Rises: the loss of what was pruned and r correlate (Spearman, p < 0.05, above 0).
    2. The same of the loss divided by the mean length of f: it rises not only because features grow.
    3. Memory (Eq. 11, over B): the loss of what was pruned under A(D − B) against that under A(D). Where it rises too,
       by how much more than the loss of what was kept is what being left out does; the rest is a weaker model.

    Each is given for the smallest and the largest r, as mean and deviation over repetitions.
    """
    result = {}
    for arm in ARMS:
        of_arm = [line for line in lines if line["arm"] == arm]
        rates = [line["rate"] for line in of_arm]
        series = {
            "loss": [line["pruned"] for line in of_arm],
            "loss_over_length": [line["pruned"] / line["length"] for line in of_arm],
            "memory": [line["pruned"] / line["pruned_under_all"] - 1 for line in of_arm],
            "left_out": [
                (line["pruned"] / line["pruned_under_all"]) / (line["kept"] / line["kept_under_all"]) - 1
                for line in of_arm
            ],
        }
        result[arm] = {}
        for name, values in series.items():
            rank: Any = stats.spearmanr(rates, values)
            ends = [_mean(values, rates, end) for end in (min(rates), max(rates))]
            result[arm][name] = {
                "spearman": float(rank.statistic),
                "p": float(rank.pvalue),
                "at_smallest_r": ends[0],
                "at_largest_r": ends[1],
                "above_0": sum(value > 0 for value in values),
            }
        rises = {name: result[arm][name]["spearman"] > 0 and result[arm][name]["p"] < 0.05 for name in series}
        result[arm]["agrees"] = {"rises": rises["loss"], "rises_over_length": rises["loss_over_length"]}
    return result


def _mean(values: list[float], rates: list[float], rate: float) -> list[float]:
    here = torch.tensor([value for value, other in zip(values, rates) if other == rate], dtype=torch.float64)
    return [float(here.mean()), float(here.std())]


def draw(lines: list[dict[str, Any]], result: dict[str, Any], title: str) -> Figure:
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(title, fontsize=10)
    above, below = figure.subplots(2, 2, sharex=True, sharey="row")
    whole = next(line for line in lines if line["run"] == "all")
    for column, arm in enumerate(ARMS):
        of_arm = [line for line in lines if line["arm"] == arm]
        for axes, by_length in ((above[column], False), (below[column], True)):
            for part, colour in (("pruned", "C0"), ("kept", "C1")):
                points = [(line["rate"], line[part] / (line["length"] if by_length else 1)) for line in of_arm]
                _band(axes, points, colour, f"{part} samples")
            start = whole["kept"] / (whole["length"] if by_length else 1)
            axes.axhline(start, color="0.4", linewidth=0.7, linestyle=":")
            axes.plot([0], [start], "D", color="0.4", markersize=5, label="nothing pruned")
            axes.grid(alpha=0.25)
            name = "loss_over_length" if by_length else "loss"
            rank = f"pruned samples against r: Spearman {result[arm][name]['spearman']:+.2f}"
            axes.set_title(rank if by_length else f"{ARMS[arm]}\n{rank}", fontsize=9)
        below[column].set_xlabel("r, share of the samples that is pruned")
    above[0].set_ylabel(f"mean {DISTANCE}")
    below[0].set_ylabel(r"the same, divided by the mean $\Vert f\,\Vert$")
    above[0].legend(frameon=False, fontsize=9)
    return figure


def _band(axes: Axes, points: list[tuple[float, float]], colour: str, label: str) -> None:
    """Every point, their mean, and one standard deviation to either side."""
    rates = sorted({rate for rate, _ in points})
    middle = torch.tensor([_mean([y for _, y in points], [x for x, _ in points], rate) for rate in rates])
    axes.plot(*zip(*points), ".", color=colour, markersize=4, alpha=0.6)
    axes.plot(rates, middle[:, 0], "-", color=colour, label=label)
    axes.fill_between(rates, middle[:, 0] - middle[:, 1], middle[:, 0] + middle[:, 1], color=colour, alpha=0.2, lw=0)


def main(scale: str, out: Path) -> dict[str, Any]:
    study, rates, repeats = Study(scale, PAIRS[scale]), RATES[scale], REPEATS[scale]
    settings = {**study.settings.as_dict(), "scale": scale, "pairs": study.pairs, "rates": rates, "repeats": repeats}
    ledger = Ledger(out / "retrainings.jsonl", settings)
    measure(study, rates, repeats, ledger)
    lines = list(ledger.lines.values())
    result = analyse(lines)
    title = (
        f"{study.settings.data}, {len(study.images)} images, {study.settings.model}: distance of two views' features; "
        f"{repeats} repetitions, shaded: one standard deviation"
    )
    save(draw(lines, result, title), out / "figure5")
    files.write_json(out / "figure5.json", {**ledger.head, "result": result, "points": lines})
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    command("Figure 5 of the EMP paper: random samples pruned once and for all.", main)
