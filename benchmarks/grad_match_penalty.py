"""Test accuracy of GradMatch coresets by penalty, beside a balanced random coreset.

    python benchmarks/grad_match_penalty.py [--seeds 8] [--out FILE]

Digits and 5,000 images of MNIST, a multilayer perceptron, keep 0.1. A model is trained on all data for 10 or 40 epochs;
errors and features come from it. A new model is then trained on each coreset, with its weights scaled to mean 1, for
the same number of steps. "absolute" adds penalty·‖w‖² as it stands; "relative" multiplies it by the mean squared norm
of the class's gradients, which is the same as dividing these by their root mean square.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataprune import Selection, coresets
from dataprune.lab.data import named
from dataprune.lab.data.datasets import Images, Streamed, Texts

KEEP, STEPS, BATCH = 0.1, 600, 32
ABSOLUTE, RELATIVE = (0.0, 0.5), (0.001, 0.01, 0.1, 1.0)


def tensors(images: Images | Streamed | Texts) -> tuple[Tensor, Tensor]:
    """Flat inputs in [0, 1] and class ids."""
    assert isinstance(images, Images)
    return images.samples.flatten(1).float() / 255, images.labels


def train(inputs: Tensor, labels: Tensor, weight: Tensor, steps: int, seed: int) -> nn.Sequential:
    """A perceptron trained by SGD with momentum and a cosine schedule on the weighted samples."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(inputs))
        batch, order = order[:BATCH], order[BATCH:]
        losses = F.cross_entropy(model(inputs[batch]), labels[batch], reduction="none")
        optimizer.zero_grad()
        (losses * weight[batch]).mean().backward()
        optimizer.step()
        schedule.step()
    return model


def selections(model: nn.Sequential, inputs: Tensor, labels: Tensor, seed: int) -> dict[str, Selection]:
    """Coresets by name, from the last layer of a model."""
    with torch.no_grad():
        features = model[:-1](inputs)
        errors = model[-1](features).softmax(1)
    errors[torch.arange(len(labels)), labels] -= 1
    square = errors.square().sum(1) * (1 + features.square().sum(1))
    mean = torch.bincount(labels, square) / torch.bincount(labels)
    normed = errors / mean.sqrt()[labels, None].float()
    result = {"random": coresets.random(len(labels), keep=KEEP, labels=labels, balance="class", seed=seed)}
    for kind, gradients, penalties in (("absolute", errors, ABSOLUTE), ("relative", normed, RELATIVE)):
        for penalty in penalties:
            result[f"{kind} {penalty:g}"] = coresets.grad_match(
                gradients, features, keep=KEEP, labels=labels, penalty=penalty, seed=seed
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    rows = []
    for name in ("digits", "mnist"):
        data = named.load(name, train_size=None if name == "digits" else 5000)
        (inputs, labels), (tests, answers) = tensors(data.train), tensors(data.test)
        for epochs in (10, 40):
            accuracy: dict[str, list[float]] = {}
            for seed in range(arguments.seeds):
                scorer = train(inputs, labels, torch.ones(len(labels)), epochs * len(labels) // BATCH, seed)
                for case, selection in selections(scorer, inputs, labels, seed).items():
                    weight = coresets.mean_one(selection).weight
                    model = train(inputs[selection.index], labels[selection.index], weight, STEPS, 1000 + seed)
                    with torch.no_grad():
                        right = (model(tests).argmax(1) == answers).float().mean()
                    accuracy.setdefault(case, []).append(100 * float(right))
            for case, values in accuracy.items():
                mean, spread = statistics.mean(values), statistics.stdev(values)
                rows.append({"data": name, "epochs": epochs, "coreset": case, "mean": mean, "sd": spread})
                print(f"{name:8} {epochs:3} epochs  {case:16} {mean:6.2f} ± {spread:.2f}", flush=True)
    print(f"{time.process_time() - started:.0f} CPU seconds")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
