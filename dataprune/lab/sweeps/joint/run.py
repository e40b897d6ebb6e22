"""How each row of a grid is made: its runs, and what is recorded of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .... import coresets, distributed, files, network
from ....errors import CheckpointError
from ...data.named import Data
from ...models import build
from ...training import tasks
from ..engines import Job, Steps
from . import stages

if TYPE_CHECKING:
    from .grid import Grid

SCORED = ("low", "high")  # coresets of the lowest and the highest forgetting scores


@dataclass(frozen=True)
class Cell:
    """One model that is trained, pruned and fine-tuned."""

    arm: str  # a coreset, a data method, or `BASE`
    ratio: float | None  # fraction of the data that it is trained on; None for the base, which has all
    amount: float  # share of the weights that is pruned
    seed: int  # of all stages

    @property
    def trained(self) -> str:
        """Name of the training run, which cells of other amounts share."""
        ratio = "" if self.ratio is None else f"-keep{self.ratio:g}"
        return f"{self.arm}{ratio}-seed{self.seed}"

    @property
    def name(self) -> str:
        """Name of the cell's folder."""
        return f"{self.trained}-amount{self.amount:g}"


@dataclass(frozen=True)
class Scoring:
    """A seed's scoring run, as a row of joint.json."""

    seed: int
    samples: int  # trained
    flops: float  # of training and scoring
    forgotten: list[int]  # how many samples were forgotten 0, 1, 2 ... times; coresets are drawn among equals
    never_right: int  # samples

    @property
    def key(self) -> tuple[str, int]:
        """Its key in the sweep."""
        return "scoring", self.seed


@dataclass(frozen=True)
class Training:
    """A model before pruning, as a row of joint.json; `curve` is the test accuracy after every epoch."""

    arm: str
    ratio: float | None
    seed: int
    accuracy: float
    samples: int
    steps: int
    flops: float
    curve: list[float]

    @property
    def key(self) -> str:
        """Its key in the sweep."""
        return Cell(self.arm, self.ratio, 0.0, self.seed).trained


@dataclass(frozen=True)
class Row:
    """A cell, as a row of joint.json."""

    arm: str
    ratio: float | None
    amount: float
    seed: int
    accuracy: float  # on the test set, after fine-tuning
    trained_accuracy: float  # before pruning
    pruned_accuracy: float  # after pruning, before fine-tuning
    sparsity: float  # share of zeros in the prunable weights
    layers: dict[str, float]  # the same by layer
    samples: dict[str, int]  # trained, by stage
    flops: dict[str, float]  # by stage, of fine-tuning as if zeros were free; "total_dense" counts them
    curve: list[float]  # test accuracy after pruning and after every epoch of fine-tuning

    @property
    def key(self) -> Cell:
        """Its key in the sweep."""
        return Cell(self.arm, self.ratio, self.amount, self.seed)


ROWS = {"scoring": Scoring, "training": Training, "cells": Row}  # by their name in joint.json


