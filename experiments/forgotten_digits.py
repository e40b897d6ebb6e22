"""The images that a model forgets most often while it learns, beside those that it never forgets.

    dataprune score --data mnist --model lenet --epochs 10 --batch-size 128 --lr 0.05 --statistics forgetting --out RUN
    python experiments/forgotten_digits.py RUN runs/forgotten_mnist
    dataprune pack runs/forgotten_mnist --out experiments/results/forgotten_mnist.json

Claim: forgetting scores separate ambiguous digits from plain ones (Toneva et al. 2019, Figure 2, arXiv:1812.05159).
Writes a picture, 50 images of each kind with their labels, and a JSON file with the distribution of the scores. Samples
that were never learned score above all others and are marked. Equal scores are drawn at random, from a fixed seed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dataprune import coresets, dynamics
from dataprune.lab.training.build import load_data
from dataprune.lab.training.settings import Settings

SHOWN = 50


def main(run: Path, out: Path) -> None:
    settings = Settings.of(json.loads((run / "config.json").read_text()))
    train = load_data(settings).train
    scores = dynamics.load_scores(next(run.glob("scores.*"))).scores["forgetting"]
    keep = SHOWN / len(scores)
    most = coresets.top(scores, keep=keep, seed=0).index
    least = coresets.bottom(scores, keep=keep, seed=0).index
    most = most[scores[most].argsort(descending=True, stable=True)]
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1)  # type: ignore[misc]  # an array of two
    never = settings.epochs  # the score of what was never learned
    for half, index, title in (
        (upper, most, f"most often forgotten (label, times; 'never': not once right in {never} epochs)"),
        (lower, least, "never forgotten (label)"),
    ):
        half.suptitle(title, fontsize=10)
        for axes, position in zip(half.subplots(4, 13).flat, [*index.tolist(), None, None], strict=True):
            axes.axis("off")
            if position is None:
                continue
            pixels, label = train[position]
            axes.imshow(pixels[0].numpy(), cmap="gray_r", vmin=0, vmax=255)
            count = int(scores[position])
            times = "" if index is least else ", never" if count >= never else f", {count}"
            axes.set_title(f"{label}{times}", fontsize=7, pad=1)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "forgotten.png", dpi=110)
    histogram = torch.bincount(scores.long()).tolist()
    record = {"settings": settings.as_dict(), "samples": len(scores), "samples_by_score": histogram}
    (out / "forgotten.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"samples by forgetting score: {histogram}; picture: {out / 'forgotten.png'}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python experiments/forgotten_digits.py RUN OUT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
