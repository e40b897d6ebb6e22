"""Whether pruning pays for a planned run, and with which method: short pilots on part of its training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ... import distributed, files, schedules
from ...errors import DataError, UsageError
from ..data import named as datasets
from ..data.named import Data
from ..report.saving import Row
from ..training.build import build_pruner, check, load_data
from ..training.settings import Settings, require
from . import advice_rule, advice_saving, engines, saving
from .advice_rule import RS2, Accuracies, Difference, Verdict
from .compare import SHORT, Comparison
from .engines import Engine, Report
from .sweep import carry_out, claim, digest

CANDIDATES = ("infobatch", "loss", "emp", "memory", "learnability")
ANNEAL = 0.125  # share of full epochs at the end that is tried for the best method
SMALLEST = 8  # smallest batch size of pilots that take as many steps as planned
LEAST = 100  # fewest held-out samples of a pilot: fewer cannot resolve a point of accuracy
MOST = 5000  # most held-out samples: more cost time and add little precision
INFOBATCH = 0.5  # smallest keep of infobatch: it only drops samples below the mean loss, about half of them


@dataclass(frozen=True)
class Pilot:
    """The planned run, and how large its pilots are.

    Each seed trains on its own part of the training set and is evaluated on another, so that the variation over seeds
    includes that of both samples. Budget (fraction of a full run) and learning rate are those of the planned run.
    """

    settings: Settings  # of the planned run; its `budget` is used, its method and `keep` are not
    candidates: Sequence[str] = CANDIDATES  # dynamic methods beside `rs2`; infobatch only where it reaches the budget
    seeds: Sequence[int] = (0, 1, 2)  # one pilot of each method per seed; at least two
    size: int = 4000  # most samples that a pilot trains on
    epochs: int | None = None  # of a pilot; see `pilot_epochs`
    same_steps: bool = True  # as many steps as the planned run, by batches down to `SMALLEST`; else fewer steps
    margin: float = 0.3  # points below `full` of a method that is level with it; 0: what is saved is not estimated

    def __post_init__(self) -> None:
        settings, task = self.settings, self.settings.task
        require(task == "classification", f"advise works for image classification, not for {task}: use compare")
        require(
            settings.budget is not None and settings.keep is None,
            "advise needs the fraction of a full run's samples: give --budget, and no --keep",
        )
        require(
            not settings.val_fraction and settings.steps is None and settings.selection is None,
            "pilots choose their own validation split, steps and selection: leave these options out",
        )
        check(settings)
        require(settings.budget != 1, "a --budget of 1 prunes nothing: give less")
        require(len(self.seeds) >= 2, "one seed shows no variation: give --seeds 2 or more")
        require(
            self.size >= 1 and (self.epochs is None or self.epochs >= 1),
            "--pilot-size and --pilot-epochs must be at least 1",
        )
        if self.margin:
            saving.check_margin(self.margin)
        for method in self.candidates:
            require(method not in (SHORT, RS2, "full"), f"{method} is always compared: take it out of --candidates")
        require(bool(self.candidates), "no method to advise: name one with --candidates")
        for method in self._of(settings, self.candidates, self.seeds).static:
            raise UsageError(f"pilots try dynamic methods, and {method} is static: use compare")

    @property
    def key(self) -> str:
        """Hash for the name of a folder."""
        pilot = {"candidates": list(self.candidates), "epochs": self.epochs, "same_steps": self.same_steps}
        return digest({**self.settings.computed(), "pilot": {**pilot, "size": self.size}})

    @property
    def budget(self) -> float:
        """Fraction of a full run's samples."""
        assert self.settings.budget is not None
        return self.settings.budget

    def sizes(self, total: int) -> tuple[int, int]:
        """How many of `total` training samples a pilot trains on, and how many it is evaluated on."""
        test = min(max(total - self.size, total // 5), MOST)
        train = min(self.size, total - test)
        if test < LEAST:
            raise DataError(f"{total} training samples are too few: a pilot holds out at least {LEAST}; use compare")
        return train, test

    def pilot_epochs(self) -> int:
        """Epochs of a pilot: by default as planned, at most 20 or what leaves half of the budget to pruned epochs."""
        # with fewer, the full first epoch would be most of the run
        return self.epochs or min(self.settings.epochs, max(20, round(2 / self.budget)))

    def data(self, data: Data, seed: int) -> Data:
        """Data of a pilot: its test samples are training samples, with the labels that they have there."""
        train, test = self.sizes(len(data.train))
        some = datasets.choose(len(data.train), train + test, f"training samples of {data.name}", seed)
        rest, chosen = datasets.hold_out(some, test / len(some), data.name, seed)
        assert chosen is not None
        note = f"tested on {test} samples held out of the training set: the test set was not read"
        return data._replace(train=data.train.subset(rest), val=None, test=data.train.subset(chosen), note=note)

    def comparison(
        self, total: int, methods: Sequence[str], seed: int, *, anneal: float = 0.0, budget: float | None = None
    ) -> Comparison:
        """A pilot of some methods, for `total` training samples, by default at the planned budget."""
        train, epochs, batch = self.sizes(total)[0], self.pilot_epochs(), self.settings.batch_size
        if self.same_steps:
            share = train * epochs / (total * self.settings.epochs)
            batch = min(batch, max(SMALLEST, round(batch * share)))
        settings = replace(self.settings, train_size=train, test_size=None, epochs=epochs, batch_size=batch)
        settings = settings if budget is None else replace(settings, budget=budget)
        return self._of(settings, methods, (seed,), anneal=anneal)

    def planned(self, method: str, total: int, anneal: float = 0.0) -> Settings:
        """Settings of the planned run with a method, for `total` training samples."""
        comparison = self._of(self.settings, [method], self.seeds, anneal=anneal)
        settings = comparison.run_settings(method, self.settings.seed, total)
        return replace(settings, budget=None) if method == SHORT else settings

    def methods(self, total: int) -> list[str]:
        """References and the candidates that can reach the budget; UsageError where full epochs use it up."""
        keep = self.comparison(total, [RS2], 0).plan(self.sizes(total)[0]).keep
        reachable = [method for method in self.candidates if method != "infobatch" or keep >= INFOBATCH]
        require(bool(reachable), "infobatch cannot reach this budget: raise --budget, or name others with --candidates")
        return [SHORT, RS2, *reachable]

    def describe(self, total: int) -> dict[str, Any]:
        """The pilots for `total` training samples, as JSON values."""
        train, test = self.sizes(total)
        comparison = self.comparison(total, [RS2], 0)
        return {
            "samples": train,
            "held_out": test,
            "of": total,
            "epochs": comparison.settings.epochs,
            "batch_size": comparison.settings.batch_size,
            "steps": comparison.plan(train).steps,
            "seeds": list(self.seeds),
            "methods": self.methods(total),
        }

    def budgets(self) -> list[float]:
        """Budgets at which pilots look for savings: the planned one, and larger ones."""
        return [self.budget, *(budget for budget in saving.GRID if budget > self.budget)]

    def can_anneal(self, total: int) -> bool:
        """Whether the budget allows full epochs at the end, of the plan and of a pilot."""
        try:
            for epochs, size in ((self.settings.epochs, total), (self.pilot_epochs(), self.sizes(total)[0])):
                build_pruner(replace(self.settings, epochs=epochs, method=RS2, option=(), anneal=ANNEAL), size)
                if schedules.full_from(epochs, ANNEAL) == epochs:
                    return False  # the share is less than one epoch
        except UsageError:
            return False
        return True

    def _of(self, settings: Settings, methods: Sequence[str], seeds: Sequence[int], anneal: float = 0.0) -> Comparison:
        return Comparison(replace(settings, method=RS2, anneal=anneal), methods, seeds)


def advise(
    pilot: Pilot,
    out: Path,
    *,
    data: Data | None = None,
    report: Report | None = None,
    engine: Engine = engines.local,
) -> dict[str, Any]:
    """Carry pilots out, or continue them, and choose a method.

    The method with the highest mean is advised, or all data for as many steps where no mean is above that, with the
    probability that it is better. For an advised method, full epochs at the end are then tried, and advised likewise.
    For it and for `short`, what is saved at the accuracy of `full` is estimated by `advice_saving.estimate`.

    Without those that estimate what is saved, the pilots cost 7 to 11 times the samples of the planned run in the
    settings of `experiments/advise.py`; `cost` says what they cost here.

    The folder `out` gets `advice.json` and a comparison for each seed; a call with more seeds continues there. The test
    set of the data is not read.

    Returns:
        Content of advice.json: `plan` and `pilot`, `lines` (see `advice_rule.judge`), `annealed`, `advice` (with
        `saving`) and `cost`.
    """
    data = load_data(pilot.settings) if data is None else data
    total = len(data.train)
    methods = pilot.methods(total)
    for method in methods:  # a plan that cannot be carried out is refused before its pilots
        build_pruner(pilot.planned(method, total), total, data.train.labels)
    about = pilot.describe(total)
    shape = {name: value for name, value in about.items() if name != "seeds"}
    claim(out, "plan", {**pilot.settings.computed(), "pilot": shape}, "advice.json")

    def pilots(names: Sequence[str], where: str = "", **changes: float) -> list[Row]:
        """The rows of pilots, which are stored in folders of their own; the cost is added up."""
        rows: list[Row] = []
        for seed in pilot.seeds:
            comparison = pilot.comparison(total, names, seed, **changes)
            folder, part = out / f"pilot-seed{seed}{where}", pilot.data(data, seed)
            content = carry_out(comparison, folder, data=part, report=report, engine=engine)
            rows += [row for row in content["runs"] if row["method"] in names]
        for row in rows:
            spent[row["method"], row["seed"], where] = row["samples"], row["seconds"]
        return rows

    def accuracies(names: Sequence[str], anneal: float = 0.0) -> Accuracies:
        """By method and seed."""
        rows = pilots(names, f"-anneal{anneal:g}" if anneal else "", anneal=anneal)
        return {name: {row["seed"]: row["accuracy"] for row in rows if row["method"] == name} for name in names}

    def at_budget(names: Sequence[str], budget: float) -> list[Row]:
        """Pilots of another share of the steps of `full`, or those that are there."""
        where = "" if budget == pilot.budget else f"-budget{budget:g}"
        return [{**row, "budget": budget} for row in pilots(names, where, budget=budget)]

    spent: dict[Any, tuple[int, float]] = {}  # samples and seconds of every pilot
    measured = accuracies(methods)
    verdicts = advice_rule.judge(measured, about["held_out"])
    method, anneal, annealed = advice_rule.advised(verdicts), 0.0, None
    if method != SHORT and pilot.can_anneal(total):
        pair = {"with": accuracies([method], ANNEAL)[method], "without": measured[method]}
        prior = advice_rule.prior_variance(measured, about["held_out"])
        gain = advice_rule.difference(advice_rule.paired_differences(pair, "with", "without"), prior)
        annealed, anneal = asdict(gain), ANNEAL if gain.mean > 0 else 0.0
    saved = {}
    if pilot.margin:
        saved["saving"] = advice_saving.estimate(
            list(dict.fromkeys([method, SHORT])),
            pilot.budgets(),
            at_budget,
            prior=advice_rule.prior_variance(measured, about["held_out"]),
            margin=pilot.margin,
            held_out=about["held_out"],
            seeds=len(pilot.seeds),
        )
    full = pilot.settings.epochs * total
    cost = {
        "samples": sum(samples for samples, _ in spent.values()),
        "seconds": sum(seconds for _, seconds in spent.values()),
        "planned_samples": round(full * pilot.budget),
        "full_samples": full,  # of the planned run without pruning
    }
    cost["relative"] = cost["samples"] / (full * pilot.budget)  # in units of the planned run
    planned = pilot.planned(method, total, anneal)
    assert planned.steps is not None
    content = {
        "plan": pilot.settings.as_dict(),
        "pilot": about,
        "lines": [asdict(verdict) for verdict in verdicts],
        "annealed": annealed,
        "advice": {
            "method": method,
            "anneal": anneal,
            "steps": planned.steps,
            "sentence": _sentence(method, anneal, verdicts, len(pilot.seeds), planned.steps, cost["relative"]),
            "command": planned.train_command(),
            **saved,
        },
        "cost": cost,
    }
    if distributed.rank() == 0:
        files.write_json(out / "advice.json", content)
    return content


def _sentence(method: str, anneal: float, verdicts: Sequence[Verdict], seeds: int, steps: int, cost: float) -> str:
    best = max(verdicts, key=lambda verdict: verdict.short.mean)
    verdict = next((verdict for verdict in verdicts if verdict.method == method), best)

    def against(reference: str, difference: Difference) -> str:
        return (
            f"{100 * difference.mean:+.1f} ± {100 * difference.error:.1f} points against {reference} (better with "
            f"probability {difference.probability:.2f})"
        )

    differences = against(SHORT, verdict.short) + (f" and {against(RS2, verdict.rs2)}" if verdict.rs2 else "")
    limit = f"these pilots are sure from about {100 * advice_rule.resolution(verdicts, seeds):.1f} points on"
    price = f"The pilots trained {cost:.1f} times the samples of the planned run."
    if method == SHORT:
        return (
            f"Train on all the data for {steps:,} steps: no method had a higher mean in the pilots. The best, "
            f"{best.method}, had {differences}; {limit}. {price}"
        )
    advice = f"Prune with {method}" + (f", with the last {anneal:g} of the epochs full" if anneal else "")
    if verdict.sure:
        return f"{advice}: {differences} in the pilots. {price}"
    return (
        f"{advice}, but all the data for {steps:,} steps may be as good: {differences} in the pilots; {limit}. {price}"
    )
