"""What figures draw that is no accuracy: read from the runs' folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ...data.named import Data, choose
from ...training import evaluate, run_folder, setup, tasks
from ...training.settings import Settings
from ...training.tasks.images import prepare
from ..compare import Places
from .experiment import Cell

EPSILON = tuple(round(0.05 * step, 2) for step in range(25))  # along the line from initial (0) to final weights (1)
SAMPLED = 2000  # training samples that give the loss on that line


def of(show: str, cells: Sequence[Cell], places: Places, data: Data) -> list[dict[str, Any]]:
    """A line for each arm and keep of a panel, means over seeds.

    Args:
        show: "selections", "loss" or "interpolation".
        cells: of one panel, finished.
        places: where their runs lie.
        data: of the panel.
    Returns:
        Lines with `arm`, `keep` and: `samples`, how many were selected in 0, 1, 2 ... epochs; or `loss`, of every
        epoch; or `epsilon`, `loss` and `accuracy` at each of them.
    """
    together: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for cell in cells:
        settings = _settings(cell, len(data.train))
        found = _FINDINGS[show](settings, places.run(cell.method, settings), data)
        together.setdefault((cell.arm, cell.keep), []).append(found)
    lines = []
    for (arm, keep), every in together.items():
        lengths = {name: max(len(found[name]) for found in every) for name in every[0]}
        means = {
            name: np.mean([np.pad(found[name], (0, length - len(found[name]))) for found in every], axis=0)
            for name, length in lengths.items()
        }
        lines.append({"arm": arm, "keep": keep, **{name: np.round(mean, 5).tolist() for name, mean in means.items()}})
    return lines


def selections(settings: Settings, run: Path, data: Data) -> dict[str, Any]:
    """How many samples were selected in 0, 1, 2 ... epochs."""
    counts = load_file(run / "selection_counts.safetensors")["selected"]
    return {"samples": np.bincount(counts.numpy(), minlength=settings.epochs + 1)}


def losses(settings: Settings, run: Path, data: Data) -> dict[str, Any]:
    """The mean loss of the samples trained in each epoch."""
    return {"loss": [line["loss"] or 0.0 for line in run_folder.read_lines(run / "history.jsonl")]}


@torch.no_grad()
def interpolation(settings: Settings, run: Path, data: Data) -> dict[str, Any]:
    """Training loss and test accuracy of (1 − ε) · initial + ε · final weights.

    Batch norm gets statistics of its own at each ε, those of the training samples that the loss is of: interpolated
    ones would be of no model. The loss is that of these samples without augmentation.

    Source: Goodfellow et al. 2014, arXiv:1412.6544, as Xiao et al., arXiv:2408.16031, section 4.4, use it.
    """
    device = setup.choose_device(settings.device)
    task = tasks.of(settings, data)
    model = task.model().to(device)
    initial = {name: one.detach().clone() for name, one in model.named_parameters()}
    final = {name: one.to(device) for name, one in load_file(run / "model.safetensors").items() if name in initial}
    assert not isinstance(data.train, evaluate.Texts)
    part = data.train.subset(choose(len(data.train), min(SAMPLED, len(data.train)), "samples on the line"))

    def prepared(pixels: torch.Tensor) -> torch.Tensor:
        return prepare(pixels, data, settings)

    found: dict[str, Any] = {"epsilon": list(EPSILON), "loss": [], "accuracy": []}
    for epsilon in EPSILON:
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.lerp(initial[name], final[name], epsilon))
        batches = evaluate.batches(part, settings.batch_size, device, 0)
        evaluate.recalibrate_batch_norm(model, (prepared(pixels) for pixels, _ in batches))
        logits, labels = evaluate.outputs(model, part, prepared, device)
        found["loss"].append(float(F.cross_entropy(logits, labels)))
        found["accuracy"].append(evaluate.accuracy(model, data.test, prepared, device))
    return found


def _settings(cell: Cell, size: int) -> Settings:
    return cell.comparison.run_settings(cell.method, cell.seed, cell.comparison.steps(size))


_FINDINGS = {"selections": selections, "loss": losses, "interpolation": interpolation}
