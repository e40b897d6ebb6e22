"""What choosing inside a batch costs: beside the forward pass, end to end, and on a GPU in memory.

    python benchmarks/online.py [--blocks 9] [--steps 20] [--out FILE]

A super-batch of 512 images of 3x32x32 is scored by a small CNN, and a quarter of it trained. Three loops take turns in
one process, block by block, on one thread: the forward pass alone; it and `chooser.choose`; and the whole step, beside
one that trains the same number of random rows without scoring. A block counts by its median step.

Goal: choosing costs less than 2 % of the forward pass. The ideal of a whole step, in training rows, is `keep` + 1/3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from dataprune import online
from dataprune.lab.models.build import build

BATCH, CLASSES, KEEP, GOAL = 512, 100, 0.25, 0.02
RECIPES: dict[str, Callable[[], online.Chooser]] = {
    "uniform": lambda: online.uniform(KEEP),
    "loss": lambda: online.loss(KEEP),
    "loss, drawn": lambda: online.loss(KEEP, sample=True),
    "memory": lambda: online.memory(KEEP),
    "window": lambda: online.window(KEEP),
    "divbs": lambda: online.divbs(KEEP),
}


def median(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Seconds of a step."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _allocated(device: torch.device) -> int | None:
    """Bytes in use, from which a peak is counted; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def measure(device: torch.device, blocks: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build("small_cnn", (3, 32, 32), CLASSES, seed=0).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = torch.randn(BATCH, 3, 32, 32, device=device), torch.randint(CLASSES, (BATCH,), device=device)
    ids = torch.arange(BATCH, device=device)

    def forward(chooser: online.Chooser) -> tuple[torch.Tensor, torch.Tensor]:
        with chooser.scoring(model):
            logits = model(x)
            return F.cross_entropy(logits.float(), y, reduction="none"), logits

    def train(rows: torch.Tensor, weight: torch.Tensor) -> None:
        loss = (weight * F.cross_entropy(model(x[rows]), y[rows], reduction="none")).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def whole(chooser: online.Chooser) -> None:
        losses, logits = forward(chooser)
        train(*chooser.choose(losses, logits, y, ids=ids))

    choosers = {name: make() for name, make in RECIPES.items()}
    losses, logits = forward(choosers["loss"])
    every = torch.arange(BATCH, device=device)
    some, ones = every[: int(KEEP * BATCH)], torch.ones(int(KEEP * BATCH), device=device)
    loops: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(choosers["loss"]),
        "train all": lambda: train(every, torch.ones(BATCH, device=device)),
        "train a quarter": lambda: train(some, ones),
    }
    for name, chooser in choosers.items():
        loops[f"choose, {name}"] = lambda chooser=chooser: chooser.choose(losses, logits, y, ids=ids)
        loops[f"step, {name}"] = lambda chooser=chooser: whole(chooser)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(blocks):
        for name, step in loops.items():
            seconds[name].append(median(step, steps, device))
    time_of = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {}
    for name, chooser in choosers.items():
        before = _allocated(device)
        chooser.choose(losses, logits, y, ids=ids)
        memory = {} if before is None else {"peak_bytes": torch.cuda.max_memory_allocated() - before}
        rows[name] = {
            "choose_us": round(1e6 * time_of[f"choose, {name}"], 1),
            "share_of_forward": round(time_of[f"choose, {name}"] / time_of["forward"], 4),
            "rows_per_second": round(BATCH / time_of[f"step, {name}"]),
            "step_in_training_rows": round(time_of[f"step, {name}"] / time_of["train all"], 3),
            **memory,
        }
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": BATCH,
        "keep": KEEP,
        "forward_share_of_training": round(time_of["forward"] / time_of["train all"], 3),
        "ideal": round(KEEP + time_of["forward"] / time_of["train all"], 3),
        "goal": GOAL,
        "choosers": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(torch.device(given.device), given.blocks, given.steps)
    text = json.dumps(result, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
