"""Can the first term of EMP's Eq. 11, which its score drops, be had without leaving each sample out? Two estimates.

    python experiments/emp_first_term.py --out runs/emp_first_term
    dataprune pack runs/emp_first_term --out experiments/results/emp_first_term.json

Given again, it does what is missing. It reads experiments/results/emp_figure4.json, the 50 retrainings to judge by.

Question (Xiao et al., arXiv:2408.16031, section 3.4): without labels, a sample's memory is the distance of its views
under A(D − x) minus that under A(D). The score keeps the second term; at more than 90 % pruned this fails. Estimates:
(a) halves: two encoders, each trained on a half of the data; the distance under the one that did not see the sample
    minus that under the one that did, mean over random halvings (with ever more of them: Feldman and Zhang 2020);
(b) neighbours: a tenth of the samples is pruned, and has first terms; those of the others are the mean of the 5 nearest
    pruned samples by the encoder's features; mean over random tenths.

Setting of emp_figure4: 1,000 images of CIFAR-100, a CNN of four convolutions, SimCLR, 16 epochs in batches of 50. Each
estimate is compared (Spearman, 95 % interval by bootstrap over samples) with the memory of the 50 left out, beside the
term that EMP keeps; and with itself, over two halves of its repetitions, as an estimate that does not repeat cannot
stand for anything. The 50 memories have a noise of their own, which says how high a correlation can be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emp_figure4 import Ledger, Study, command, rounded
from emp_figure5 import batches
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from dataprune import files
from dataprune.contrastive import SimCLR
from dataprune.errors import UsageError
from dataprune.lab.report import pack

HALVINGS = {"smoke": 2, "cpu": 10}
TENTHS = {"smoke": 2, "cpu": 4}
PAIRS = {"smoke": 2, "cpu": 16}
OTHERS = {"smoke": 5, "cpu": 200}  # samples beside the 50, to see whether an estimate repeats
NEIGHBOURS = 5
JUDGE = Path(__file__).parent / "results" / "emp_figure4.json"


@torch.no_grad()
def features(study: Study, model: SimCLR, index: Int[Tensor, " k"]) -> Float[Tensor, "k d"]:
    """Unit vectors: the mean of f over two views."""
    model.eval()
    (f_i, f_j), _ = model(*study.task.views(study.images[index], index, seed=study.settings.seed + 1, epoch=0))
    return torch.nn.functional.normalize(f_i + f_j, dim=1)


def measure(study: Study, scale: str, chosen: Tensor, ledger: Ledger) -> None:
    """All trainings that the ledger lacks; `chosen` are the samples whose memory is estimated."""
    size = len(study.images)
    for repeat in range(HALVINGS[scale]):
        if (name := f"halves {repeat}") in ledger.lines:
            continue
        order = study.draw("halves", repeat)
        halves = order[: size // 2], order[size // 2 :]
        under = torch.stack([study.distances(trained(study, half), chosen)[0].mean(1) for half in halves])
        first = torch.isin(chosen, halves[0])
        own, other = torch.where(first, under[0], under[1]), torch.where(first, under[1], under[0])
        ledger.add(name, memory=rounded(other - own), own=rounded(own))
        print(name, float((other - own).mean()), flush=True)
    for repeat in range(TENTHS[scale]):
        if (name := f"neighbours {repeat}") in ledger.lines:
            continue
        order = study.draw("tenth", repeat)
        order = order[~torch.isin(order, chosen)]
        pruned = order[: size // 10]
        model = trained(study, torch.arange(size)[~torch.isin(torch.arange(size), pruned)])
        known = study.distances(model, pruned)[0].mean(1)
        near = (features(study, model, chosen) @ features(study, model, pruned).T).topk(NEIGHBOURS, dim=1).indices
        own = study.distances(model, chosen)[0].mean(1)
        ledger.add(name, memory=rounded(known[near].mean(1) - own), own=rounded(own))
        print(name, float(known.mean()), flush=True)


def trained(study: Study, kept: Tensor) -> SimCLR:
    return study.retrain(batches(study, kept, "epochs"))[0]


def correlated(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Spearman's correlation, and a 95 % interval by bootstrap over samples."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(a), (2000, len(a)))
    rank: Any = stats.spearmanr(a, b)
    drawn = [float(np.asarray(stats.spearmanr(a[at], b[at]))[0]) for at in draws]
    return [round(float(value), 3) for value in (rank[0], *np.nanquantile(drawn, (0.025, 0.975)))]


def analyse(lines: dict[str, dict[str, Any]], judge: dict[str, Any] | None) -> dict[str, Any]:
    """Each estimate against the memory of those left out (where there is a judge), and against itself."""
    result: dict[str, Any] = {}
    if judge is not None:
        points = {line["run"]: line["distance"] for line in judge["points"]}
        table = np.array([points[f"without {sample}"] for sample in judge["settings"]["left_out"]])
        others = np.where(np.eye(len(table), dtype=bool), np.nan, table)
        memory = np.diagonal(table) - np.nanmean(others, axis=0)
        noise = np.nanvar(others, axis=0, ddof=1).mean() * (1 + 1 / (len(table) - 1))
        result["memory_reliability"] = round(float(max(0, 1 - noise / memory.var(ddof=1))), 3)
        result["kept_term"] = {"with_memory": correlated(-np.array(points["all"]), memory)}
        result["kept_term"]["with_first_term"] = correlated(np.array(points["all"]), np.diagonal(table))
    for estimate in ("halves", "neighbours"):
        runs = [np.array(line["memory"]) for run, line in lines.items() if run.startswith(estimate)]
        own = np.mean([line["own"] for run, line in lines.items() if run.startswith(estimate)], axis=0)
        mean, half = np.mean(runs, axis=0), len(runs) // 2
        result[estimate] = {
            "repetitions": len(runs),
            "mean": round(float(mean.mean()), 4),
            "with_itself": correlated(np.mean(runs[:half], axis=0), np.mean(runs[half:], axis=0)),
            "with_kept_term": correlated(mean, -own),
        }
        if judge is not None:
            result[estimate]["with_memory"] = correlated(mean[: len(memory)], memory)
            result[estimate]["with_first_term"] = correlated((mean + own)[: len(memory)], np.diagonal(table))
    return result


def main(scale: str, out: Path) -> dict[str, Any]:
    if scale not in PAIRS:
        raise UsageError(
            f"the scales are {' and '.join(PAIRS)}: there are no 50 retrainings at the paper's own to judge by"
        )
    study = Study(scale, PAIRS[scale])
    judge = pack.read(JUDGE)[0].result if scale == "cpu" else None
    order = study.draw("left out")
    chosen = order[: (50 if scale == "cpu" else 5) + OTHERS[scale]]
    if judge is not None:
        assert judge["settings"]["left_out"] == chosen[:50].tolist()
    settings = {**study.settings.as_dict(), "scale": scale, "pairs": study.pairs, "samples": chosen.tolist()}
    ledger = Ledger(out / "retrainings.jsonl", settings)
    measure(study, scale, chosen, ledger)
    result = analyse(ledger.lines, judge)
    files.write_json(out / "first_term.json", {**ledger.head, "result": result, "points": list(ledger.lines.values())})
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    command("Estimates of the first term of EMP's Eq. 11.", main)
