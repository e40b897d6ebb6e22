"""Joint data and network pruning: how each row of a grid is made."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .... import coresets, distributed, files, network
from ....errors import UsageError
from ....selection import Selection
from ...data.named import Data
from ...models import build
from ...report.joint import summarize
from ...training.build import load_data
from ...training.settings import Settings
from .. import engines
from ..engines import Engine, Job, Report, Steps
from ..sweep import Places, carry_out
from . import stages
from .grid import BASE, SCORED, Cell, Grid


@dataclass(frozen=True)
class Scoring:
    """A seed's scoring run, as a row of joint.json.

    Attributes:
        seed: of the run.
        samples: trained.
        flops: of training and scoring.
        forgotten: how many samples were forgotten 0, 1, 2 ... times; a coreset is drawn at random among equals.
        never_right: samples that were never right.
    """

    seed: int
    samples: int
    flops: float
    forgotten: list[int]
    never_right: int


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


@dataclass(frozen=True)
class Row:
    """A cell, as a row of joint.json.

    Attributes:
        accuracy: on the test set, after fine-tuning.
        trained_accuracy: before pruning.
        pruned_accuracy: after pruning, before fine-tuning.
        sparsity: share of zeros in the prunable weights.
        layers: the same by layer.
        samples: trained, by stage.
        flops: by stage, those of fine-tuning as if zeros were free; "total_dense" counts them.
        curve: test accuracy after pruning and after every epoch of fine-tuning.
    """

    arm: str
    ratio: float | None
    amount: float
    seed: int
    accuracy: float
    trained_accuracy: float
    pruned_accuracy: float
    sparsity: float
    layers: dict[str, float]
    samples: dict[str, int]
    flops: dict[str, float]
    curve: list[float]


@dataclass(frozen=True)
class Joint:
    """A grid as a `Sweep`.

    Attributes:
        grid: what to run.
        save_models: keep the cells' final models, as plain models with zeros.
    """

    kind: ClassVar[str] = "grid"
    file: ClassVar[str] = "joint.json"

    grid: Grid
    save_models: bool = False

    @property
    def settings(self) -> Settings:
        """Those of training."""
        return self.grid.settings

    @property
    def identity(self) -> dict[str, Any]:
        """What the cells of one table share."""
        shared = self.grid.describe()
        return {**shared.pop("settings"), **shared}

    def steps(self, data: Data, places: Places) -> dict[Hashable, Steps]:
        """How each row is made: a scoring run per seed, a training run per arm, ratio and seed, and the cells."""
        self.grid.check(data)
        settings = self.settings
        make = _Rows(self, data, places.out, build.build(settings.model, data.shape, len(data.classes), settings.seed))
        rows: dict[Hashable, Steps] = {}
        for cell in self.grid.cells():
            if self._scored(cell):
                rows.setdefault(("scoring", cell.seed), make.scoring(cell.seed))
            rows.setdefault(cell.trained, make.training(cell))
            rows[cell] = make.cell(cell)
        return rows

    def kept(self, content: Mapping[str, Any]) -> dict[Hashable, Scoring | Training | Row]:
        """Finished rows of this grid; those of other ratios, amounts, arms and seeds are not shown."""
        rows: dict[Hashable, Scoring | Training | Row] = {}
        for row in (Row(**row) for row in content["cells"]):
            rows[Cell(row.arm, row.ratio, row.amount, row.seed)] = row
        for row in (Training(**row) for row in content["training"]):
            rows[Cell(row.arm, row.ratio, 0.0, row.seed).trained] = row
        rows |= {("scoring", row["seed"]): Scoring(**row) for row in content["scoring"]}
        planned = {key for cell in self.grid.cells() for key in (cell, cell.trained, ("scoring", cell.seed))}
        return {key: row for key, row in rows.items() if key in planned}

    def summary(self, data: Data, rows: Sequence[Scoring | Training | Row]) -> dict[str, Any]:
        """Content of joint.json."""
        grid = self.grid
        content = {
            "data": self.settings.data,
            "model": self.settings.model,
            "train_samples": len(data.train),
            "test_samples": len(data.test),
            "epochs": self.settings.epochs,
            **grid.describe(),
            "grid": {name: list(getattr(grid, name)) for name in ("arms", "ratios", "amounts", "seeds")},
        }
        for name, kind in (("scoring", Scoring), ("training", Training), ("cells", Row)):
            content[name] = [asdict(row) for row in rows if isinstance(row, kind)]
        return {**content, "summary": summarize(content)}

    def _scored(self, cell: Cell) -> bool:
        return cell.arm in SCORED and cell.arm not in self.grid.data_methods


def joint(
    grid: Grid,
    out: Path,
    *,
    data: Data | None = None,
    report: Report | None = None,
    engine: Engine = engines.local,
    save_models: bool = False,
) -> dict[str, Any]:
    """Carry a grid out, or continue it; arguments and errors as for `carry_out`.

    For each seed: score all samples by how often a training run forgets them; take the most and the least forgotten
    ones, and random ones; train a new model on each coreset and one on all the data; prune the weights of smallest
    magnitude; train on with the masks held. Scoring is shared by all cells of a seed, training by those of all amounts.

    Args:
        grid: what to run.
        out: its folder: `joint.json`, and `scoring/`, `coresets/`, `training/`, `cells/`.
        data: the settings' data, where it is loaded already.
        report: called after every epoch of every run.
        engine: where the runs are carried out.
        save_models: keep the cells' final models, as plain models with zeros.
    Returns:
        Content of `joint.json`: data, model, what the cells share, `grid`, `scoring` (a row for each seed), `training`
        (for each model before pruning), `cells` and `summary`.
    Source: Gupta et al., "Drop it like it's hot: network pruning with data selection", Section 4. Differs: random
        coresets of the same sizes are a control; the optimizer, which the paper does not describe, is that of the
        settings, and begins anew for fine-tuning.
    """
    grid.validate()
    data = load_data(grid.settings) if data is None else data
    return carry_out(Joint(grid, save_models), out, data=data, report=report, engine=engine)


def load(out: Path) -> dict[str, Any]:
    """Content of the folder's `joint.json`.

    Raises:
        UsageError: if there is none.
    """
    path = out / "joint.json"
    if not path.exists():
        raise UsageError(f"{path} does not exist: run the command without --table first")
    return files.read_json(path)


@dataclass(frozen=True)
class _Rows:
    """How the rows of a grid are made."""

    joint: Joint
    data: Data
    out: Path
    model: nn.Module  # for its FLOPs
    forgotten: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # by seed, what `stages.forgotten` returns

    def scoring(self, seed: int) -> Steps:
        """Returns a `Scoring`."""
        grid, out = self.joint.grid, self.out / "scoring" / f"seed{seed}"
        settings = grid.scoring(seed)
        (record,) = yield [Job("scoring", seed, settings, out, test=False, watch="forgetting")]
        if seed not in self.forgotten:
            self.forgotten[seed] = stages.forgotten(settings, out, self.data)
        counts, last = (self.forgotten[seed][name] for name in ("forgetting", "forgetting_last"))
        cost = stages.flops(self.model, self.data, record["samples"], scored=grid.score_epochs * len(counts))
        histogram = torch.bincount(counts.long()).tolist()
        return Scoring(seed, record["samples"], cost, histogram, int((counts != last).sum()))

    def training(self, cell: Cell) -> Steps:
        """Returns the `Training` of a cell."""
        if self.joint._scored(cell):
            yield from self.scoring(cell.seed)
        settings, out = self.joint.grid.training(cell, self.coreset(cell)), self.out / "training" / cell.trained
        arm = cell.trained.removesuffix(f"-seed{cell.seed}")
        (record,) = yield [Job(arm, cell.seed, settings, out, save_model=True, watch="accuracy")]
        return Training(
            arm=cell.arm,
            ratio=cell.ratio,
            seed=cell.seed,
            accuracy=record["accuracy"],
            samples=record["samples"],
            steps=record["steps"],
            flops=stages.flops(self.model, self.data, record["samples"]),
            curve=stages.Curve.read(out, settings.epochs).accuracy,
        )

    def cell(self, cell: Cell) -> Steps:
        """Returns the `Row` of a cell; it is written into the cell's folder, where the model is then deleted."""
        out = self.out / "cells" / cell.name
        file, weights = out / "cell.json", out / "model.safetensors"
        if file.exists():
            return Row(**files.read_json(file))
        scoring = (yield from self.scoring(cell.seed)).flops if self.joint._scored(cell) else 0.0
        trained: Training = yield from self.training(cell)
        settings = self.joint.grid.tuning(cell, self.coreset(cell))
        pruning = stages.Pruning(cell.amount, self.joint.grid.scope, self.joint.grid.reinitialize, cell.seed)
        (record,) = yield [
            Job(
                cell.name.replace(f"-seed{cell.seed}", ""),
                cell.seed,
                settings,
                out,
                save_model=True,
                weights=self.out / "training" / cell.trained / "model.safetensors",
                prune=pruning,
                watch="accuracy",
            )
        ]
        model = stages.load(weights, settings, self.data)
        network.finalize(model)
        zeros, curve = network.sparsity(model), stages.Curve.read(out, settings.epochs)
        dense, sparse = (stages.flops(model, self.data, record["samples"], sparse=sparse) for sparse in (False, True))
        row = Row(
            **asdict(cell),
            accuracy=record["accuracy"],
            trained_accuracy=trained.accuracy,
            pruned_accuracy=curve.before,
            sparsity=zeros.overall,
            layers=dict(zeros.layers),
            samples={"training": trained.samples, "fine_tuning": record["samples"]},
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
            if self.joint.save_models:
                state = {name: value.contiguous() for name, value in model.state_dict().items()}
                files.write_bytes(weights, save(state))
            files.write_json(file, asdict(row))
            if not self.joint.save_models:
                weights.unlink()
        return row

    def coreset(self, cell: Cell) -> Path:
        """The cell's coreset, chosen if it does not exist; the scoring run is finished."""
        grid, data = self.joint.grid, self.data.train
        path = self.out / "coresets" / f"{cell.trained}.safetensors"
        if cell.arm == BASE or cell.arm in grid.data_methods:
            return path
        if distributed.rank() == 0 and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            notes = {"method": cell.arm, "keep": cell.ratio, "seed": cell.seed}
            self._choose(cell).save(path, notes, dataset=data, labels=data.labels)
        distributed.barrier()
        return path

    def _choose(self, cell: Cell) -> Selection:
        assert cell.ratio is not None
        if cell.arm == "random":
            return coresets.random(len(self.data.train), keep=cell.ratio, seed=cell.seed)
        choose = coresets.top if cell.arm == "high" else coresets.bottom
        return choose(self.forgotten[cell.seed]["forgetting"], keep=cell.ratio, seed=cell.seed)
