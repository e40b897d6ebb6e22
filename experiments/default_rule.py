"""Search for a default that never loses: rules for what an epoch trains, against `short`, `rs2` and `memory`.

    python experiments/default_rule.py --part search --out runs/default_rule
    python experiments/default_rule.py --part judge --seeds 0 1 2 --out runs/default_rule
    dataprune pack runs/default_rule --out experiments/results/default_rule.json

Given again, it does what is missing.

A default must (a) in no panel be more than its standard error below the better of `short` and `rs2`, and (b) be above
`memory` on the mean. Rules that were tried, with p the prediction, y the label, H the entropy and near = p_y / max p,
which is 1 where the label is the prediction:

- `near_entropy` H sqrt(near), `near_doubt` (1 - p_y) near: the highest;
- `drawn_entropy` H, `drawn_near_entropy` and `drawn_near_doubt` as above: drawn at random without replacement, with
  probabilities in proportion to the score. Where a model is unsure of everything, that is nearly `rs2`; where it is
  sure of most, nearly the highest scores.

The search reads validation images only, of three panels at keep 0.5 and 0.1. What it chooses is judged once, on the
test images of all panels, at budgets and on data that the search has not seen. Setting: 8,000 images (digits: all
1,437), a CNN of four convolutions, 16 epochs of which the first and the last two are full, batches of 128 (digits: 32),
shifts, flips (not of digits), cosine over real steps, bf16. Every run takes as many steps as `rs2`. A seed
gives all arms the same initial weights, images and augmentation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from emp_figure4 import Ledger
from scipy import stats
from torch import Tensor

import dataprune
from dataprune import Pruner, files, policies, schedules
from dataprune.criteria import entropy
from dataprune.hashing import Key
from dataprune.lab.data import named
from dataprune.lab.data.datasets import Images
from dataprune.lab.data.named import Data
from dataprune.lab.training import optimizers
from dataprune.lab.training.build import build_rate
from dataprune.lab.training.settings import Settings
from dataprune.lab.training.tasks.images import Classification
from dataprune.scores import ScoreBook
from dataprune.selection import Selection

COMMON: dict[str, Any] = dict(
    model="small_cnn", method="full", epochs=16, batch_size=128, lr=0.1, shift=2, flip=True, bf16=True, device="cpu",
    threads=1,
)  # fmt: skip
SIZE, HELD, ANNEAL = 8000, 10000, 0.125
DIGITS = ("mnist", "digits")


class Panel(NamedTuple):
    data: str
    noise: float
    keep: float

    def __str__(self) -> str:
        return f"{self.data}{', 20 % noise' if self.noise else ''}, keep {self.keep}"


SEARCH = [
    Panel(data, noise, keep)
    for keep in (0.5, 0.1)
    for data, noise in (("fashion-mnist", 0.0), ("fashion-mnist", 0.2), ("cifar100", 0.0))
]
UNSEEN = (("mnist", 0.2), ("mnist", 0.0), ("cifar100", 0.2), ("digits", 0.2), ("digits", 0.0))
SEARCHED = (("cifar100", 0.0), ("fashion-mnist", 0.2), ("fashion-mnist", 0.0))
JUDGE = [
    Panel(data, noise, keep)
    for panels, budgets in ((UNSEEN, (0.5, 0.1)), (UNSEEN, (0.3, 0.7)), (SEARCHED, (0.3, 0.7)), (SEARCHED, (0.5, 0.1)))
    for data, noise in panels
    for keep in budgets
]
CHOSEN = "drawn_near_doubt"  # best on the mean of the search, and in no panel below the better of `short` and `rs2`


def near(logits: Tensor, labels: Tensor) -> Tensor:
    """p_y / max p: (B,), in (0, 1]."""
    return (logits.gather(1, labels[:, None])[:, 0] - logits.amax(1)).exp()


def near_entropy(losses: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return entropy(losses, logits, labels) * near(logits, labels).sqrt()


def near_doubt(losses: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return -torch.expm1(-losses) * near(logits, labels)


@dataclass(frozen=True)
class drawn(policies.Policy):
    """Draw without replacement, each draw in proportion to the scores that are left; unseen samples come first.

    Source: the keys of Efraimidis and Spirakis 2006, log(u) / score.
    """

    def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
        bits = key.hash(torch.arange(book.size), draw=3) >> 11 & (1 << 53) - 1
        uniform = (bits.double() + 0.5) * 2.0**-53
        floor = 1e-3 * book.score.nanmean()
        return Selection.of(policies.highest(uniform.log() / book.score.clamp(min=floor), count, key))


RULES: dict[str, tuple[Callable[..., Tensor], policies.Policy]] = {
    "near_entropy": (near_entropy, policies.top_k()),
    "near_doubt": (near_doubt, policies.top_k()),
    "drawn_entropy": (entropy, drawn()),
    "drawn_near_entropy": (near_entropy, drawn()),
    "drawn_near_doubt": (near_doubt, drawn()),
}
REFERENCES = ("short", "rs2", "memory")


def pruner(arm: str, size: int, keep: float, epochs: int, seed: int) -> Pruner:
    if arm in RULES:
        window = schedules.window(keep, 1, schedules.full_from(epochs, ANNEAL))
        return Pruner(size, *RULES[arm], window, epochs=epochs, seed=seed)
    if arm == "short":
        return dataprune.full(size, epochs=epochs, seed=seed)
    warmup = 1  # for rs2 as well: the same steps
    return dataprune.METHODS[arm](size, keep=keep, epochs=epochs, anneal=ANNEAL, warmup=warmup, seed=seed)


@cache
def load(name: str, noise: float, part: str) -> Data:
    """The data with clean test images; of the search, these are training images that no run trains on."""
    if part == "judge":
        return named.load(name, train_size=None if name == "digits" else SIZE, label_noise=noise)
    data = named.load(name, train_size=SIZE + HELD)
    assert isinstance(data.train, Images)
    images, labels = data.train.images, data.train.labels
    train = Images(images[:SIZE], named.noisy(labels[:SIZE], noise, len(data.classes)))
    return data._replace(train=train, test=Images(images[SIZE:], labels[SIZE:]))


def batches(chooser: Pruner, settings: Settings, steps: int) -> Iterator[tuple[int, int, Tensor]]:
    step = 0
    for epoch in range(settings.epochs):
        for index in chooser.batches(epoch, settings.batch_size):
            yield step, epoch, index
            step += 1
            if step == steps:
                return


def train(panel: Panel, arm: str, seed: int, part: str) -> dict[str, Any]:
    """One run: its accuracy, and what it took."""
    started = time.process_time()
    data = load(panel.data, panel.noise, part)
    own: dict[str, Any] = {"flip": panel.data not in DIGITS}
    if panel.data == "digits":
        own.update(batch_size=32, shift=1)
    settings = Settings(**COMMON | own, data=panel.data, seed=seed)
    assert isinstance(data.train, Images)
    images, labels = data.train.images, data.train.labels
    task = Classification(settings, data)
    model = task.model()
    chooser = pruner(arm, len(labels), panel.keep, settings.epochs, seed)
    planned = pruner("rs2", len(labels), panel.keep, settings.epochs, seed)
    steps = planned.planned_steps(settings.batch_size, drop_last=True)
    optimizer, rate = optimizers.build(settings, model.parameters()), build_rate(settings)
    samples = 0
    for step, epoch, index in batches(chooser, settings, steps):
        optimizer.param_groups[0]["lr"] = settings.lr * rate((step + 0.5) / steps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
            logits = model(*task.inputs(images[index], index, epoch))
        losses, outputs, _ = task.losses(logits, labels[index])
        loss = chooser.loss(index, losses, outputs, labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        samples += len(index)
    accuracy = task.test(model, torch.device("cpu"))["accuracy"]
    seconds = round(time.process_time() - started, 1)
    return {"accuracy": accuracy, "steps": steps, "samples": samples, "cpu_seconds": seconds}


def analyse(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy of each arm of a panel; above the better of `short` and `rs2`, and `memory`, within seeds."""
    result: dict[str, Any] = {}
    for panel in dict.fromkeys(point["panel"] for point in points):
        scores: dict[str, dict[int, float]] = {}
        for point in points:
            if point["panel"] == panel:
                scores.setdefault(point["arm"], {})[point["seed"]] = 100 * point["accuracy"]
        means = {arm: sum(of.values()) / len(of) for arm, of in scores.items()}
        if not {"short", "rs2"} <= means.keys():
            continue
        better = max("short", "rs2", key=lambda arm: means[arm])
        for arm, of in scores.items():
            row: dict[str, Any] = {"seeds": len(of), "accuracy": round(means[arm], 2)}
            for name, other in (("baseline", better), ("memory", "memory")):
                pairs = [of[seed] - scores[other][seed] for seed in of if seed in scores.get(other, ())]
                if arm != other and len(pairs) > 1:
                    row[f"minus_{name}"] = [round(sum(pairs) / len(pairs), 2), round(float(stats.sem(pairs)), 2)]
            result.setdefault(panel, {})[arm] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Search for a default that never loses.")
    parser.add_argument("--part", choices=("search", "judge"), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--panels", type=int, help="Only so many of the part's panels, the first.")
    parser.add_argument("--until", type=float, default=float("inf"), help="Begin no run after so many minutes.")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order are other sums
    ledger = Ledger(given.out / f"{given.part}.jsonl", {**COMMON, "train_size": SIZE, "anneal": ANNEAL})
    started = time.monotonic()
    panels, rules = (SEARCH, list(RULES)) if given.part == "search" else (JUDGE, [CHOSEN])
    for seed in given.seeds:
        for panel in panels[: given.panels]:
            for arm in (*REFERENCES, *rules):
                run = f"{panel}: {arm}, seed {seed}"
                if run in ledger.lines:
                    continue
                if time.monotonic() - started > 60 * given.until:
                    break
                ledger.add(run, panel=str(panel), arm=arm, seed=seed, **train(panel, arm, seed, given.part))
                print(run, ledger.lines[run]["accuracy"], flush=True)
    parts = {part: given.out / f"{part}.jsonl" for part in ("search", "judge")}
    ledgers = {part: [json.loads(line) for line in path.open()] for part, path in parts.items() if path.exists()}
    report = {
        **ledger.head,
        "result": {part: analyse(lines[1:]) for part, lines in ledgers.items()},
        "points": {part: lines[1:] for part, lines in ledgers.items()},
    }
    files.write_json(given.out / "default_rule.json", report)
    print(json.dumps(report["result"][given.part], indent=1))


if __name__ == "__main__":
    main()
