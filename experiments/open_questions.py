"""Two open questions of EMP: memory layer by layer, and mutual information in place of its entropy. Paired seeds.

    python experiments/open_questions.py --seeds 5 --out runs/open_questions
    dataprune pack runs/open_questions --out experiments/results/open_questions.json

Given again, it does what is missing.

Questions (Xiao et al., arXiv:2408.16031, Limitations and Future Works, and Eq. 7): do layers want memory terms of their
own, and is the entropy H a good enough stand-in for the mutual information of label and weights? Arms:
- `emp` and `memory`, L + 5 H and H of the logits; `rs2`, fresh random samples;
- `conv1` to `conv4`: L + 5 H of the class posterior that one layer's pooled output gives (`layerwise.memory`);
- `information`: H(E p) - E H(p) over the predictions of the epochs so far (`dataprune.information`).

Here: 8,000 images of Fashion-MNIST and of CIFAR-100, a CNN of four convolutions, 16 epochs of which the first and the
last two are full, batches of 128, shifts and flips, cosine over real steps, bf16. A seed gives all arms the same
initial weights, images and augmentation. Test accuracy on 10,000 images; differences to `emp` and `memory` are taken
within seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from emp_figure4 import Ledger
from scipy import stats

import dataprune
from dataprune import Pruner, files, layerwise, learning_rate, policies, schedules
from dataprune.lab.data.datasets import Images
from dataprune.lab.data.named import Data
from dataprune.lab.training import optimizers
from dataprune.lab.training.build import build_rate, load_data
from dataprune.lab.training.settings import Settings
from dataprune.lab.training.tasks.images import Classification

LAYERS = ("conv1", "conv2", "conv3", "conv4")
ARMS = ("emp", "memory", "information", *LAYERS, "rs2")
DATA = ("fashion-mnist", "cifar100")
KEEPS = (0.3, 0.5)
COMMON: dict[str, Any] = dict(
    train_size=8000, model="small_cnn", method="full", epochs=16, batch_size=128, lr=0.1, shift=2, flip=True,
    bf16=True, device="cpu", threads=1,
)  # fmt: skip
ANNEAL, BETA = 0.125, 5.0


def pruner(arm: str, size: int, keep: float, epochs: int, seed: int) -> Pruner:
    if arm in LAYERS:
        criterion = layerwise.memory((*(BETA * (arm == layer) for layer in LAYERS), 0.0))
        window = schedules.window(keep, 1, schedules.full_from(epochs, ANNEAL))
        return Pruner(size, criterion, policies.top_k(), window, epochs=epochs, seed=seed)
    return dataprune.METHODS[arm](size, keep=keep, epochs=epochs, anneal=ANNEAL, warmup=1, seed=seed)


def train(data: Data, settings: Settings, arm: str, keep: float) -> dict[str, Any]:
    """One run: its test accuracy, and what it took."""
    started = time.process_time()
    assert isinstance(data.train, Images)  # these few are decoded at once
    images, labels = data.train.images, data.train.labels
    task = Classification(settings, data)
    model = task.model()
    chooser = pruner(arm, len(labels), keep, settings.epochs, settings.seed)
    optimizer, rate = optimizers.build(settings, model.parameters()), build_rate(settings)
    progress = learning_rate.Progress(chooser, settings.batch_size, drop_last=True)
    steps = 0
    with layerwise.collect(model, LAYERS) as layers:
        for epoch in range(settings.epochs):
            for index in chooser.batches(epoch, settings.batch_size):
                optimizer.param_groups[0]["lr"] = settings.lr * rate((progress.done + progress.step()) / 2)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
                    logits = model(*task.inputs(images[index], index, epoch))
                losses, outputs, _ = task.losses(logits, labels[index])
                outputs = (*layers, outputs) if arm in LAYERS else outputs
                loss = chooser.loss(index, losses, outputs, labels[index])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                steps += 1
    accuracy = task.test(model, torch.device("cpu"))["accuracy"]
    return {"accuracy": accuracy, "steps": steps, "cpu_seconds": round(time.process_time() - started, 1)}


def analyse(lines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy of each arm, and its differences to `emp` and `memory` within seeds, with a 95 % t interval."""
    result: dict[str, Any] = {}
    for name in DATA:
        for keep in KEEPS:
            cell = {
                arm: {line["seed"]: 100 * line["accuracy"] for line in lines.values()
                      if (line["data"], line["keep"], line["arm"]) == (name, keep, arm)}
                for arm in ARMS
            }  # fmt: skip
            for arm, of in cell.items():
                if not of:
                    continue
                row: dict[str, Any] = {"seeds": len(of), "accuracy": round(sum(of.values()) / len(of), 2)}
                for other in ("emp", "memory"):
                    pairs = [of[seed] - cell[other][seed] for seed in of if seed in cell[other]]
                    if arm != other and len(pairs) > 1:
                        mean, error = sum(pairs) / len(pairs), float(stats.sem(pairs))
                        reach = float(stats.t.ppf(0.975, len(pairs) - 1)) * error
                        row[f"minus_{other}"] = [round(mean, 2), round(mean - reach, 2), round(mean + reach, 2)]
                result[f"{name} keep {keep} {arm}"] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="EMP's open questions: layers and mutual information.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=float, nargs="+", default=KEEPS)
    parser.add_argument("--train-size", type=int, default=COMMON["train_size"])
    parser.add_argument("--epochs", type=int, default=COMMON["epochs"])
    parser.add_argument("--until", type=float, default=float("inf"), help="Begin no run after so many minutes.")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    common = COMMON | {"train_size": given.train_size, "epochs": given.epochs}
    torch.set_num_threads(1)  # sums in another order are other sums
    ledger = Ledger(given.out / "runs.jsonl", {**common, "anneal": ANNEAL, "beta": BETA})
    started, data = time.monotonic(), {}
    todo = [
        (seed, name, keep, arm) for keep in given.keep for seed in range(given.seeds) for name in DATA for arm in ARMS
    ]
    for seed, name, keep, arm in todo:
        run = f"{name} keep {keep} {arm} seed {seed}"
        if run in ledger.lines:
            continue
        if time.monotonic() - started > 60 * given.until:
            break
        settings = Settings(**common, data=name, seed=seed)
        data[name] = data.get(name) or load_data(settings)
        figures = train(data[name], settings, arm, keep)
        ledger.add(run, data=name, keep=keep, arm=arm, seed=seed, **figures)
        print(run, figures, flush=True)
    result = analyse(ledger.lines)
    report = {**ledger.head, "result": result, "points": list(ledger.lines.values())}
    files.write_json(given.out / "open_questions.json", report)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
