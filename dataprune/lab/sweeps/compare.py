"""Compare methods at equal steps or FLOPs: which runs a comparison has, their settings, and how each row is made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ... import coresets, distributed
from ...coresets.budget import count_of
from ...dynamics import STATISTICS
from ...errors import UsageError, suggest
from ...methods import METHODS
from ..data.named import Data
from ..report import compute
from ..report.summary import summarize_methods
from ..training import choosing
from ..training.build import build_pruner, check, recordable
from ..training.settings import ONLINE, Settings, require
from . import scoring_cost
from .engines import Steps
from .rows import Rows
from .scoring_cost import Cost
from .sweep import Key, Places, digest, on_coreset, without_schedule

SHORT = "short"  # all data, for as many steps as the pruned runs
EQUAL = ("steps", "flops")  # what every run but `full` can have the same of


class Plan(NamedTuple):
    """The schedule that all pruned methods share, for a number of training samples."""

    keep: float  # in a pruned epoch
    steps: int
    full: list[bool]  # by epoch


@dataclass(frozen=True)
class Comparison:
    """Methods, seeds and the settings they share, as a `Sweep`; methods and seeds can be added to its folder.

    All pruned methods have the settings' schedule: `warmup` epochs full, then `keep`, then `anneal` of the epochs full.
    Every run but `full` trains the same number of optimizer steps, those of that schedule: `short` on all data, a
    static method on its coreset of `keep`, a method that decides how much it keeps on what it keeps; the learning rate
    of each is planned over its own steps. A method `online:NAME` has no full epochs, and trains `keep` of each
    super-batch from the first step on.

    Static methods need a model first: one scoring run per seed, on all the data, serves all of them. The cost of
    scoring and of selecting is in the row of each.

    With `equal="flops"` every run but `full` has the compute of these steps instead, see `compute_share`: what scoring
    costs comes out of the steps of each static method, and a dynamic method that forwards samples only to score them
    stops as much earlier.
    """

    kind: ClassVar[str] = "comparison"
    file: ClassVar[str] = "compare.json"

    settings: Settings  # of every run; method, seed and steps are set run by run
    methods: Sequence[str]  # names from `METHODS`, `coresets.METHODS` and `choosing.NAMES`, and "short"
    seeds: Sequence[int]
    learning_rates: Sequence[float] = ()  # each method takes that of the best validation accuracy on the first seed
    score_epochs: int | None = None  # of a scoring run; by default, as model and batch size, those of the settings
    score_model: str | None = None
    score_batch_size: int | None = None
    score_runs: int = 1  # scoring runs of a seed, over which scores are averaged
    finetune_epochs: int = 0  # of contrastive learning: every encoder is then fine-tuned on all labels
    equal: str = "steps"  # one of `EQUAL`

    def __post_init__(self) -> None:
        settings, scored, tuned = self.settings, self.score_epochs, self.finetune_epochs
        check(settings)
        require(bool(self.methods and self.seeds), "a comparison needs at least one method and one seed")
        require(scored is None or scored >= 1, f"--score-epochs must be at least 1, got {scored}")
        require(self.score_runs >= 1, f"score-runs must be at least 1, got {self.score_runs}")
        require(self.equal in EQUAL, suggest(self.equal, EQUAL, what="value of --equal"))
        require(tuned >= 0, f"--finetune-epochs must not be negative, got {tuned}")
        contrastive, validated = settings.task == "contrastive", settings.val_fraction > 0
        require(not tuned or contrastive, "--finetune-epochs is for --task contrastive: leave it out")
        known = [*METHODS, SHORT, *coresets.METHODS, *choosing.NAMES]
        for number, method in enumerate(self.methods):
            require(method in known or method.startswith(ONLINE), suggest(method, known, what="method"))
            require(method not in self.methods[:number], f"method {method} is named twice")
        for text in settings.option:
            owner, name = _owner_and_name(text)
            schedule = "all methods of a comparison have the same schedule"
            require(name != "prune_probability", f"{schedule}: --option {text} would change it for one")
            require(bool(owner), f"--option {text} must say which method it is for: METHOD.{text}")
        for method in self.methods:
            if method in METHODS:
                check(replace(settings, method=method))
            elif method.startswith(ONLINE):
                check(without_schedule(settings, method=method))
        if self.static:
            self._check_static()
        advice = "learning rates are compared on a validation split: add --val-fraction 0.1"
        require(validated or not self.learning_rates, advice)
        for rate in self.learning_rates:
            require(0 < rate < float("inf"), f"--tune-lr takes positive learning rates, got {rate}")

    def _check_static(self) -> None:
        images, validated = self.settings.task == "classification", self.settings.val_fraction > 0
        require(images, f"{self.static[0]} is a static method, which needs images with labels: leave it out")
        check(self.scoring(self.settings.seed))
        for method in self.static:
            coreset = coresets.METHODS[method]
            options, reads = self.selector_options(method), coreset.needs
            if reads == "validation" and options.get("validation") != "train":
                remedy = f"add --val-fraction 0.1, or --option {method}.validation=train"
                require(validated, f"{method} needs a validation split: {remedy}")
            require(
                reads == "scores" or self.score_runs == 1, f"score-runs is for methods that read scores, not {method}"
            )
            if reads == "scores" and self._statistic(method) is None:
                raise UsageError(f"{method} reads a score: choose one with --option {method}.statistic=NAME")
            for option in options:
                require(option in coreset.options(), suggest(option, coreset.options(), what=f"option of {method}"))

    # -- the schedule -------------------------------------------------------------------------------------------------

    def plan(self, size: int) -> Plan:
        """Keep and steps of the schedule for N training samples."""
        return _plan(replace(self.settings, method="rs2", option=()), size, distributed.world_size())

    def full_steps(self, size: int) -> int:
        """Steps of `full`."""
        settings = replace(self.settings, method="full", option=())
        return _plan(settings, size, distributed.world_size()).steps

    def schedule(self, size: int) -> str:
        """The schedule of all pruned runs in words."""
        plan = self.plan(size)
        pruned = plan.full.count(False)
        start = plan.full.index(False) if pruned else len(plan.full)
        return (
            f"{len(plan.full)} epochs: {start} full at the start (--warmup), {pruned} with {plan.keep:.3g} of the data "
            f"(--keep), {len(plan.full) - start - pruned} full at the end (--anneal); {plan.steps:,} steps"
            + (", or as much compute with scoring (--equal flops)" if self.equal == "flops" else "")
        )

    def epochs(self, size: int) -> int:
        """Epochs of all runs together, those for scoring and tuning included, for a progress bar."""
        online = [self._online_epochs(size) for method in self.methods if method.startswith(ONLINE)]
        dynamic = (len(self.methods) - len(self.static) - len(online)) * self.settings.epochs + sum(online)
        scored = any(map(scoring_cost.needed, self.static)) * self.scoring(0).epochs * self.score_runs
        static = sum(self._coreset_epochs(size, self._about_left(method, size)) for method in self.static)
        tuned = (len(self.methods) + 1) * self.finetune_epochs  # the methods' encoders, and an untrained one
        return (len(self.seeds) + len(self.learning_rates)) * (dynamic + static) + len(self.seeds) * (scored + tuned)

    def _about_left(self, method: str, size: int) -> int:
        """Steps of a static method, up to what is known only later."""
        scored = self.equal == "flops" and scoring_cost.needed(method)
        spent = size * self.scoring(0).epochs * self.score_runs * scored
        return max(self.plan(size).steps - spent // self._batch, 1)

    def _coreset_epochs(self, size: int, steps: int) -> int:
        """Epochs on a coreset that so many steps need."""
        batches = max(count_of(size, self.plan(size).keep) // distributed.world_size() // self.settings.batch_size, 1)
        return -(-steps // batches)

    def _online_epochs(self, size: int) -> int:
        """Epochs of super-batches that the plan's steps, or with equal FLOPs their compute, need."""
        keep, planned, _ = self.plan(size)
        changes: dict[str, Any] = {"steps": planned, "count_forwards": self.equal == "flops"}
        settings = without_schedule(self.settings, method=choosing.NAMES[0], keep=keep, **changes)
        steps = math.ceil(planned / choosing.step_cost(settings))
        return -(-steps // max(size // distributed.world_size() // settings.rows_read, 1))

    @property
    def _batch(self) -> int:
        """Samples of a step, on all ranks together."""
        return self.settings.batch_size * distributed.world_size()

    # -- settings of the runs -----------------------------------------------------------------------------------------

    @property
    def static(self) -> list[str]:
        """The methods that choose a coreset once, from a scoring run."""
        return [method for method in self.methods if method in coresets.METHODS]

    def run_settings(
        self, method: str, seed: int, size: int, coreset: Path | None = None, cost: Cost | None = None
    ) -> Settings:
        """Settings of one run on N training samples, or on the coreset of a static method, whose scores had a `cost`.

        Raises:
            UsageError: if FLOPs are to be equal, and scoring leaves none for training.
        """
        steps = None if method == "full" else scoring_cost.steps_left(self, method, size, cost or {})
        changes: dict[str, Any] = {"arm": method, "seed": seed, "steps": steps}
        if coreset is not None:
            assert steps is not None
            return on_coreset(self.settings, coreset, epochs=self._coreset_epochs(size, steps), **changes)
        if method in ("full", SHORT):
            return replace(self.settings, method="full", option=(), **changes)
        own = tuple(text for text in self.settings.option if _owner_and_name(text)[0] == method)
        forwards = self.equal == "flops" and steps is not None
        if method.startswith(ONLINE):
            changes |= {"option": own, "count_forwards": forwards, "epochs": self._online_epochs(size)}
            return without_schedule(self.settings, method=method, keep=self.plan(size).keep, **changes)
        return replace(self.settings, method=method, option=own, count_forwards=forwards, **changes)

    def scoring(self, seed: int) -> Settings:
        """Settings of the run that scores all samples."""
        settings = replace(
            self.settings,
            method="full",
            seed=seed,
            model=self.score_model or self.settings.model,
            batch_size=self.score_batch_size or self.settings.batch_size,
            epochs=self.score_epochs or self.settings.epochs,
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
        needed += [name for method in self.static for name in coresets.METHODS[method].also]
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
        for name in ("method", "seed", "steps", "count_forwards", "selected", "statistics", "option"):
            del shared[name]
        shared["equal"] = self.equal
        scoring = ("score_epochs", "score_model", "score_batch_size", "score_runs") if self.static else ()
        names = ("finetune_epochs", *scoring)
        options = self.settings.options()
        own = {f"options of {method}": options.get(method, {}) for method in self.methods}
        return {**shared, **{name: getattr(self, name) for name in names}, **own}

    @property
    def key(self) -> str:
        """Hash for the name of a folder: another for other methods, seeds or learning rates."""
        return digest({**self.identity, "seeds": list(self.seeds), "learning_rates": list(self.learning_rates)})

    def steps(self, data: Data, places: Places) -> dict[Key, Steps]:
        """How each row is made, those of untrained encoders and of runs."""
        size = len(data.train)
        self.plan(size)
        for method in self.methods:  # a wrong option or budget is refused before anything is trained
            if method in self.static:
                scoring_cost.steps_left(self, method, size, scoring_cost.planned(self, method, data))
            else:
                build_pruner(self.run_settings(method, self.settings.seed, size), size, data.train.labels)
        make, rows = Rows(self, data, places), dict[Key, Steps]()
        if self.settings.task == "contrastive":
            rows |= {("untrained", seed): make.untrained(seed) for seed in self.seeds}
        return rows | {(method, seed): make.run(method, seed) for seed in self.seeds for method in self.methods}

    def kept(self, content: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
        """All rows: other methods and seeds stay."""
        untrained = {("untrained", row["seed"]): row for row in content.get("untrained", [])}
        return untrained | {(row["method"], row["seed"]): row for row in content["runs"]}

    def summary(self, data: Data, rows: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
        """Content of compare.json: data, model, keep, epochs, `runs`, their `summary`, and what the task adds."""
        settings, size = self.settings, len(data.train)
        full = {"samples": self.full_steps(size) * self._batch}
        runs = [row for (method, _), row in rows.items() if method != "untrained"]
        runs = [{**row, "flops": compute.compute_share(row, full)} for row in runs]
        content: dict[str, Any] = {
            "data": settings.data,
            "model": settings.model,
            "keep": self.plan(size).keep,
            "epochs": settings.epochs,
            "runs": runs,
            "summary": summarize_methods(runs, list(dict.fromkeys(row["method"] for row in runs))),
        }
        if self.equal == "flops":
            content |= {"equal": "flops", "planned_flops": self.plan(size).steps / self.full_steps(size)}
        if settings.task != "classification":
            content |= {"task": settings.task, "finetune_epochs": self.finetune_epochs}
        if settings.glue:
            from ..data.glue import GLUE

            content["metric"] = GLUE[settings.glue].metrics[0]
        if settings.task == "contrastive":
            encoders = [row for (method, _), row in rows.items() if method == "untrained"]
            content["untrained"] = sorted(encoders, key=lambda row: row["seed"])
        return content


@cache
def _plan(settings: Settings, size: int, ranks: int) -> Plan:
    pruner = build_pruner(settings, size)
    keep = min(pruner.schedule(epoch) for epoch in range(settings.epochs))
    steps = pruner.planned_steps(settings.batch_size, world_size=ranks, drop_last=True)
    return Plan(keep, steps, [count == size for count in pruner.counts])


def _owner_and_name(option: str) -> tuple[str, str]:
    """Method and parameter of an `--option`."""
    owner, _, name = option.partition("=")[0].rpartition(".")
    return owner, name.replace("-", "_")


def _of_statistic(name: str, parameter: str) -> bool:
    """Whether the statistic of that name has the parameter."""
    return name in STATISTICS and parameter in signature(STATISTICS[name]).parameters
