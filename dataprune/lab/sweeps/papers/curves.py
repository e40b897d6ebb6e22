"""Curves for figures other than accuracy: selection counts, losses, interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from .... import files
from ...data.named import Data, choose
from ...training import evaluate, tasks
from ...training.device import choose_device
from ...training.settings import Settings
from ..sweep import Places
from .experiment import Cell

EPSILON = tuple(round(0.05 * step, 2) for step in range(25))  # along the line from initial (0) to final weights (1)
SAMPLED = 2000  # training samples for the loss on that line

_OF_HISTORY = {"loss": "loss", "accuracy": "train_accuracy"}

Curves = Mapping[str, Sequence[float]]  # by name


def of(show: str, cells: Sequence[Cell], places: Places, data: Data) -> list[dict[str, Any]]:
    """A line for each arm and keep of a finished panel, with means over seeds.

    Returns:
        Lines with `arm`, `keep`, and `samples` (how many were selected in 0, 1, 2 ... epochs), or `loss` and `accuracy`
        of every epoch, or `epsilon` with `loss` and `accuracy` at each.
    """
    groups: dict[tuple[str, float], list[Curves]] = {}
    for cell in cells:
        settings = cell.comparison.run_settings(cell.method, cell.key.seed, len(data.train))
        read = _CURVES[show](settings, places.run(cell.method, settings), data)
        groups.setdefault((cell.key.arm, cell.key.keep), []).append(read)
    lines = []
    for (arm, keep), group in groups.items():
        line: dict[str, Any] = {"arm": arm, "keep": keep}
        for name in group[0]:
            longest = max(len(run[name]) for run in group)
            padded = [np.pad(run[name], (0, longest - len(run[name]))) for run in group]
            line[name] = np.round(np.mean(padded, axis=0), 5).tolist()
        lines.append(line)
    return lines


def selections(settings: Settings, run: Path, data: Data) -> Curves:
    """How many samples were selected in 0, 1, 2 ... epochs."""
    counts = load_file(run / "selection_counts.safetensors")["selected"]
    return {"samples": np.bincount(counts.numpy(), minlength=settings.epochs + 1).tolist()}


def losses(settings: Settings, run: Path, data: Data) -> Curves:
    """Mean loss and accuracy of the samples trained in each epoch, as they were when they were trained."""
    lines = files.read_json_lines(run / "history.jsonl")
    return {column: [line[name] or 0.0 for line in lines] for column, name in _OF_HISTORY.items()}


@torch.no_grad()
def interpolation(settings: Settings, run: Path, data: Data) -> Curves:
    """Training loss and test accuracy of (1 − ε) · initial + ε · final weights.

    Batch-norm statistics are estimated anew at each ε, on the samples of the loss, since interpolated statistics fit
    neither model. The loss is that of these samples without augmentation.

    Source: Goodfellow et al. 2014, arXiv:1412.6544, as Xiao et al., arXiv:2408.16031, section 4.4, use it.
    """
    device, task = choose_device(settings.device), tasks.of(settings, data)
    model = task.model().to(device)
    initial = {name: value.detach().clone() for name, value in model.named_parameters()}
    final = load_file(run / "model.safetensors", device=str(device))
    part = data.train.subset(choose(len(data.train), min(SAMPLED, len(data.train)), "samples on the line"))
    curve: dict[str, list[float]] = {"epsilon": list(EPSILON), "loss": [], "accuracy": []}
    for epsilon in EPSILON:
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.lerp(initial[name], final[name], epsilon))
        batches = evaluate.batches(part, device, task.prepare, batch_size=settings.batch_size)
        evaluate.recalibrate_batch_norm(model, (pixels for pixels, _ in batches))
        logits, labels = evaluate.outputs(model, evaluate.batches(part, device, task.prepare))
        curve["loss"].append(float(F.cross_entropy(logits, labels)))
        curve["accuracy"].append(evaluate.accuracy(model, evaluate.batches(data.test, device, task.prepare)))
    return curve


_CURVES = {"selections": selections, "loss": losses, "interpolation": interpolation}
