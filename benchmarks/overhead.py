"""What a pruner costs per training step.

    python benchmarks/overhead.py [--blocks 15] [--steps 100] [--out FILE]

Three loops take turns in one process, block by block, on one thread: a bare one; the same with `pruner.loss` in place
of `losses.mean()`; and the same with each step's scores copied into a table on the CPU at once, as loops that keep an
index -> score table do. A block is the beginning of an epoch. Selecting for it is no part of a step; `selection.py`
measures it. On a CPU a block counts by its median step, as other processes may interrupt some.

The loops train a small model, so that the difference shows; a ResNet-18 step (batch 128, 32x32, 100 classes) is then
timed on the same thread, and the cost set against it. The memory term of `emp` and `memory` is a softmax over the
classes: it is timed with 10 and with 100 of them. On a GPU the copy waits for the device, the pruner does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import dataprune
from dataprune.lab.models import build

SIZE, BATCH, FEATURES = 50_000, 128, 64
CLASSES = (10, 100)  # the memory term is computed over them
KEEP, MOST = 0.3, 117  # steps in a pruned epoch
GOAL = 100e-6  # seconds per step beyond the bare one


def loop(kind: str, classes: int, steps: int, blocks: int, device: torch.device) -> Callable[[int], float]:
    """A function that takes the first steps of an epoch, and returns the seconds of one."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SIZE, FEATURES, generator=generator).to(device)
    targets = torch.randint(classes, (SIZE,), generator=generator).to(device)
    model = torch.nn.Linear(FEATURES, classes).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = None if kind in ("bare", "copy") else dataprune.METHODS[kind](SIZE, keep=KEEP, epochs=blocks)
    table = torch.zeros(SIZE)

    def run(epoch: int) -> float:
        if pruner is not None:
            batches = pruner.batches(epoch, BATCH, device=device)
        else:
            batches = iter(torch.randperm(SIZE, generator=generator).to(device).split(BATCH))
        seconds = []
        _wait(device)
        begun = started = time.perf_counter()
        for index in itertools.islice(batches, steps):
            logits = model(inputs[index])
            losses = F.cross_entropy(logits, targets[index], reduction="none")
            if pruner is not None:
                loss = pruner.loss(index, losses, logits, targets[index])
            else:
                loss = losses.mean()
            if kind == "copy":
                table[index.cpu()] = losses.detach().cpu()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            ended = time.perf_counter()
            seconds.append(ended - started)
            started = ended
        _wait(device)
        # the median is blind to what else the CPU does; a GPU's steps overlap with the next
        return statistics.median(seconds) if device.type == "cpu" else (time.perf_counter() - begun) / steps

    return run


def resnet_step(device: torch.device, repeats: int) -> float:
    """Median seconds of a bare ResNet-18 training step."""
    model = build.build("resnet18", (3, 32, 32), 100, seed=0).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, targets = torch.randn(BATCH, 3, 32, 32, device=device), torch.zeros(BATCH, dtype=torch.int64, device=device)
    seconds = []
    for _ in range(repeats + 1):
        _wait(device)
        started = time.perf_counter()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help=f"steps per block, at most {MOST}")
    parser.add_argument("--blocks", type=int, default=15, help="blocks per loop, in turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    if not 1 <= arguments.steps <= MOST:
        parser.error(f"--steps must be 1 to {MOST}: a pruned epoch has no more")
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    kinds = ("bare", "copy", "rs2", "loss", "emp", "memory")
    cases = [(kind, classes) for classes in CLASSES for kind in kinds]
    loops = {case: loop(*case, arguments.steps, arguments.blocks + 1, device) for case in cases}
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for block in range(arguments.blocks + 1):
        for case in cases:
            seconds = loops[case](block)
            if block:  # the first warms up
                times[case].append(seconds)
    resnet = resnet_step(device, 3 if device.type == "cpu" else 30)
    rows = []
    print(f"{'loop':8} {'classes':>8} {'us/step':>9} {'beyond bare':>12} {'goal':>6} {'of a ResNet-18 step':>20}")
    for kind, classes in cases:
        mine, bare = times[kind, classes], times["bare", classes]
        step = statistics.median(mine)
        # pair by pair: a slow moment of the machine slows both
        cost = statistics.median(one - other for one, other in zip(mine, bare, strict=True))
        goal = "" if kind in ("bare", "copy") else f"<{1e6 * GOAL:.0f}"
        rows.append({"loop": kind, "classes": classes, "step_seconds": step, "cost_seconds": cost})
        print(f"{kind:8} {classes:8} {1e6 * step:9.1f} {1e6 * cost:12.1f} {goal:>6} {cost / resnet:20.4%}")
    print(f"ResNet-18 step: {resnet:.3f} s on {device}, one thread")
    if arguments.out:
        result = {"device": str(device), "torch": torch.__version__, "resnet18_step_seconds": resnet, "loops": rows}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
