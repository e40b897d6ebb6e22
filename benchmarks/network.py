"""What network pruning saves: a model as it is, under masks, and with channels removed.

    python benchmarks/network.py [--amount 0.5] [--batch 32] [--repeats 20] [--device cpu] [--out FILE]

The three take turns in one process, on one thread where they run on the CPU: a forward pass in evaluation mode without
gradients, then a training step (forward, backward, SGD with momentum). Times are medians; ratios are medians over
pairs with the unpruned model's turn in the same round, so that a slow moment of the machine slows both. "Left" is the
share of the unpruned model's parameters that is neither removed nor under a mask. The weights are untrained: which ones
are pruned changes the accuracy, not the cost. Needs torch-pruning.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dataprune import network
from dataprune.lab.models import build

CASES = {"small_cnn": (1, 28, 28), "resnet18": (3, 32, 32)}  # model -> image
CLASSES = 10
TURN = 0.2  # seconds


def variants(name: str, amount: float, device: torch.device) -> dict[str, nn.Module]:
    """The same weights three times."""
    model = build.build(name, CASES[name], CLASSES, seed=0).to(device)
    masked, channels = copy.deepcopy(model), copy.deepcopy(model)
    network.prune(masked, amount)
    network.prune(channels, amount, granularity="channel", example_inputs=torch.zeros(2, *CASES[name], device=device))
    return {"unpruned": model, "masks": masked, "channels": channels}


def forward(model: nn.Module, inputs: torch.Tensor) -> Callable[[], float]:
    """A function that takes one pass and says how many seconds it took."""

    def run() -> float:
        model.eval()
        _wait(inputs.device)
        started = time.perf_counter()
        with torch.no_grad():
            model(inputs)
        _wait(inputs.device)
        return time.perf_counter() - started

    return run


def step(model: nn.Module, inputs: torch.Tensor) -> Callable[[], float]:
    """A function that takes one training step and says how many seconds it took."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    targets = torch.arange(len(inputs), device=inputs.device) % CLASSES

    def run() -> float:
        model.train()
        _wait(inputs.device)
        started = time.perf_counter()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(inputs.device)
        return time.perf_counter() - started

    return run


def in_turns(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, `repeats` times; a turn takes TURN seconds of the first of them, or one run."""
    for run in runs.values():  # warms up
        run()
    count = max(1, round(TURN / next(iter(runs.values()))()))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(sum(run() for _ in range(count)) / count)
    return times


def parameters_left(model: nn.Module) -> int:
    """Parameters that are not under a mask."""
    everything = sum(parameter.numel() for parameter in model.parameters())
    return everything - sum(int((~keep).sum()) for keep in network.Masks.of(model.state_dict()).keep.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--amount", type=float, default=0.5, help="share of weights, or of channels, that is pruned")
    parser.add_argument("--batch", type=int, default=32, help="samples in a pass or step")
    parser.add_argument("--repeats", type=int, default=20, help="turns of each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    rows = []
    print(f"{'model':10} {'variant':9} {'left':>6} {'params':>7} {'FLOPs':>7} {'forward':>8} {'step':>7}  of unpruned")
    for name, shape in CASES.items():
        found = variants(name, arguments.amount, device)
        inputs = torch.randn(arguments.batch, *shape, device=device)
        passes = in_turns({kind: forward(model, inputs) for kind, model in found.items()}, arguments.repeats)
        steps = in_turns({kind: step(model, inputs) for kind, model in found.items()}, arguments.repeats)
        whole = network.cost(found["unpruned"], inputs, repeats=1)
        for kind, model in found.items():
            mine = network.cost(model, inputs, repeats=1)
            row = {
                "model": name,
                "variant": kind,
                "parameters": mine.parameters,
                "parameters_left": parameters_left(model),
                "flops": mine.flops,
                "forward_seconds": statistics.median(passes[kind]),
                "step_seconds": statistics.median(steps[kind]),
                "parameters_ratio": mine.parameters / whole.parameters,
                "flops_ratio": mine.flops / whole.flops,
                "forward_ratio": _ratio(passes[kind], passes["unpruned"]),
                "step_ratio": _ratio(steps[kind], steps["unpruned"]),
            }
            rows.append(row)
            print(
                f"{name:10} {kind:9} {row['parameters_left'] / whole.parameters:6.3f} {row['parameters_ratio']:7.3f} "
                f"{row['flops_ratio']:7.3f} {row['forward_ratio']:8.2f} {row['step_ratio']:7.2f}",
                flush=True,
            )
    if arguments.out:
        result = {
            "device": str(device),
            "torch": torch.__version__,
            "torch_pruning": version("torch-pruning"),
            "threads": torch.get_num_threads(),
            "amount": arguments.amount,
            "batch": arguments.batch,
            "models": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def _ratio(mine: list[float], whole: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(mine, whole, strict=True))


if __name__ == "__main__":
    main()
