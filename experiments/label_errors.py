"""Planted label errors, found by what training dynamics say and by cleanlab.

    python experiments/label_errors.py --out runs/label_errors
    dataprune pack runs/label_errors --out experiments/results/label_errors.json

Claim: scores that one ordinary training run records find wrong labels (Pleiss et al. 2020, arXiv:2001.10528, for the
area under the margin; Toneva et al. 2019, arXiv:1812.05159, for forgetting), beside confident learning (Northcutt et
al. 2021, arXiv:1911.00068) from held-out predictions of the same model.

Of 20 % of the labels each is replaced by a class drawn uniformly, the true one among them: the 18 % or so that differ
afterwards are the planted errors. All statistics are of one run on all the data. cleanlab's scores are of five runs of
the same settings, each on four fifths of the data, that predict the fifth they have not seen: 4 times the cost. Every
seed plants other errors, and trains with other weights and in another order. What is wrong in the data of itself counts
as a false alarm, for all detectors alike.

AUROC, and precision at the number of planted errors, which is also their recall; equal scores in random order, in
expectation. No number of epochs was tuned to a detector: digits are trained until the net has learned most wrong labels
by heart, and, to see what that does, for a third of the epochs; Fashion-MNIST for ten, in which it learns few of them.
Windows are of 5 epochs. n: 2 data sets, one of them at two lengths, 3 seeds; 54 runs, of one thread.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor, nn

from dataprune import dynamics, files
from dataprune.errors import DataError, UsageError
from dataprune.lab.data import named as datasets
from dataprune.lab.data.datasets import Images
from dataprune.lab.training import tasks
from dataprune.lab.training.run import run
from dataprune.lab.training.run_folder import Environment
from dataprune.lab.training.settings import Settings

NOISE, FOLDS = 0.2, 5
STATISTICS = ("aum", "forgetting", "loss", "el2n", "entropy", "least_confidence", "margin", "dyn_unc", "dual", "tdds")
WINDOWS = tuple(f"{name}.window=5" for name in ("dyn_unc", "dual", "tdds"))
SCALES: dict[str, list[dict[str, Any]]] = {
    "smoke": [dict(data="digits", train_size=200, model="mlp", epochs=epochs, batch_size=20) for epochs in (5, 8)],
    "cpu": [
        dict(data="digits", model="small_cnn", epochs=15),
        dict(data="digits", model="small_cnn", epochs=5),
        dict(data="fashion-mnist", train_size=4000, model="small_cnn", epochs=10, batch_size=64),
    ],
}
SEEDS = {"smoke": 2, "cpu": 3}


class Planted(NamedTuple):
    """Data with wrong labels, and which these are."""

    data: datasets.Data
    wrong: np.ndarray  # (N,) bool


def plant(settings: Settings) -> Planted:
    """The settings' data; `seed` decides the subset and the errors, too."""
    options: dict[str, Any] = dict(train_size=settings.train_size, split_seed=settings.seed)
    data = datasets.load(settings.data, label_noise=settings.label_noise, **options)
    true = datasets.load(settings.data, **options).train.labels
    return Planted(data, (data.train.labels != true).numpy())


def scored(settings: Settings, data: datasets.Data, out: Path) -> dict[str, np.ndarray]:
    """One run on all the data: its table of scores."""
    record = run(replace(settings, statistics=",".join(STATISTICS), option=WINDOWS), out, data=data, save_model=False)
    return {name: values.numpy() for name, values in dynamics.load_scores(out / str(record.scores)).scores.items()}


def predicted(settings: Settings, data: datasets.Data, out: Path) -> np.ndarray:
    """(N, C) probabilities of every sample, by a run that has not seen it."""
    train = data.train
    assert isinstance(train, Images)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed))
    probabilities = torch.full((len(train), len(data.classes)), torch.nan, dtype=torch.float64)
    for fold in range(FOLDS):
        held = torch.zeros(len(train), dtype=torch.bool)
        held[order[fold::FOLDS]] = True
        part = data._replace(train=train.subset((~held).nonzero()[:, 0]))
        task = tasks.of(settings, part)
        model = task.model()
        run(settings, out / str(fold), data=part, model=model, save_model=False, test=False)
        probabilities[held] = logits(model, train.images[held], task).double().softmax(1)
    return probabilities.numpy()


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, task: tasks.Task) -> Tensor:
    model.eval()
    return torch.cat([model(task.prepare(batch)) for batch in images.split(500)])


