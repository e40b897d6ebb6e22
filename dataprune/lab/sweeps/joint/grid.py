"""Which runs a grid of joint data and network pruning has, and their settings."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from .... import distributed, network
from ....coresets.budget import count_of
from ....errors import UsageError, suggest
from ....methods import METHODS
from ...data.named import Data
from ...models import build
from ...report.joint import BASE, summarize
from ...training.build import build_pruner, check
from ...training.device import stream
from ...training.settings import Settings, require
from ..engines import Steps
from ..sweep import Places, digest, on_coreset
from .run import ROWS, SCORED, Cell, Row, Rows, Scoring, Training

CORESETS = (*SCORED, "random")


@dataclass(frozen=True)
class Grid:
    """The pipeline of "Drop it like it's hot", for every ratio, amount and seed, as a `Sweep`.

    For each seed: score all samples by how often a training run forgets them; take the most and the least forgotten
    ones, and random ones; train a new model on each coreset and one on all the data; prune the weights of smallest
    magnitude; train on with the masks held. Scoring is shared by all cells of a seed, training by those of all amounts.

    Raises:
        UsageError: for invalid or contradictory settings.
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

    def steps(self, data: Data, places: Places) -> dict[Hashable, Steps]:
        """How each row is made: a scoring run per seed, a training run per arm, ratio and seed, and the cells."""
        self._check_data(data)
        make, rows = Rows(self, data, places.out), dict[Hashable, Steps]()
        for cell in self.cells():
            if self.scored(cell):
                rows.setdefault(("scoring", cell.seed), make.scoring(cell.seed))
            rows.setdefault(cell.trained, make.training(cell))
            rows[cell] = make.cell(cell)
        return rows

    def kept(self, content: Mapping[str, Any]) -> dict[Hashable, Scoring | Training | Row]:
        """Finished rows of this grid; those of other ratios, amounts, arms and seeds are not shown."""
        rows: dict[Hashable, Scoring | Training | Row] = {
            row.key: row for name, kind in ROWS.items() for row in (kind(**values) for values in content[name])
        }
        planned = {key for cell in self.cells() for key in (cell, cell.trained, ("scoring", cell.seed))}
        return {key: row for key, row in rows.items() if key in planned}

    def summary(self, data: Data, rows: Mapping[Hashable, Scoring | Training | Row]) -> dict[str, Any]:
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
        }
        for name, kind in ROWS.items():
            content[name] = [asdict(row) for row in rows.values() if isinstance(row, kind)]
        return {**content, "summary": summarize(content)}

    def _shared_settings(self) -> dict[str, Any]:
        of_runs = ("seed", "method", "selected", "keep", "budget", "steps", "statistics")
        return {name: value for name, value in self.settings.computed().items() if name not in of_runs}

    def _shared(self) -> dict[str, Any]:
        return {
            "data_side": "methods" if self.data_methods else "coresets",  # both have an arm `random`
            "score_epochs": self.score_epochs,
            "finetune_epochs": self.finetune_epochs,
            "finetune_on": self.finetune_on,
            "finetune_lr": self.finetune_lr or self.settings.lr,
            "scope": self.scope,
            "reinitialize": self.reinitialize,
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
