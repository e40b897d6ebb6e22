"""How much less can be trained at equal accuracy: methods at several budgets, with more seeds where it is close."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ... import coresets
from ...errors import UsageError
from ..data.named import Data
from ..report.saving import FULL, LONGER, SHORT, Place, summarize, unsettled
from ..training.build import load_data
from ..training.settings import Settings, require
from . import engines, scoring_cost
from .compare import Comparison
from .engines import Engine, Report, Steps
from .sweep import Cache, Key, Places, carry_out, digest

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)  # shares of the steps of `full`
MARGINS = (0.05, 10.0)  # points; what is outside was meant as a share, or is no loss that goes unnoticed


@dataclass(frozen=True)
class Saving:
    """Methods at a grid of budgets beside `full`, as a `Sweep`; methods, budgets and seeds can be added to its folder.

    At a budget all methods take the optimizer steps of a schedule with that share of a full run's samples: `warmup`
    epochs full, then pruned ones, then `anneal` of the epochs full. A static method trains on its coreset of that share
    of the data in all epochs; its scoring run comes on top. `full` is also trained for `longer` times the epochs, since
    where that helps, every saving is one against a run that stopped too early.

    Runs are stored by what their settings compute, so that a run of `full` serves all budgets.
    """

    kind: ClassVar[str] = "saving sweep"
    file: ClassVar[str] = "saving.json"

    settings: Settings  # of every run; method, seed and budget are set run by run
    methods: Sequence[str]  # names as of a `Comparison`; `full` is always there
    budgets: Sequence[float] | None = None  # by default those of `GRID` that the schedule can reach
    seeds: int = 3  # of every run, from the settings' seed on
    most: int = 9  # seeds of the runs beside a method's crossing, see `unsettled`
    margin: float = 0.3  # points of accuracy that a method may lose and be level with `full`
    longer: float = 1.5  # 0: `full` is not trained longer
    score_epochs: int | None = None
    score_model: str | None = None
    counts: Mapping[Place, int] = field(default_factory=dict)  # seeds of methods at budgets that have more than `seeds`

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", [method for method in self.methods if method != FULL])
        check_margin(self.margin)
        require(bool(self.methods), "no method to compare with full: name one with --methods")
        require(self.seeds >= 2, "one seed shows no variation, so nothing can be told: give --seeds 2 or more")
        require(self.most >= self.seeds, f"--max-seeds {self.most} are fewer than --seeds {self.seeds}: raise it")
        require(self.longer == 0 or self.longer > 1, f"--longer is a factor above 1, or 0, got {self.longer:g}")
        require(self.budgets is None or bool(self.budgets), "no budget to try: name one with --budgets")
        for number, budget in enumerate(self.budgets or ()):
            require(0 < budget <= 1, f"--budgets are shares of full's steps in (0, 1], got {budget:g}")
            require(budget not in (self.budgets or ())[:number], f"--budgets names {budget:g} twice")
        require(
            self.settings.keep is None and self.settings.budget is None,
            "budgets are given by --budgets: leave --keep and --budget out",
        )
        self._together()

    def _together(self) -> Comparison:
        """All methods in one comparison, which checks their names and options when it is made."""
        settings = replace(self.settings, method=FULL, budget=1.0)
        return self._comparison(settings, self.methods, range(self.seeds))

    def _comparison(self, settings: Settings, methods: Sequence[str], seeds: Sequence[int]) -> Comparison:
        scoring = {"score_epochs": self.score_epochs, "score_model": self.score_model}
        return Comparison(settings, methods, seeds, **scoring)

    # -- the plan -----------------------------------------------------------------------------------------------------

    def grid(self, size: int) -> list[float]:
        """Budgets in ascending order, for N training samples; UsageError for one that the schedule cannot reach."""
        if self.budgets is not None:
            return sorted(self.budgets)
        reached, error = list[float](), None
        for budget in GRID:
            try:
                self.comparison("rs2", budget).plan(size)
                reached.append(budget)
            except UsageError as unreached:
                error = unreached
        if error is not None and not reached:
            raise error
        return reached

    def comparison(self, method: str, budget: float, seeds: int = 1) -> Comparison:
        """A comparison of one method, which has its settings at a budget."""
        settings, name = replace(self.settings, method=FULL, budget=min(budget, 1.0)), method
        if method == LONGER:
            settings, name = replace(settings, epochs=math.ceil(budget * settings.epochs)), FULL
        elif method in coresets.METHODS:
            settings = replace(settings, warmup=0, anneal=0.0)
        first = self.settings.seed
        return self._comparison(settings, [name], range(first, first + seeds))

    def planned(self, size: int) -> dict[Place, int]:
        """How many seeds each method has at each budget, `full` as many as any other."""
        places: dict[Place, int] = {(LONGER, self.longer): self.seeds} if self.longer else {}
        places |= {(method, budget): self.seeds for budget in self.grid(size) for method in self.methods}
        places |= {place: count for place, count in self.counts.items() if place in places}
        return {(FULL, 1.0): max(places.values()), **places}

    def extended(self, content: Mapping[str, Any], size: int) -> Saving | None:
        """With more seeds where the results leave a decision open; None where there are none to add."""
        planned = self.planned(size)
        open_ = [place for place in unsettled(content) if planned.get(place, self.most) < self.most]
        more = {place: min(planned[place] + self.seeds, self.most) for place in open_}
        return replace(self, counts={**self.counts, **more}) if more else None

    def epochs(self, size: int) -> int:
        """Epochs of the runs that are planned so far, for a progress bar."""
        epochs, scored = 0, 0
        for (method, budget), count in self.planned(size).items():
            comparison = self.comparison(method, budget)
            scoring = comparison.scoring(0).epochs if scoring_cost.needed(method) else 0
            scored = max(scored, scoring * count)  # a run serves all methods and budgets
            own = comparison.epochs(size) - scoring
            epochs += count * (math.ceil(budget * own) if method == SHORT else own)
        return epochs + scored

    # -- as a sweep ---------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> dict[str, Any]:
        """What all runs of a folder share: their settings but the budget, and methods' options."""
        return {name: value for name, value in self._together().identity.items() if name not in ("keep", "budget")}

    @property
    def key(self) -> str:
        """Hash for the name of a folder, the same for other methods, budgets and seeds."""
        shared = {name: value for name, value in self.identity.items() if not name.startswith("options of ")}
        return digest({**shared, "option": list(self.settings.option)})

    def steps(self, data: Data, places: Places) -> dict[Key, Steps]:
        """How each row is made, seed by seed: a folder that is not complete has the same seeds of all methods."""
        rows: dict[Key, Steps] = {}
        for (method, budget), count in self.planned(len(data.train)).items():
            for (name, seed), steps in self.comparison(method, budget, count).steps(data, places).items():
                if name != "untrained":
                    rows[method, budget, seed] = _placed(steps, method, budget)
        return dict(sorted(rows.items(), key=lambda entry: entry[0][2]))

    def kept(self, content: Mapping[str, Any]) -> dict[Key, dict[str, Any]]:
        """All rows: other methods, budgets and seeds stay."""
        return {(row["method"], row["budget"], row["seed"]): row for row in content["runs"]}

    def summary(self, data: Data, rows: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
        """Content of saving.json: data, model, epochs, what `summarize` says, and `runs`."""
        planned = dict.fromkeys(self.methods, self.grid(len(data.train)))
        runs = list(rows.values())
        about = self._together().summary(data, {})
        about = {name: about[name] for name in ("data", "model", "epochs", "task", "metric") if name in about}
        found = summarize(runs, margin=self.margin / 100, held_out=len(data.test), planned=planned)
        return {**about, "test_samples": len(data.test), **found, "margin": self.margin, "runs": runs}


def check_margin(margin: float) -> None:
    """Raise UsageError unless a margin is in points, and none that says nothing."""
    low, high = MARGINS
    share = f": if a share of 1 was meant, give --margin {100 * margin:g}" * (0 < margin < low)
    require(
        low <= margin <= high, f"--margin is in points of accuracy, from {low:g} to {high:g}, got {margin:g}{share}"
    )


def until_settled(
    saving: Saving,
    out: Path,
    *,
    data: Data | None = None,
    engine: Engine = engines.local,
    report: Report | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Carry the sweep out as `carry_out` does, then add seeds beside each method's crossing until it is settled.

    At most `saving.most` seeds are made. Runs are in `cache`, which several folders can share, by default in `out`.

    Returns:
        Content of saving.json, see `Saving.summary`.
    """
    data = load_data(saving.settings) if data is None else data
    places = Cache(cache or out)
    while True:
        content = carry_out(saving, out, data=data, engine=engine, report=report, places=places)
        larger = saving.extended(content, len(data.train))
        if larger is None:
            return content
        saving = larger


def _placed(steps: Steps, method: str, budget: float) -> Steps:
    """Steps whose jobs are named with the budget, and whose row has it."""
    name = method if method == FULL else f"{method} {budget:g}"
    try:
        jobs = next(steps)
        while True:
            jobs = steps.send((yield [replace(job, arm=name) for job in jobs]))
    except StopIteration as end:
        return {**end.value, "method": method, "budget": budget}