def cleanlab(labels: np.ndarray, probabilities: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Its label quality by two methods, and which samples confident learning calls errors; None where it is missing."""
    try:
        from cleanlab import filter, rank  # type: ignore[import-not-found]
    except ImportError:
        return None
    quality = {
        f"cleanlab, {method.replace('_', ' ')}": -rank.get_label_quality_scores(labels, probabilities, method=method)
        for method in ("self_confidence", "normalized_margin")
    }
    return quality, filter.find_label_issues(labels, probabilities)


def auroc(score: np.ndarray, wrong: np.ndarray) -> float:
    """Of a wrong and a right label, how often the wrong scores higher; equals count half."""
    ranks = rankdata(score)
    return float((ranks[wrong].mean() - (wrong.sum() + 1) / 2) / (~wrong).sum())


def precision(score: np.ndarray, wrong: np.ndarray) -> float:
    """The share of wrong labels among as many highest scores; of equals at the border the share that is wrong."""
    count = int(wrong.sum())
    border = np.sort(score)[-count]
    above, at = score > border, score == border
    return float((wrong[above].sum() + wrong[at].mean() * (count - above.sum())) / count)


def fates(scores: dict[str, np.ndarray], some: np.ndarray, epochs: int) -> dict[str, float]:
    """Of some samples, the shares that the run never got right, learned for good, and fits when it ends (p_y > 1/2)."""
    events, loss = scores["forgetting"][some], scores["loss"][some]
    shares = {"never_learned": events >= epochs, "never_forgotten": events == 0, "fitted": loss < np.log(2)}
    return {name: round(float(share.mean()), 4) for name, share in shares.items()}


def measure(settings: Settings, folder: Path) -> dict[str, Any]:
    """One recipe and seed."""
    data, wrong = plant(settings)
    started = time.perf_counter()
    scores = scored(settings, data, folder / "all")
    scoring = time.perf_counter() - started
    line: dict[str, Any] = {
        "data": f"{settings.data}, {settings.epochs} epochs",
        "seed": settings.seed,
        "samples": len(wrong),
        "planted": int(wrong.sum()),
        "accuracy": files.read_json(folder / "all" / "metrics.json")["accuracy"],
        "wrong_labels": fates(scores, wrong, settings.epochs),
        "right_labels": fates(scores, ~wrong, settings.epochs),
        "seconds": {"scores": round(scoring, 1)},
    }
    started = time.perf_counter()
    held_out = predicted(settings, data, folder / "folds")
    labels = data.train.labels.numpy()
    line["held_out_agreement"] = float((held_out.argmax(1) == labels)[~wrong].mean())
    scores["held-out loss"] = -np.log(held_out[np.arange(len(labels)), labels])
    detected = cleanlab(labels, held_out)
    line["seconds"]["folds"] = round(time.perf_counter() - started, 1)
    if detected is not None:
        scores |= detected[0]
        named = detected[1]
        hits = int((named & wrong).sum())
        line["confident_learning"] = {
            "found": int(named.sum()),
            "precision": hits / max(1, int(named.sum())),
            "recall": hits / int(wrong.sum()),
        }
    line["auroc"] = {name: round(auroc(score, wrong), 4) for name, score in scores.items()}
    line["precision"] = {name: round(precision(score, wrong), 4) for name, score in scores.items()}
    return line


def summary(lines: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Mean and deviation over seeds, by recipe, detector and measure; the best precision first."""
    results: dict[str, dict[str, dict[str, list[float]]]] = {}
    for data in dict.fromkeys(line["data"] for line in lines):
        points = [line for line in lines if line["data"] == data]
        table = {}
        for name in points[0]["auroc"]:
            series = {key: [line[key][name] for line in points] for key in ("auroc", "precision")}
            table[name] = {
                key: [round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)), 4)]
                for key, values in series.items()
            }
        results[data] = dict(sorted(table.items(), key=lambda entry: -entry[1]["precision"][0]))
    return results


def draw(lines: list[dict[str, Any]], results: dict[str, Any]) -> Figure:
    tables = list(results.values())
    names = sorted(tables[0], key=lambda name: sum(table[name]["precision"][0] for table in tables))
    colours = ["C1" if "held-out" in name or "cleanlab" in name else "C0" for name in names]
    figure = Figure(figsize=(2.6 + 3.6 * len(results), 1.6 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axes, (data, table) in zip(panels, results.items()):
        points = [line for line in lines if line["data"] == data]
        axes.barh(names, [table[name]["precision"][0] for name in names], color=colours, alpha=0.75)
        for place, name in enumerate(names):
            axes.plot(
                [line["precision"][name] for line in points], [place] * len(points), ".", color="0.15", markersize=4
            )
            axes.text(1.02, place, f"{table[name]['auroc'][0]:.3f}", va="center", fontsize=8)
        axes.text(1.02, len(names) - 0.35, "AUROC", fontsize=8)
        share = np.mean([line["planted"] / line["samples"] for line in points])
        axes.axvline(share, color="0.4", linestyle=":", linewidth=1)
        axes.set_xlim(0, 1)
        axes.set_title(f"{data}: {points[0]['samples']:,} samples", fontsize=10)
        axes.set_xlabel("precision at the number of planted errors", fontsize=9)
    figure.suptitle(
        "blue: one training run; orange: five held-out folds; dots: seeds; dotted: chance", fontsize=9, color="0.3"
    )
    return figure


def main(scale: str, out: Path) -> dict[str, Any]:
    torch.set_num_threads(1)  # sums in another order are other sums
    lines = []
    for recipe in SCALES[scale]:
        for seed in range(SEEDS[scale]):
            settings = Settings(
                method="full", label_noise=NOISE, seed=seed, test_size=None, device="cpu", threads=1, **recipe
            )
            with tempfile.TemporaryDirectory() as folder:
                lines.append(measure(settings, Path(folder)))
            print(f"{lines[-1]['data']}, seed {seed}: {json.dumps(lines[-1]['precision'])}", flush=True)
    if "confident_learning" not in lines[0]:
        print("cleanlab is missing (pip install cleanlab): its own scores are left out", file=sys.stderr)
    results = summary(lines)
    out.mkdir(parents=True, exist_ok=True)
    for form in ("svg", "png"):
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "dataprune"}):
            metadata = {"Date": None} if form == "svg" else None
            draw(lines, results).savefig(buffer, format=form, dpi=130, metadata=metadata)
        files.write_bytes(out / f"label_errors.{form}", buffer.getvalue())
    record = {
        "scale": scale,
        "label_noise": NOISE,
        "folds": FOLDS,
        "windows": WINDOWS,
        "recipes": SCALES[scale],
        "summary": results,
    }
    record["machine"] = asdict(Environment.current(torch.device("cpu")))
    files.write_json(out / "label_errors.json", {**record, "points": lines})
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Planted label errors, found by training dynamics and by cleanlab.")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        main(given.scale, given.out)
    except (DataError, UsageError) as error:
        sys.exit(str(error))
