"""Compare methods at equal compute: which runs a comparison has, and their settings."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ... import coresets, distributed
from ...coresets.budget import count_of
from ...dynamics import STATISTICS
from ...errors import UsageError, suggest
from ...methods import METHODS
from ..data.named import Data
from ..report.summary import summarize_methods
from ..training.build import build_pruner, check, load_data, recordable
from ..training.settings import Settings
from . import engines
from .compare_rows import Row, Untrained, method_run, untrained_row
from .engines import Engine, Report, Steps
from .sweep import Places, carry_out, on_coreset

SHORT = "short"  # all data, for as many steps as the pruned runs


class Plan(NamedTuple):
    """The schedule that all pruned methods share, for a number of training samples."""

    keep: float  # in a pruned epoch
    steps: int
    full: list[bool]  # by epoch


@dataclass(frozen=True)
class Comparison:
    """Methods, seeds and the settings they share. It is a `Sweep`.

    All pruned methods have the settings' schedule: `warmup` epochs full, then `keep`, then `anneal` of the epochs full.
    Every run but `full` trains the same number of optimizer steps, those of that schedule: `short` on all data, a
    static method on its coreset of `keep`, a method that decides how much it keeps on what it keeps; the learning rate
    of each is planned over its own steps.

    Static methods need a model first: one scoring run per seed, on all the data, serves all of them. The cost of
    scoring and of selecting is in the row of each.

    Attributes:
        settings: of every run; method, seed and steps are set run by run.
        methods: names from `METHODS` and `coresets.METHODS`, and "short".
        seeds: one run of each method per seed.
        learning_rates: if there are any, each method takes the one with the best validation accuracy on the first seed.
        score_epochs: epochs of a scoring run; by default those of the settings.
        score_model: model of a scoring run; by default that of the settings.
        score_batch_size: batch size of a scoring run; by default that of the settings.
        finetune_epochs: of contrastive learning: epochs in which every encoder is then fine-tuned on all labels.
    """

    kind: ClassVar[str] = "comparison"
    file: ClassVar[str] = "compare.json"

    settings: Settings
    methods: Sequence[str]
    seeds: Sequence[int]
    learning_rates: Sequence[float] = ()
    score_epochs: int | None = None
    score_model: str | None = None
    score_batch_size: int | None = None
    finetune_epochs: int = 0
    _plans: dict[int, Plan] = field(default_factory=dict, init=False, repr=False, compare=False)

    def validate(self) -> None:
        """Raise UsageError for invalid or contradictory settings, before any data is read."""
        check(self.settings)
        if not self.methods or not self.seeds:
            raise UsageError("a comparison needs at least one method and one seed")
        if self.score_epochs is not None and self.score_epochs < 1:
            raise UsageError(f"--score-epochs must be at least 1, got {self.score_epochs}")
        if self.finetune_epochs < 0:
            raise UsageError(f"--finetune-epochs must not be negative, got {self.finetune_epochs}")
        if self.finetune_epochs and self.settings.task != "contrastive":
            raise UsageError("--finetune-epochs is for --task contrastive: leave it out")
        known = [*METHODS, SHORT, *coresets.METHODS]
        for number, method in enumerate(self.methods):
            if method not in known:
                raise UsageError(suggest(method, known, what="method"))
            if method in self.methods[:number]:
                raise UsageError(f"method {method} is named twice")
        for text in self.settings.option:
            method, _, name = text.split("=", 1)[0].rpartition(".")
            if name.replace("-", "_") == "prune_probability":
                raise UsageError(
                    f"all methods of a comparison have the same schedule: --option {text} would change it for one"
                )
            if not method:
                raise UsageError(f"--option {text} must say which method it is for: METHOD.{text}")
        for method in self.methods:
            if method in METHODS:
                check(replace(self.settings, method=method))
        if self.static:
            self._validate_static()
        if self.learning_rates and not self.settings.val_fraction:
            raise UsageError("learning rates are compared on a validation split: add --val-fraction 0.1")
        for rate in self.learning_rates:
            if not 0 < rate < float("inf"):
                raise UsageError(f"--tune-lr takes positive learning rates, got {rate}")

    def _validate_static(self) -> None:
        if self.settings.task != "classification":
            raise UsageError(f"{self.static[0]} is a static method, which needs images with labels: leave it out")
        check(self.scoring(self.settings.seed))
        for method in self.static:
            coreset = coresets.METHODS[method]
            if coreset.needs == "validation" and not self.settings.val_fraction:
                raise UsageError(f"{method} needs a validation split: add --val-fraction 0.1")
            if coreset.needs == "scores" and self._statistic(method) is None:
                raise UsageError(f"{method} reads a score: choose one with --option {method}.statistic=NAME")
            for option in self.selector_options(method):
                if option not in coreset.options():
                    raise UsageError(suggest(option, coreset.options(), what=f"option of {method}"))

    # -- the schedule -------------------------------------------------------------------------------------------------

    def plan(self, size: int) -> Plan:
        """Keep and steps of the schedule for N training samples."""
        if size not in self._plans:
            pruner = build_pruner(replace(self.settings, method="rs2", option=()), size)
            keep = min(pruner.schedule(epoch) for epoch in range(self.settings.epochs))
            ranks = distributed.world_size()
            steps = pruner.planned_steps(self.settings.batch_size, world_size=ranks, drop_last=True)
            self._plans[size] = Plan(keep, steps, [count == size for count in pruner.counts])
        return self._plans[size]

    def schedule(self, size: int) -> str:
        """The schedule of all pruned runs in words."""
        plan = self.plan(size)
        pruned = plan.full.count(False)
        start = plan.full.index(False) if pruned else len(plan.full)
        return (
            f"{len(plan.full)} epochs: {start} full at the start (--warmup), {pruned} with {plan.keep:.3g} of the data "
            f"(--keep), {len(plan.full) - start - pruned} full at the end (--anneal); {plan.steps:,} steps"
        )

    def epochs(self, size: int) -> int:
        """Epochs of all runs together, those for scoring and tuning included, for a progress bar."""
        dynamic = (len(self.methods) - len(self.static)) * self.settings.epochs
        static = len(self.static) and len(self.static) * self._coreset_epochs(size)
        scored = self.scoring(0).epochs if self.static else 0
        tuned = (len(self.methods) + 1) * self.finetune_epochs  # the methods' encoders, and an untrained one
        return (len(self.seeds) + len(self.learning_rates)) * (dynamic + static) + len(self.seeds) * (scored + tuned)

    def _coreset_epochs(self, size: int) -> int:
        """Epochs on a coreset that the planned steps need."""
        plan = self.plan(size)
        batches = max(count_of(size, plan.keep) // distributed.world_size() // self.settings.batch_size, 1)
        return -(-plan.steps // batches)

    # -- settings of the runs -----------------------------------------------------------------------------------------

    @property
    def static(self) -> list[str]:
        """The methods that choose a coreset once, from a scoring run."""
        return [method for method in self.methods if method in coresets.METHODS]

    def run_settings(self, method: str, seed: int, size: int, coreset: Path | None = None) -> Settings:
        """Settings of one run.

        Args:
            method: one of the methods.
            seed: one of the seeds.
            size: training samples, N.
            coreset: file of a static method's coreset.
        """
        steps = None if method == "full" else self.plan(size).steps
        changes: dict[str, Any] = {"arm": method, "seed": seed, "steps": steps}
        if coreset is not None:
            return on_coreset(self.settings, coreset, epochs=self._coreset_epochs(size), **changes)
        if method in ("full", SHORT):
            return replace(self.settings, method="full", option=(), **changes)
        own = tuple(text for text in self.settings.option if text.split("=", 1)[0].rpartition(".")[0] == method)
        return replace(self.settings, method=method, option=own, **changes)

    def scoring(self, seed: int) -> Settings:
        """Settings of the run that scores all samples."""
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
                for owner, options in self.settings.options().items()
                for name, value in options.items()
                if _of_statistic(owner, name)
            ),
        )
        needed = [self._statistic(method) for method in self.static]
        names = [*recordable(settings), *(name for name in needed if name)]
        return replace(settings, statistics=",".join(dict.fromkeys(names)))

    def selector_options(self, method: str) -> dict[str, Any]:
        """A static method's options for its selector; others of the same name belong to the statistic."""
        options = self.settings.options().get(method, {})
        return {name: value for name, value in options.items() if not _of_statistic(method, name)}

    def _statistic(self, method: str) -> str | None:
        """The statistic that a static method reads, None where it reads none."""
        return self.selector_options(method).get("statistic", coresets.METHODS[method].statistic)

    # -- as a sweep ---------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> dict[str, Any]:
        """What rows of one compare.json share."""
        shared = replace(self.settings, method="rs2", option=()).computed()
        for name in ("method", "seed", "steps", "selected", "statistics", "option"):
            del shared[name]
        scoring = ("score_epochs", "score_model", "score_batch_size") if self.static else ()
        names = ("finetune_epochs", *scoring)
        options = self.settings.options()
        own = {f"options of {method}": options.get(method, {}) for method in self.methods}
        return {**shared, **{name: getattr(self, name) for name in names}, **own}

    def steps(self, data: Data, places: Places) -> dict[Hashable, Steps]:
        """How each row is made."""
        size = len(data.train)
        self.plan(size)
        for method in self.methods:  # a wrong option is refused before anything is trained
            if method not in self.static:
                build_pruner(self.run_settings(method, self.settings.seed, size), size, data.train.labels)
        rows: dict[Hashable, Steps] = {}
        if self.settings.task == "contrastive":
            rows |= {("untrained", seed): untrained_row(self, seed, data, places) for seed in self.seeds}
        for seed in self.seeds:
            rows |= {(method, seed): method_run(self, method, seed, data, places) for method in self.methods}
        return rows

    def kept(self, content: Mapping[str, Any]) -> dict[Hashable, Row | Untrained]:
        """All rows: other methods and seeds stay."""
        rows: dict[Hashable, Row | Untrained] = {}
        rows |= {("untrained", row["seed"]): Untrained(row) for row in content.get("untrained", [])}
        return rows | {(row["method"], row["seed"]): Row(**row) for row in content["runs"]}

    def summary(self, data: Data, rows: Sequence[Row | Untrained]) -> dict[str, Any]:
        """Content of compare.json."""
        settings = self.settings
        content: dict[str, Any] = {"data": settings.data, "model": settings.model}
        content |= {"keep": self.plan(len(data.train)).keep, "epochs": settings.epochs}
        runs = [row.as_dict() for row in rows if isinstance(row, Row)]
        content |= {
            "runs": runs,
            "summary": summarize_methods(runs, list(dict.fromkeys(row["method"] for row in runs))),
        }
        if settings.task != "classification":
            content |= {"task": settings.task, "finetune_epochs": self.finetune_epochs}
        if settings.glue:
            from ..data.glue import GLUE

            content["metric"] = GLUE[settings.glue].metrics[0]
        if settings.task == "contrastive":
            untrained = [row for row in rows if isinstance(row, Untrained)]
            content["untrained"] = [row.as_dict() for row in sorted(untrained, key=lambda row: row.values["seed"])]
        return content


def compare(
    comparison: Comparison,
    out: Path,
    *,
    data: Data | None = None,
    report: Report | None = None,
    engine: Engine = engines.local,
) -> dict[str, Any]:
    """Carry a comparison out, or continue it; arguments as for `carry_out`, errors too.

    Methods and seeds can be added to a folder by later calls.

    Returns:
        Content of `compare.json`: data, model, keep, epochs, runs and summary. Rows of static methods have the cost of
        scoring and selecting, `scoring_samples` and `scoring_seconds`. With a validation split, runs and summary have
        the validation accuracy too, with learning rates to choose from the runs also theirs. Contrastive learning adds
        `untrained`, the accuracies of each seed's encoder before training, and with fine-tuning `finetuned_accuracy`.
    """
    comparison.validate()
    data = load_data(comparison.settings) if data is None else data
    return carry_out(comparison, out, data=data, report=report, engine=engine)


def _of_statistic(name: str, parameter: str) -> bool:
    """Whether the statistic of that name has the parameter."""
    return name in STATISTICS and parameter in signature(STATISTICS[name]).parameters
