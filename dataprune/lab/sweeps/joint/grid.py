"""Which runs a grid of joint data and network pruning has, and their settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .... import distributed, network
from ....coresets.budget import count_of
from ....errors import UsageError, suggest
from ....methods import METHODS
from ...data.named import Data
from ...models import build
from ...report.joint import BASE
from ...training.build import build_pruner, check
from ...training.device import stream
from ...training.settings import Settings
from ..sweep import on_coreset

SCORED = ("low", "high")  # coresets of the lowest and the highest forgetting scores
CORESETS = (*SCORED, "random")


@dataclass(frozen=True)
class Cell:
    """One model that is trained, pruned and fine-tuned.

    Attributes:
        arm: a coreset, a data method, or `BASE`.
        ratio: fraction of the data that it is trained on; None for the base, which has all.
        amount: share of the weights that is pruned.
        seed: of all stages.
    """

    arm: str
    ratio: float | None
    amount: float
    seed: int

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
    """The pipeline of "Drop it like it's hot", for every ratio, amount and seed.

    Attributes:
        settings: of every run; its epochs are those of training. Method, coreset and seed are set run by run.
        ratios: fractions of the data kept, M / N.
        amounts: shares of the weights pruned.
        seeds: all stages are carried out once per seed.
        data_methods: dynamic pruning methods in place of the coresets; their `keep` is the ratio.
        score_epochs: epochs of the run that counts forgetting events.
        finetune_epochs: epochs after pruning.
        finetune_on: "all" the data, or the "coreset" or data method that the model was trained with.
        finetune_lr: peak learning rate of fine-tuning; by default that of the settings.
        scope: of `network.prune`.
        reinitialize: fine-tune from new random weights under the masks.
    """

    settings: Settings
    ratios: Sequence[float]
    amounts: Sequence[float]
    seeds: Sequence[int]
    data_methods: Sequence[str] = ()
    score_epochs: int = 10
    finetune_epochs: int = 10
    finetune_on: str = "all"
    finetune_lr: float | None = None
    scope: str = "layer"
    reinitialize: bool = False

    @property
    def arms(self) -> list[str]:
        """Coresets or data methods that are compared with the base."""
        return list(self.data_methods or CORESETS)

    def cells(self) -> Iterator[Cell]:
        """All cells, in the order of their rows."""
        for seed in self.seeds:
            yield from (Cell(BASE, None, amount, seed) for amount in self.amounts)
            for arm in self.arms:
                for ratio in self.ratios:
                    yield from (Cell(arm, ratio, amount, seed) for amount in self.amounts)

    def validate(self) -> None:
        """Raise UsageError for invalid or contradictory settings, before any data is read."""
        _require(bool(self.ratios and self.amounts and self.seeds), "a grid needs at least one ratio, amount and seed")
        for ratio in self.ratios:
            _require(0 < ratio < 1, f"--ratios are fractions of the data in (0, 1), got {ratio:g}")
        for amount in self.amounts:
            _require(0 <= amount < 1, f"--amounts are shares of the weights in [0, 1), got {amount:g}")
        for option, values in (("ratios", self.ratios), ("amounts", self.amounts)):
            _require(len({f"{value:g}" for value in values}) == len(values), f"--{option} names a number twice")
        for name in self.data_methods:
            known = [method for method in METHODS if method != "full"]
            _require(name in known, suggest(name, known, what="data method"))
        _require(len(set(self.data_methods)) == len(self.data_methods), "--data-method names a method twice")
        if not self.data_methods:
            _require(not self.settings.option, "--option is for the methods of --data-method, and none is named")
            _require(self.score_epochs >= 2, "--score-epochs must be at least 2: forgetting compares two epochs")
        _require(self.finetune_epochs >= 1, f"--finetune-epochs must be at least 1, got {self.finetune_epochs}")
        for value, known, what in (
            (self.finetune_on, ["all", "coreset"], "--finetune-on"),
            (self.scope, ["layer", "global"], "scope"),
        ):
            _require(value in known, suggest(value, known, what=what))
        rate = self.finetune_lr
        _require(rate is None or 0 < rate < float("inf"), f"--finetune-lr must be positive, got {rate}")
        for arm in (BASE, *self.data_methods):
            check(self._settings(arm, min(self.ratios), min(self.seeds), None))

    def check(self, data: Data) -> None:
        """Raise UsageError for settings that do not fit the data or the model, before anything is trained."""
        size, batch = len(data.train), self.settings.batch_size
        for arm in self.data_methods:
            for ratio in self.ratios:
                build_pruner(self._settings(arm, ratio, min(self.seeds), None), size, data.train.labels)
        for ratio in self.ratios:
            kept = count_of(size, ratio)
            _require(
                kept // distributed.world_size() >= batch,
                f"--ratios: {ratio:g} of {size} samples are {kept}, fewer than a batch of {batch}: lower --batch-size",
            )
        model = build.build(self.settings.model, data.shape, len(data.classes), self.settings.seed)
        try:
            network.prune(model, max(self.amounts), scope=self.scope)
        except ValueError as error:
            raise UsageError(f"--model {self.settings.model}: {error}") from error

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

    def epochs(self) -> int:
        """Epochs of all runs together, for a progress bar."""
        cells = list(self.cells())
        scored = 0 if self.data_methods else len(self.seeds) * self.score_epochs
        trained = len({cell.trained for cell in cells}) * self.settings.epochs
        return scored + trained + len(cells) * self.finetune_epochs

    def describe(self) -> dict[str, Any]:
        """What the cells of one table share: all but ratios, amounts, seeds and arms."""
        settings = self.settings.computed()
        for name in ("seed", "method", "selected", "keep", "budget", "steps", "statistics"):
            del settings[name]
        return {
            "settings": settings,
            "data_side": "methods" if self.data_methods else "coresets",  # both have an arm `random`
            "score_epochs": self.score_epochs,
            "finetune_epochs": self.finetune_epochs,
            "finetune_on": self.finetune_on,
            "finetune_lr": self.finetune_lr or self.settings.lr,
            "scope": self.scope,
            "reinitialize": self.reinitialize,
        }

    def key(self) -> str:
        """Hash for the name of a folder."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:8]

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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)
