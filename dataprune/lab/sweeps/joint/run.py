"""Data pruning and network pruning together: a grid of coresets and sparsities, against pruning without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .... import coresets, distributed
from ....errors import UsageError
from ....selection import Selection
from ...data.named import Data
from ...models import build
from ...training import run_folder, setup
from . import stages
from .grid import BASE, SCORED, Cell, Grid
from .summary import summarize

Report = Callable[[str, dict[str, Any]], None]  # the name of a run, a line of its history


def joint(
    grid: Grid,
    out: Path,
    *,
    data: Data | None = None,
    report: Report | None = None,
    save_models: bool = False,
) -> dict[str, Any]:
    """Carry a grid out, or go on with one: what is finished in `out` is not done again.

    For each seed: score all samples by how often a training run forgets them; take the most and the least forgotten
    ones, and random ones; train a new model on each coreset and one on all the data; prune the weights of smallest
    magnitude; train on with the masks held. Scoring is shared by all cells of a seed, training by those of all amounts.

    Args:
        grid: what to do.
        out: its folder: `joint.json`, written after every cell, and `scoring/`, `coresets/`, `training/`, `cells/`.
        data: the settings' data, where it is loaded already.
        report: called after every epoch of every run.
        save_models: whether the cells' final models are kept, as plain models with zeros.
    Returns:
        What `joint.json` holds: data, model, what the cells share, `grid`, `scoring` (a line for each seed), `training`
        (for each model before pruning), `cells` and `summary`.
    Raises:
        UsageError: for a grid that cannot be meant or does not fit data and model, or another grid's folder.
        and as `fit`.
    Source: Gupta et al., "Drop it like it's hot: network pruning with data selection", Section 4. Differs: random
        coresets of the same sizes are a control; the optimizer, which the paper does not describe, is that of the
        settings, and begins anew for fine-tuning.
    """
    grid.validate()
    run_folder.check_folder(out)
    data = setup.load_data(grid.settings) if data is None else data
    with setup.connected(setup.choose_device(grid.settings.device)):
        grid.check(data)
        return _Joint(grid, out, data, report, save_models).carry_out()


def load(out: Path) -> dict[str, Any]:
    """What the folder's `joint.json` holds.

    Raises:
        UsageError: if it has none.
    """
    path = out / "joint.json"
    if not path.exists():
        raise UsageError(f"there is no {path}: give the command without --table first")
    return run_folder.read_json(path)


class _Joint:
    """A grid while it is carried out."""

    def __init__(self, grid: Grid, out: Path, data: Data, report: Report | None, save_models: bool):
        self.grid, self.out, self.data, self.report, self.save_models = grid, out, data, report, save_models
        settings = grid.settings
        self.model = build.build(settings.model, data.shape, len(data.classes), settings.seed)  # for its FLOPs
        self.scores: dict[int, Tensor] = {}
        self.scoring: dict[int, dict[str, Any]] = {}
        self.training: dict[str, dict[str, Any]] = {}
        self.cells: dict[Cell, dict[str, Any]] = {}

    def carry_out(self) -> dict[str, Any]:
        self._begin()
        for cell in self.grid.cells():
            try:
                self._cell(cell)
            except ValueError as error:
                raise type(error)(f"{cell.name}: {error}") from error
            self._write()
        return run_folder.read_json(self.out / "joint.json")

    def _begin(self) -> None:
        """Take up the folder, if it is of the same runs."""
        path, mine = self.out / "joint.json", self._header()
        if path.exists():
            found = run_folder.read_json(path)
            other = [name for name in mine if name != "settings" and found.get(name) != mine[name]]
            stored = found.get("settings") or {}
            other += [name for name, value in mine["settings"].items() if stored.get(name) != value]
            if other:
                raise UsageError(
                    f"{path} is of other runs ({', '.join(other)}): choose another --out, or delete the folder"
                )
        for cell in self.grid.cells():
            record = self.out / "cells" / cell.name / "cell.json"
            if record.exists():
                self.cells[cell] = run_folder.read_json(record)
        distributed.barrier()
        if distributed.rank() == 0:
            run_folder.folder(self.out)
        self._write()

    def _cell(self, cell: Cell) -> None:
        settings, name = self.grid.training(cell, self._coreset(cell)), cell.trained
        folder = self.out / "training" / name
        if name not in self.training:
            metrics, curve = stages.train(settings, folder, self.data, self._of(name))
            self.training[name] = {
                "arm": cell.arm,
                "ratio": cell.ratio,
                "seed": cell.seed,
                "accuracy": metrics["accuracy"],
                "samples": metrics["samples"],
                "steps": metrics["steps"],
                "flops": stages.flops(self.model, self.data, metrics["samples"]),
                "curve": curve,
            }
        if cell not in self.cells:
            self.cells[cell] = self._prune(cell, folder)

    def _prune(self, cell: Cell, trained: Path) -> dict[str, Any]:
        out = self.out / "cells" / cell.name
        pruning = stages.Pruning(cell.amount, self.grid.scope, self.grid.reinitialize, cell.seed)
        settings = self.grid.tuning(cell, self._coreset(cell))
        found = stages.finetune(
            settings, out, self.data, trained, pruning, self._of(cell.name), save_model=self.save_models
        )
        before = self.training[cell.trained]
        scoring = self.scoring[cell.seed]["flops"] if cell.arm in SCORED else 0.0
        row = {
            "arm": cell.arm,
            "ratio": cell.ratio,
            "amount": cell.amount,
            "seed": cell.seed,
            "accuracy": found["accuracy"],
            "trained_accuracy": before["accuracy"],
            "pruned_accuracy": found["pruned_accuracy"],
            "sparsity": found["sparsity"],
            "layers": found["layers"],
            "samples": {"training": before["samples"], "fine_tuning": found["samples"]},
            "flops": {
                "scoring": scoring,
                "training": before["flops"],
                "fine_tuning": found["flops_sparse"],
                "total": scoring + before["flops"] + found["flops_sparse"],
                "total_dense": scoring + before["flops"] + found["flops"],
            },
            "curve": found["curve"],
        }
        distributed.barrier()
        if distributed.rank() == 0:
            run_folder.write_json(out / "cell.json", row)
            if not self.save_models:
                (out / "model.safetensors").unlink()
        return row

    def _coreset(self, cell: Cell) -> Path:
        """The cell's coreset, with the scoring run it needs, unless both are there."""
        path = self.out / "coresets" / f"{cell.trained}.safetensors"
        if cell.arm == BASE or cell.arm in self.grid.data_methods:
            return path
        if cell.arm in SCORED:
            self._scores(cell.seed)
        if distributed.rank() == 0 and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            notes = {"method": cell.arm, "keep": cell.ratio, "seed": cell.seed}
            self._choose(cell).save(path, notes, dataset=self.data.train, labels=self.data.train.labels)
        distributed.barrier()
        return path

    def _choose(self, cell: Cell) -> Selection:
        assert cell.ratio is not None
        if cell.arm == "random":
            return coresets.random(len(self.data.train), keep=cell.ratio, seed=cell.seed)
        select = coresets.top if cell.arm == "high" else coresets.bottom
        return select(self._scores(cell.seed), keep=cell.ratio, seed=cell.seed)

    def _scores(self, seed: int) -> Tensor:
        """How often each sample was forgotten in the seed's scoring run."""
        if seed in self.scores:
            return self.scores[seed]
        folder, epochs = self.out / "scoring" / f"seed{seed}", self.grid.score_epochs
        metrics, found = stages.score(self.grid.scoring(seed), folder, self.data, self._of(f"scoring-seed{seed}"))
        counts = found["forgetting"]
        samples, scored = metrics["samples"], epochs * len(counts)
        self.scores[seed] = counts
        self.scoring[seed] = {
            "seed": seed,
            "samples": samples,
            "flops": stages.flops(self.model, self.data, samples, scored=scored),
            # how many samples were forgotten 0, 1, 2 ... times: between equals a coreset is drawn at random
            "forgotten": torch.bincount(counts.long()).tolist(),
            "never_right": int((counts != found["forgetting_last"]).sum()),
        }
        return counts

    def _write(self) -> None:
        grid = self.grid
        result = {
            **self._header(),
            "grid": {
                "arms": grid.arms,
                "ratios": list(grid.ratios),
                "amounts": list(grid.amounts),
                "seeds": list(grid.seeds),
            },
            "scoring": list(self.scoring.values()),
            "training": list(self.training.values()),
            "cells": [self.cells[cell] for cell in grid.cells() if cell in self.cells],
        }
        if distributed.rank() == 0:
            run_folder.write_json(self.out / "joint.json", {**result, "summary": summarize(result)})
        distributed.barrier()

    def _header(self) -> dict[str, Any]:
        data, settings = self.data, self.grid.settings
        return {
            "data": settings.data,
            "model": settings.model,
            "train_samples": len(data.train),
            "test_samples": len(data.test),
            "epochs": settings.epochs,
            **self.grid.describe(),
        }

    def _of(self, name: str) -> Callable[[dict[str, Any]], None] | None:
        report = self.report
        return None if report is None else lambda line: report(name, line)
