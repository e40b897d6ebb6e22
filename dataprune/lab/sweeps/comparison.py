"""Which runs a comparison at equal compute consists of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from ... import coresets, distributed
from ...coresets.budget import count_of
from ...dynamics import STATISTICS
from ...errors import UsageError, suggest
from ...methods import METHODS
from ...pruner import Pruner
from ...selection import Selection
from ..data.named import Data
from ..training import select, setup
from ..training.settings import Settings

SHORT = "short"  # all data, for as many steps as the pruned runs


@dataclass(frozen=True)
class Comparison:
    """Methods, seeds and the settings they share.

    All pruned methods run the settings' schedule: `warmup` epochs full, then `keep`, then `anneal` of the epochs full.
    Every run but `full` trains equally many optimizer steps, those of that schedule: `short` on all data, a static
    method on its coreset of `keep`, a method that decides itself how much it keeps on what it keeps; each with its
    learning rate planned over its own steps.

    Static methods need a model first: one scoring run per seed, on all the data, serves all of them. What it costs, and
    what selecting costs, is in each one's row.

    Attributes:
        settings: of every run; its method, seed and steps are set run by run.
        methods: names from METHODS, from `coresets.METHODS` where that has no such name, and "short".
        seeds: one run of each method per seed.
        learning_rates: if there are any, each method takes the one with the best validation accuracy on the first seed.
        score_epochs: epochs of a scoring run; those of the settings by default.
        score_model: model of a scoring run; that of the settings by default. Another shows whether coresets carry over.
        score_batch_size: batch size of a scoring run; that of the settings by default.
        finetune_epochs: of contrastive learning: every encoder is then trained on all labels too, for so many epochs.
    """

    settings: Settings
    methods: Sequence[str]
    seeds: Sequence[int]
    learning_rates: Sequence[float] = ()
    score_epochs: int | None = None
    score_model: str | None = None
    score_batch_size: int | None = None
    finetune_epochs: int = 0

    def validate(self) -> None:
        """Raise UsageError for what cannot be meant, before any data is read."""
        setup.check(self.settings)
        if not self.methods or not self.seeds:
            raise UsageError("a comparison needs at least one method and one seed")
        if self.score_epochs is not None and self.score_epochs < 1:
            raise UsageError(f"--score-epochs must be at least 1, got {self.score_epochs}")
        if self.finetune_epochs < 0:
            raise UsageError(f"--finetune-epochs must not be negative, got {self.finetune_epochs}")
        if self.finetune_epochs and self.settings.task != "contrastive":
            raise UsageError("--finetune-epochs follow on --task contrastive: leave them out")
        known = list(dict.fromkeys([*METHODS, SHORT, *coresets.METHODS]))
        for number, method in enumerate(self.methods):
            if method not in known:
                raise UsageError(suggest(method, known, what="method"))
            if method in self.methods[:number]:
                raise UsageError(f"method {method} is named twice")
        for text in self.settings.option:
            method, _, name = text.split("=", 1)[0].rpartition(".")
            if name.replace("-", "_") == "prune_probability":
                raise UsageError(
                    f"all methods of a comparison share one schedule: --option {text} would change it for one"
                )
            if not method:
                raise UsageError(f"--option {text} must say which method it is for: METHOD.{text}")
        if self.static and self.settings.task != "classification":
            raise UsageError(f"{self.static[0]} is a static method, and these are for images and labels: leave it out")
        for method in self.methods:
            if method in METHODS:
                setup.check(replace(self.settings, method=method))
        if self.static:
            setup.check(self.scoring(self.settings.seed))
            unmet = [method for method in self.static if coresets.METHODS[method].needs == "validation"]
            if unmet and not self.settings.val_fraction:
                raise UsageError(f"{unmet[0]} needs a validation split: add --val-fraction 0.1")
        for method in self.static:
            if coresets.METHODS[method].needs == "scores" and self._statistic(method) is None:
                raise UsageError(f"{method} reads a score: say which, with --option {method}.statistic=NAME")
            known = coresets.METHODS[method].options()
            for option in self.selector_options(method):
                if option not in known:
                    raise UsageError(suggest(option, known, what=f"option of {method}"))
        if self.learning_rates and not self.settings.val_fraction:
            raise UsageError("a learning rate is chosen on a validation split: add --val-fraction 0.1")
        for rate in self.learning_rates:
            if not 0 < rate < float("inf"):
                raise UsageError(f"--tune-lr takes positive learning rates, got {rate}")

    def keep(self, size: int) -> float:
        """The fraction kept in a pruned epoch; solved, where the settings give a budget."""
        return min(self._pruner(size).schedule(epoch) for epoch in range(self.settings.epochs))

    def steps(self, size: int) -> int:
        """Optimizer steps of every run but `full`."""
        ranks = distributed.world_size()
        return self._pruner(size).planned_steps(self.settings.batch_size, world_size=ranks, drop_last=True)

    def run_settings(self, method: str, seed: int, steps: int) -> Settings:
        """What one run is given."""
        settings = replace(self.settings, arm=method, seed=seed, steps=None if method == "full" else steps)
        if method in ("full", SHORT):
            return replace(settings, method="full", option=())
        own = tuple(text for text in self.settings.option if text.split("=", 1)[0].rpartition(".")[0] == method)
        return replace(settings, method=method, option=own)

    def schedule(self, size: int) -> str:
        """The schedule of all pruned runs in words."""
        settings, full = self.settings, [count == size for count in self._pruner(size).counts]
        start = full.index(False) if False in full else len(full)
        end = len(full) - start - full.count(False)
        return (
            f"{settings.epochs} epochs: {start} full at the start (--warmup), {full.count(False)} with "
            f"{self.keep(size):.3g} of the data (--keep), {end} full at the end (--anneal); {self.steps(size):,} steps"
        )

    @property
    def static(self) -> list[str]:
        """The methods that choose once, from a scoring run."""
        return [method for method in self.methods if method not in METHODS and method != SHORT]

    def scoring(self, seed: int) -> Settings:
        """Of the run that scores all samples."""
        settings = replace(
            self.settings,
            method="full",
            seed=seed,
            model=self.score_model or self.settings.model,
            batch_size=self.score_batch_size or self.settings.batch_size,
            epochs=self.settings.epochs if self.score_epochs is None else self.score_epochs,
            steps=None,
            keep=None,
            budget=None,
            option=tuple(
                f"{owner}.{name}={json.dumps(value)}"
                for owner, own in self.settings.options().items()
                for name, value in own.items()
                if _of_statistic(owner, name)
            ),
        )
        needed = [self._statistic(method) for method in self.static]
        every = [*setup.recordable(settings), *(name for name in needed if name)]
        return replace(settings, statistics=",".join(dict.fromkeys(every)))

    def choose(self, method: str, seed: int, run: Path, data: Data) -> tuple[Selection, dict[str, Any]]:
        """The coreset of a static method, from the folder of its scoring run, and its metadata."""
        keep = self.keep(len(data.train))
        return select.select(method, run, keep=keep, seed=seed, options=self.selector_options(method), data=data)

    def coreset_settings(self, method: str, seed: int, steps: int, size: int, selection: Path) -> Settings:
        """What a run on a coreset is given: as many epochs as the steps need."""
        count = count_of(size, self.keep(size))
        batches = max(count // distributed.world_size() // self.settings.batch_size, 1)
        return replace(
            self.settings,
            method="fixed",
            arm=method,
            selection=str(selection),
            seed=seed,
            steps=steps,
            epochs=-(-steps // batches),
            keep=None,
            budget=None,
            warmup=Settings.warmup,
            anneal=Settings.anneal,
            option=(),
        )

    def epochs(self, size: int) -> int:
        """Epochs of all runs together, those for scoring and tuning included: what a progress bar counts."""
        dynamic = (len(self.methods) - len(self.static)) * self.settings.epochs
        static = (
            len(self.static) and len(self.static) * self.coreset_settings("", 0, self.steps(size), size, Path()).epochs
        )
        scored = self.scoring(0).epochs if self.static else 0
        tuned = (len(self.methods) + 1) * self.finetune_epochs  # the methods' encoders, and an untrained one
        return (len(self.seeds) + len(self.learning_rates)) * (dynamic + static) + len(self.seeds) * (scored + tuned)

    def _statistic(self, method: str) -> str | None:
        """The statistic that a static method reads, None where it reads none."""
        return self.selector_options(method).get("statistic", coresets.METHODS[method].statistic)

    def selector_options(self, method: str) -> dict[str, Any]:
        """What `--option` says to a static method's selector."""
        own = self.settings.options().get(method, {})
        return {name: value for name, value in own.items() if not _of_statistic(method, name)}

    def _pruner(self, size: int) -> Pruner:
        return setup.build_pruner(replace(self.settings, method="rs2", option=()), size)


def _of_statistic(name: str, parameter: str) -> bool:
    """Whether it is a parameter of that statistic; others of that name are the selector's."""
    return name in STATISTICS and parameter in signature(STATISTICS[name]).parameters