class Rows:
    """Makes the rows of a grid in the folder `out`."""

    def __init__(self, grid: Grid, data: Data, out: Path):
        self.grid, self.data, self.out = grid, data, out
        settings = grid.settings
        self.model = build.build(settings.model, data.shape, len(data.classes), settings.seed)  # for its FLOPs
        self.forgotten: dict[int, dict[str, Tensor]] = {}  # by seed, what `stages.forgotten` returns

    def scoring(self, seed: int) -> Steps:
        """Returns a `Scoring`."""
        settings, out = self.grid.scoring(seed), self.out / "scoring" / f"seed{seed}"
        (record,) = yield [Job("scoring", seed, settings, out, test=False, watch="forgetting")]
        if seed not in self.forgotten:
            self.forgotten[seed] = stages.forgotten(settings, out, self.data)
        counts, last = (self.forgotten[seed][name] for name in ("forgetting", "forgetting_last"))
        flops = stages.flops(self.model, self.data, record.samples, scored=settings.epochs * len(counts))
        histogram = torch.bincount(counts.long()).tolist()
        return Scoring(seed, record.samples, flops, histogram, int((counts != last).sum()))

    def training(self, cell: Cell) -> Steps:
        """Returns the `Training` of a cell."""
        if self.grid.scored(cell):
            yield from self.scoring(cell.seed)
        settings, out = self.grid.training(cell, self._coreset(cell)), self.out / "training" / cell.trained
        arm = cell.trained.removesuffix(f"-seed{cell.seed}")
        (record,) = yield [Job(arm, cell.seed, settings, out, save_model=True, watch="accuracy")]
        assert record.accuracy is not None
        return Training(
            arm=cell.arm,
            ratio=cell.ratio,
            seed=cell.seed,
            accuracy=record.accuracy,
            samples=record.samples,
            steps=record.steps,
            flops=stages.flops(self.model, self.data, record.samples),
            curve=stages.Curve.read(out, settings.epochs).accuracy,
        )

    def cell(self, cell: Cell) -> Steps:
        """Returns the `Row` of a cell; it is written into the cell's folder, where the model is then deleted."""
        grid, out = self.grid, self.out / "cells" / cell.name
        file, weights = out / "cell.json", out / "model.safetensors"
        if file.exists():
            return Row(**files.read_json(file))
        scoring = (yield from self.scoring(cell.seed)).flops if grid.scored(cell) else 0.0
        trained: Training = yield from self.training(cell)
        settings = grid.tuning(cell, self._coreset(cell))
        tuning = Job(
            cell.name.replace(f"-seed{cell.seed}", ""),
            cell.seed,
            settings,
            out,
            save_model=True,
            weights=self.out / "training" / cell.trained / "model.safetensors",
            prune=stages.Pruning(cell.amount, grid.scope, grid.reinitialize, cell.seed),
            watch="accuracy",
        )
        (record,) = yield [tuning]
        assert record.accuracy is not None
        try:
            model = stages.load(weights, settings, self.data)
        except CheckpointError:
            if not file.exists():
                raise
            return Row(**files.read_json(file))  # another process has written it, and deleted the model
        network.finalize(model)
        zeros, curve = network.sparsity(model), stages.Curve.read(out, settings.epochs)
        dense, sparse = (stages.flops(model, self.data, record.samples, sparse=sparse) for sparse in (False, True))
        row = Row(
            **asdict(cell),
            accuracy=record.accuracy,
            trained_accuracy=trained.accuracy,
            pruned_accuracy=curve.before,
            sparsity=zeros.overall,
            layers=dict(zeros.layers),
            samples={"training": trained.samples, "fine_tuning": record.samples},
            flops={
                "scoring": scoring,
                "training": trained.flops,
                "fine_tuning": sparse,
                "total": scoring + trained.flops + sparse,
                "total_dense": scoring + trained.flops + dense,
            },
            curve=[curve.before, *curve.accuracy],
        )
        distributed.barrier()  # every rank has read the model
        if distributed.rank() == 0:
            if grid.save_models:
                tasks.of(settings, self.data).save(model, out)
            files.write_json(file, asdict(row))
            if not grid.save_models:
                weights.unlink(missing_ok=True)
        return row

    def _coreset(self, cell: Cell) -> Path:
        """The cell's coreset, chosen if it does not exist; the scoring run is finished."""
        data, path = self.data.train, self.out / "coresets" / f"{cell.trained}.safetensors"
        if cell.ratio is None or cell.arm in self.grid.data_methods:
            return path
        if distributed.rank() == 0 and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if cell.arm == "random":
                selection = coresets.random(len(data), keep=cell.ratio, seed=cell.seed)
            else:
                choose = coresets.top if cell.arm == "high" else coresets.bottom
                selection = choose(self.forgotten[cell.seed]["forgetting"], keep=cell.ratio, seed=cell.seed)
            notes = {"method": cell.arm, "keep": cell.ratio, "seed": cell.seed}
            selection.save(path, notes, dataset=data, labels=data.labels)
        distributed.barrier()
        return path
