"""A grid of joint data and network pruning: its runs, their settings, and how each row is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .... import coresets, distributed, files, network
from ....coresets.budget import count_of
from ....errors import UsageError, suggest
from ....methods import METHODS
from ...data.named import Data
from ...models import build
from ...report.joint import BASE, summarize
from ...training import tasks
from ...training.build import build_pruner, check
from ...training.device import stream
from ...training.settings import Settings, require
from ..engines import Job, Steps
from ..sweep import Key, Places, digest, locked, on_coreset
from . import stages

SCORED = ("low", "high")  # coresets of the lowest and the highest forgetting scores
CORESETS = (*SCORED, "random")
KINDS = ("scoring", "training", "cells")  # of rows in joint.json


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
class Grid:
    """The pipeline of "Drop it like it's hot", for every ratio, amount and seed, as a `Sweep`.

    For each seed: score all samples by how often a training run forgets them; take the most and the least forgotten
    ones, and random ones; train a new model on each coreset and one on all the data; prune the weights of smallest
    magnitude; train on with the masks held. Scoring is shared by all cells of a seed, training by those of all amounts.

    Source: Gupta et al., "Drop it like it's hot: network pruning with data selection", Section 4. Differs: random
        coresets of the same sizes are a control; the optimizer, which the paper does not describe, is that of the
        settings, and begins anew for fine-tuning.
    """

    kind: ClassVar[str] = "grid"
    file: ClassVar[str] = "joint.json"

    settings: Settings  # of every run, its epochs those of training; method, coreset and seed are set run by run
    ratios: Sequence[float]  # fractions of the data kept, M / N
    amounts: Sequence[float]  # shares of the weights pruned
    seeds: Sequence[int]
    data_methods: Sequence[str] = ()  # dynamic methods in place of the coresets; their `keep` is the ratio
    score_epochs: int = 10  # of the run that counts forgetting events
    finetune_epochs: int = 10
    finetune_on: str = "all"  # or "coreset": the coreset or data method that the model was trained with
    finetune_lr: float | None = None  # peak learning rate; by default that of the settings
    scope: str = "layer"  # of `network.prune`
    reinitialize: bool = False  # fine-tune from new random weights under the masks
    save_models: bool = False  # keep the cells' final models, as plain models with zeros

    def __post_init__(self) -> None:
        require(bool(self.ratios and self.amounts and self.seeds), "a grid needs at least one ratio, amount and seed")
        for ratio in self.ratios:
            require(0 < ratio < 1, f"--ratios are fractions of the data in (0, 1), got {ratio:g}")
        for amount in self.amounts:
            require(0 <= amount < 1, f"--amounts are shares of the weights in [0, 1), got {amount:g}")
        for option, values in (("ratios", self.ratios), ("amounts", self.amounts)):
            require(len({f"{value:g}" for value in values}) == len(values), f"--{option} names a number twice")
        for name in self.data_methods:
            known = [method for method in METHODS if method != "full"]
            require(name in known, suggest(name, known, what="data method"))
        require(len(set(self.data_methods)) == len(self.data_methods), "--data-method names a method twice")
        if not self.data_methods:
            require(not self.settings.option, "--option is for the methods of --data-method, and none is named")
            require(self.score_epochs >= 2, "--score-epochs must be at least 2: forgetting compares two epochs")
        require(self.finetune_epochs >= 1, f"--finetune-epochs must be at least 1, got {self.finetune_epochs}")
        for value, known, what in (
            (self.finetune_on, ["all", "coreset"], "--finetune-on"),
            (self.scope, ["layer", "global"], "scope"),
        ):
            require(value in known, suggest(value, known, what=what))
        rate = self.finetune_lr
        require(rate is None or 0 < rate < float("inf"), f"--finetune-lr must be positive, got {rate}")
        for arm in (BASE, *self.data_methods):
            check(self._settings(arm, min(self.ratios), min(self.seeds), None))

    @property
    def arms(self) -> list[str]:
        """Coresets or data methods that are compared with the base."""
        return list(self.data_methods or CORESETS)

    def cells(self) -> Iterator[Cell]:
        """All cells, in the order of their rows."""
        for seed in self.seeds:
            for arm, ratio in ((BASE, None), *((arm, ratio) for arm in self.arms for ratio in self.ratios)):
                yield from (Cell(arm, ratio, amount, seed) for amount in self.amounts)

    def scored(self, cell: Cell) -> bool:
        """Whether a cell's coreset is chosen by scores."""
        return not self.data_methods and cell.arm in SCORED

    def epochs(self) -> int:
        """Epochs of all runs together, for a progress bar."""
        cells = list(self.cells())
        scored = 0 if self.data_methods else len(self.seeds) * self.score_epochs
        trained = len({cell.trained for cell in cells}) * self.settings.epochs
        return scored + trained + len(cells) * self.finetune_epochs

    # -- settings of the runs -----------------------------------------------------------------------------------------

    def scoring(self, seed: int) -> Settings:
        """Settings of the run that counts forgetting events."""
        return replace(self._settings(BASE, None, seed, None), epochs=self.score_epochs)

    def training(self, cell: Cell, coreset: Path) -> Settings:
        """Settings of the run that trains the cell's model."""
        return self._settings(cell.arm, cell.ratio, cell.seed, coreset)

    def tuning(self, cell: Cell, coreset: Path) -> Settings:
        """Settings of the run after pruning, with another seed for order, augmentation and new weights."""
        arm = BASE if self.finetune_on == "all" else cell.arm
        seed = stream(cell.seed, "fine-tuning") % (1 << 31)
        settings = self._settings(arm, cell.ratio, seed, coreset)
        return replace(settings, epochs=self.finetune_epochs, lr=self.finetune_lr or settings.lr)

    def _settings(self, arm: str, ratio: float | None, seed: int, coreset: Path | None) -> Settings:
        plain = replace(
            self.settings, arm=arm, seed=seed, selection=None, keep=None, budget=None, steps=None, statistics=""
        )
        if arm == BASE:
            return replace(plain, method="full", option=())
        if arm in self.data_methods:
            return replace(plain, method=arm, keep=ratio)
        assert coreset is not None
        return on_coreset(plain, coreset)

    # -- as a sweep ---------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> dict[str, Any]:
        """What the cells of one table share: all but ratios, amounts, seeds and arms."""
        return {**self._shared_settings(), **self._shared()}

    @property
    def key(self) -> str:
        """Hash for the name of a folder, which grids of one identity share."""
        return digest(self.identity)

    def steps(self, data: Data, places: Places) -> dict[Key, Steps]:
        """How each row is made: a scoring run per seed, a training run per arm, ratio and seed, and the cells."""
        self._check_data(data)
        make, rows = Rows(self, data, places.out), dict[Key, Steps]()
        for cell in self.cells():
            if self.scored(cell):
                rows.setdefault(("scoring", cell.seed), make.scoring(cell.seed))
            rows.setdefault(("training", cell.trained), make.training(cell))
            rows["cells", cell] = make.cell(cell)
        return rows

    def kept(self, content: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
        """Finished rows of this grid; those of other ratios, amounts, arms and seeds are not shown."""
        rows: dict[Key, dict[str, Any]] = {("scoring", row["seed"]): row for row in content["scoring"]}
        for row in content["training"]:
            rows["training", Cell(row["arm"], row["ratio"], 0.0, row["seed"]).trained] = row
        for row in content["cells"]:
            rows["cells", Cell(row["arm"], row["ratio"], row["amount"], row["seed"])] = row
        planned = set[Key]()
        for cell in self.cells():
            planned |= {("scoring", cell.seed), ("training", cell.trained), ("cells", cell)}
        return {key: row for key, row in rows.items() if key in planned}

    def summary(self, data: Data, rows: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
        """Content of joint.json: data, model, what the cells share, `grid`, rows by kind, and their `summary`."""
        content = {
            "data": self.settings.data,
            "model": self.settings.model,
            "train_samples": len(data.train),
            "test_samples": len(data.test),
            "epochs": self.settings.epochs,
            "settings": self._shared_settings(),
            **self._shared(),
            "grid": {name: list(getattr(self, name)) for name in ("arms", "ratios", "amounts", "seeds")},
            **{kind: [row for (of, _), row in rows.items() if of == kind] for kind in KINDS},
        }
        return {**content, "summary": summarize(content)}

    def _shared_settings(self) -> dict[str, Any]:
        of_runs = ("seed", "method", "selected", "keep", "budget", "steps", "statistics")
        return {name: value for name, value in self.settings.computed().items() if name not in of_runs}

    def _shared(self) -> dict[str, Any]:
        names = ("score_epochs", "finetune_epochs", "finetune_on", "scope", "reinitialize")
        return {
            "data_side": "methods" if self.data_methods else "coresets",  # both have an arm `random`
            **{name: getattr(self, name) for name in names},
            "finetune_lr": self.finetune_lr or self.settings.lr,
        }

    def _check_data(self, data: Data) -> None:
        """Raise UsageError for settings that do not fit the data or the model."""
        size, batch = len(data.train), self.settings.batch_size
        for arm in self.data_methods:
            for ratio in self.ratios:
                build_pruner(self._settings(arm, ratio, min(self.seeds), None), size, data.train.labels)
        for ratio in self.ratios:
            kept = count_of(size, ratio)
            require(
                kept // distributed.world_size() >= batch,
                f"--ratios: {ratio:g} of {size} samples are {kept}, fewer than a batch of {batch}: lower --batch-size",
            )
        model = build.build(self.settings.model, data.shape, len(data.classes), self.settings.seed)
        try:
            network.prune(model, max(self.amounts), scope=self.scope)
        except ValueError as error:
            raise UsageError(f"--model {self.settings.model}: {error}") from error


class Rows:
    """Makes the rows of a grid in the folder `out`."""

    def __init__(self, grid: Grid, data: Data, out: Path):
        self.grid, self.data, self.out = grid, data, out
        settings = grid.settings
        self.model = build.build(settings.model, data.shape, len(data.classes), settings.seed)  # for its FLOPs
        self.forgotten: dict[int, dict[str, Tensor]] = {}  # by seed, what `stages.forgotten` returns

    def scoring(self, seed: int) -> Steps:
        """Returns the row of a seed's scoring run."""
        settings, out = self.grid.scoring(seed), self.out / "scoring" / f"seed{seed}"
        (record,) = yield [Job("scoring", seed, settings, out, test=False, watch="forgetting")]
        if seed not in self.forgotten:
            with locked(self.out):  # the first of several calls writes the table
                self.forgotten[seed] = stages.forgotten(settings, out, self.data)
        counts, last = (self.forgotten[seed][name] for name in ("forgetting", "forgetting_last"))
        flops = stages.flops(self.model, self.data, record.samples, scored=settings.epochs * len(counts))
        return {
            "seed": seed,
            "samples": record.samples,  # trained
            "flops": flops,  # of training and scoring
            "forgotten": torch.bincount(counts.long()).tolist(),  # how many samples were forgotten 0, 1, 2 ... times
            "never_right": int((counts != last).sum()),  # samples
        }

    def training(self, cell: Cell) -> Steps:
        """Returns the row of the run that trains a cell's model."""
        if self.grid.scored(cell):
            yield from self.scoring(cell.seed)
        settings, out = self.grid.training(cell, self._coreset(cell)), self.out / "training" / cell.trained
        arm = cell.trained.removesuffix(f"-seed{cell.seed}")
        (record,) = yield [Job(arm, cell.seed, settings, out, save_model=True, watch="accuracy")]
        return {
            "arm": cell.arm,
            "ratio": cell.ratio,
            "seed": cell.seed,
            "accuracy": record.accuracy,
            "samples": record.samples,
            "steps": record.steps,
            "flops": stages.flops(self.model, self.data, record.samples),
            "curve": stages.read_curve(out, settings.epochs)["accuracy"],  # on the test set, after every epoch
        }

    def cell(self, cell: Cell) -> Steps:
        """Returns the row of a cell; it is written into the cell's folder, where the model is then deleted."""
        grid, out = self.grid, self.out / "cells" / cell.name
        file, weights = out / "cell.json", out / "model.safetensors"
        if distributed.agreed(file.exists()):
            return files.read_json(file)
        scoring = (yield from self.scoring(cell.seed))["flops"] if grid.scored(cell) else 0.0
        trained = yield from self.training(cell)
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
        with locked(self.out):
            if distributed.agreed(file.exists()):
                return files.read_json(file)  # another call has written it, and deleted the model
            model = stages.load(weights, settings, self.data)
            network.finalize(model)
            zeros, curve = network.sparsity(model), stages.read_curve(out, settings.epochs)
            dense, sparse = (stages.flops(model, self.data, record.samples, sparse=sparse) for sparse in (False, True))
            row = {
                **asdict(cell),
                "accuracy": record.accuracy,  # on the test set, after fine-tuning
                "trained_accuracy": trained["accuracy"],  # before pruning
                "pruned_accuracy": curve["before"],  # after pruning, before fine-tuning
                "sparsity": zeros.overall,  # share of zeros in the prunable weights
                "layers": dict(zeros.layers),  # the same by layer
                "samples": {"training": trained["samples"], "fine_tuning": record.samples},
                "flops": {
                    "scoring": scoring,
                    "training": trained["flops"],
                    "fine_tuning": sparse,  # as if zeros were free; "total_dense" counts them
                    "total": scoring + trained["flops"] + sparse,
                    "total_dense": scoring + trained["flops"] + dense,
                },
                "curve": [curve["before"], *curve["accuracy"]],  # on the test set, after pruning and after every epoch
            }
            distributed.barrier()  # every rank has read the model
            if distributed.rank() == 0:
                if grid.save_models:
                    tasks.of(settings, self.data).save(model, out)
                files.write_json(file, row)
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
