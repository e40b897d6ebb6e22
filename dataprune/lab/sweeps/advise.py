"""Whether pruning pays in a setting, and by which method: short pilots on a part of its data, never on its test set."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ... import distributed, schedules
from ...errors import DataError, UsageError
from ..data import named as datasets
from ..data.named import Data
from ..training import run_folder, setup
from ..training.settings import Settings
from . import advice_rule, engines
from .advice_rule import RS2
from .compare import compare
from .comparison import SHORT, Comparison
from .engines import Engine, Report

CANDIDATES = ("infobatch", "loss", "emp", "memory")
ANNEAL = 0.125  # the share of full epochs at the end that is tried for the best method
SMALLEST = 8  # samples of a batch where pilots take as many steps as planned
LEAST = 100  # samples that a pilot must have held out: fewer cannot tell a point of accuracy
MOST = 5000  # samples held out: more would cost time and tell little
INFOBATCH = 0.5  # it drops below the mean loss alone, where about half of the samples are


@dataclass(frozen=True)
class Pilot:
    """What is planned, and how small a part of it is tried.

    Each seed has a part of the training data of its own to train on, and another to be judged by, so that the spread
    over seeds holds what the choice of both is worth. The budget is the planned fraction of a full run, and the
    learning rate is as planned.

    Attributes:
        settings: of the planned run; its method and `keep` are not read, its `budget` is.
        candidates: dynamic methods beside `rs2`. infobatch is left out where it cannot reach the budget.
        seeds: one pilot of each method per seed; at least two.
        size: samples that a pilot trains on, at most.
        epochs: of a pilot. By default as many as planned up to 20, or to what leaves half of the budget to pruned
            epochs: with fewer the first epoch, which is full, would be most of the run.
        same_steps: smaller batches, down to `SMALLEST`, so that a pilot takes as many steps as the planned run; else
            the planned batch size, and fewer steps.
    """

    settings: Settings
    candidates: Sequence[str] = CANDIDATES
    seeds: Sequence[int] = (0, 1, 2)
    size: int = 4000
    epochs: int | None = None
    same_steps: bool = True

    def validate(self) -> None:
        """Raise UsageError for what cannot be meant, before any data is read."""
        settings = self.settings
        if settings.task != "classification":
            raise UsageError(f"advice is for the classification of images, not for {settings.task}: use compare")
        if settings.budget is None or settings.keep is not None:
            raise UsageError("advice is for a fraction of a full run's samples: give --budget, and no --keep")
        if settings.val_fraction or settings.steps is not None or settings.selection is not None:
            raise UsageError("pilots hold samples out and plan steps of their own: leave that to them")
        setup.check(settings)
        if settings.budget == 1:
            raise UsageError("a --budget of 1 prunes nothing, and there is nothing to advise: give less")
        if len(self.seeds) < 2:
            raise UsageError("one seed says nothing about uncertainty: give --seeds 2 or more")
        if self.size < 1 or (self.epochs is not None and self.epochs < 1):
            raise UsageError("--pilot-size and --pilot-epochs must be at least 1")
        for method in self.candidates:
            if method in (SHORT, RS2, "full"):
                raise UsageError(f"{method} is compared with anyway: take it out of --candidates")
        if not self.candidates:
            raise UsageError("there must be a method to advise: name one with --candidates")
        tried = self._of(settings, self.candidates, self.seeds)
        tried.validate()
        if tried.static:
            raise UsageError(f"pilots try methods that prune while training: {tried.static[0]} is one for compare")

    def sizes(self, total: int) -> tuple[int, int]:
        """How many of so many training samples a pilot trains on, and how many it is judged by.

        Raises:
            DataError: if they are too few for a pilot.
        """
        held = min(max(total - self.size, total // 5), MOST)
        train = min(self.size, total - held)
        if held < LEAST:
            raise DataError(f"{total} training samples are too few for a pilot, which must hold {LEAST} out: compare")
        return train, held

    def pilot_epochs(self) -> int:
        """Epochs of a pilot."""
        assert self.settings.budget is not None
        return (
            min(self.settings.epochs, max(20, round(2 / self.settings.budget))) if self.epochs is None else self.epochs
        )

    def data(self, data: Data, seed: int) -> Data:
        """A pilot's own: what it is tested on is a part of the training data, with the labels that it has there."""
        train, held = self.sizes(len(data.train))
        some = datasets.choose(len(data.train), train + held, f"training samples of {data.name}", seed)
        rest, chosen = datasets.hold_out(some, held / len(some), data.name, seed)
        assert chosen is not None
        note = f"tested on {held} samples held out of the training set: the test set was not read"
        return data._replace(train=data.train.subset(rest), val=None, test=data.train.subset(chosen), note=note)

    def comparison(self, total: int, methods: Sequence[str], seed: int, *, anneal: float = 0.0) -> Comparison:
        """A pilot of some methods, for so many training samples in all."""
        train, epochs, batch = self.sizes(total)[0], self.pilot_epochs(), self.settings.batch_size
        if self.same_steps:
            share = train * epochs / (total * self.settings.epochs)
            batch = min(batch, max(SMALLEST, round(batch * share)))
        settings = replace(self.settings, train_size=train, test_size=None, epochs=epochs, batch_size=batch)
        return self._of(settings, methods, (seed,), anneal=anneal)

    def planned(self, method: str, total: int, anneal: float = 0.0) -> Settings:
        """The settings of a whole run, for so many training samples."""
        comparison = self._of(self.settings, [method], self.seeds, anneal=anneal)
        found = comparison.run_settings(method, self.settings.seed, comparison.steps(total))
        return replace(found, budget=None) if method == SHORT else found

    def methods(self, total: int) -> list[str]:
        """References and candidates, those left out that cannot reach the budget.

        Raises:
            UsageError: if the full epochs of the plan or of a pilot use the budget up.
        """
        keep = self.comparison(total, [RS2], 0).keep(self.sizes(total)[0])
        reachable = [method for method in self.candidates if method != "infobatch" or keep >= INFOBATCH]
        if not reachable:
            raise UsageError("infobatch cannot reach this budget: raise --budget, or name others with --candidates")
        return [SHORT, RS2, *reachable]

    def describe(self, total: int) -> dict[str, Any]:
        """The pilots of so many training samples, in plain values."""
        train, held = self.sizes(total)
        some = self.comparison(total, [RS2], 0)
        return {
            "samples": train,
            "held_out": held,
            "of": total,
            "epochs": some.settings.epochs,
            "batch_size": some.settings.batch_size,
            "steps": some.steps(train),
            "seeds": list(self.seeds),
            "methods": self.methods(total),
        }

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
    """Carry pilots out, or go on with them, and say what they advise.

    The method of the highest mean is advised, or all the data for as many steps where none is above that; how sure
    that is stands beside it. For an advised method full epochs at the end are then tried, and advised likewise.

    Args:
        pilot: what is planned.
        out: its folder: `advice.json`, and a folder of `compare` for each seed.
        data: the planned run's, where it is loaded already. Its test set is not read.
        report: called after every epoch.
        engine: where runs are carried out, as for `compare`.
    Returns:
        What advice.json holds: `plan` and `pilot`, `lines` (see `verdict.judge`), `advice` and `cost`.
    Raises:
        as `compare`; DataError if there are too few samples.
    """
    pilot.validate()
    data = setup.load_data(pilot.settings) if data is None else data
    total = len(data.train)
    methods = pilot.methods(total)
    for method in methods:  # a plan that cannot be carried out must not be found out after its pilots
        setup.build_pruner(pilot.planned(method, total), total, data.train.labels)
    about = pilot.describe(total)
    _claim(out, {"plan": pilot.settings.as_dict(), "pilot": about})

    def carry_out(names: Sequence[str], anneal: float = 0.0) -> list[dict[str, Any]]:
        rows = []
        for seed in pilot.seeds:
            folder = out / f"pilot-seed{seed}{f'-anneal{anneal:g}' if anneal else ''}"
            comparison = pilot.comparison(total, names, seed, anneal=anneal)
            found = compare(comparison, folder, data=pilot.data(data, seed), report=report, engine=engine)
            rows += [row for row in found["runs"] if row["method"] in names]
        return rows

    rows = carry_out(methods)
    accuracies = _by_method(rows)
    lines = advice_rule.judge(accuracies, about["held_out"])
    method, anneal, annealed = advice_rule.advised(lines), 0.0, None
    if method != SHORT and _can_anneal(pilot, total):
        more = carry_out([method], ANNEAL)
        pair = {"with": _by_method(more)[method], "without": accuracies[method]}
        spread = advice_rule.Spread.of(accuracies, about["held_out"])
        gain = spread.difference(advice_rule.paired(pair, "with", "without"))
        annealed, anneal = gain._asdict(), ANNEAL if gain.mean > 0 else 0.0
        rows += more
    planned = pilot.planned(method, total, anneal)
    advice = {
        "method": method,
        "anneal": anneal,
        "steps": planned.steps,
        "sentence": _sentence(method, anneal, lines, len(pilot.seeds), planned.steps),
        "command": command(planned),
    }
    result = {
        "plan": pilot.settings.as_dict(),
        "pilot": about,
        "lines": lines,
        "annealed": annealed,
        "advice": advice,
        "cost": _cost(rows, pilot.settings, total),
    }
    if distributed.rank() == 0:
        run_folder.write_json(out / "advice.json", result)
    return result


def command(settings: Settings) -> str:
    """The call of `dataprune train` that carries these settings out."""
    default, words = Settings(), ["dataprune", "train"]
    for entry in fields(Settings):
        value, flag = getattr(settings, entry.name), "--" + entry.name.replace("_", "-")
        if not entry.metadata["panel"]:
            continue
        if entry.name == "option":
            words += [word for text in value for word in ("--option", text)]
        elif entry.name in ("data", "method") or value != getattr(default, entry.name):
            if isinstance(value, bool):
                words.append(flag if value else "--no-" + flag.removeprefix("--"))
            else:
                words += [flag, str(value)]
    return shlex.join(words)


def _claim(out: Path, what: dict[str, Any]) -> None:
    """Note in the folder what its pilots are of; a call with more seeds goes on there.

    Raises:
        UsageError: if they are of something else.
    """
    run_folder.check_folder(out)
    path = out / "plan.json"
    if path.exists():
        found = run_folder.read_json(path)
        differs = Settings.of(what["plan"]).differs(found.get("plan", {}))
        before, now = ({**one.get("pilot", {}), "seeds": None} for one in (found, what))
        differs += ["pilots"] if before != now else []
        if differs:
            raise UsageError(f"{path} is of another plan ({', '.join(differs)}): choose another --out, or delete it")
    elif distributed.rank() == 0:
        run_folder.folder(out)
        run_folder.write_json(path, what)


def _by_method(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["seed"]] = row["accuracy"]
    return found


def _can_anneal(pilot: Pilot, total: int) -> bool:
    """Whether full epochs at the end leave something to pruned ones, in the plan as in a pilot."""
    train = pilot.sizes(total)[0]
    try:
        for epochs, size in ((pilot.settings.epochs, total), (pilot.pilot_epochs(), train)):
            settings = replace(pilot.settings, epochs=epochs, method=RS2)
            setup.build_pruner(replace(settings, option=(), anneal=ANNEAL), size)
            if schedules.full_from(epochs, ANNEAL) == epochs:
                return False  # too few epochs for a single full one
    except UsageError:
        return False
    return True


def _sentence(method: str, anneal: float, lines: Sequence[dict[str, Any]], seeds: int, steps: int | None) -> str:
    best = max(lines, key=lambda line: line[SHORT]["mean"])
    line = next((one for one in lines if one["method"] == method), best)

    def told(reference: str) -> str:
        found = line[reference]
        return (
            f"{100 * found['mean']:+.1f} ± {100 * found['error']:.1f} points against {reference} (better with a "
            f"probability of {found['probability']:.2f})"
        )

    references = " and ".join(told(one) for one in (SHORT, RS2) if line[one] is not None)
    limit = f"from about {100 * advice_rule.telling(lines, seeds):.1f} points on they would have been sure"
    if method == SHORT:
        return (
            f"Train on all the data for {steps:,} steps: no method did better in the pilots. The best, "
            f"{best['method']}, is at {references}; {limit}."
        )
    end = f", the last {anneal:g} of the epochs full" if anneal else ""
    if line["sure"]:
        return f"Prune with {method}{end}: {references} in the pilots."
    return (
        f"Prune with {method}{end}, but all the data for {steps:,} steps may be as good: {references} in the pilots; "
        f"{limit}."
    )


def _cost(rows: Sequence[dict[str, Any]], settings: Settings, total: int) -> dict[str, float]:
    """Of all pilots, beside the planned run."""
    assert settings.budget is not None
    samples, planned = sum(row["samples"] for row in rows), settings.budget * settings.epochs * total
    return {
        "samples": samples,
        "seconds": sum(row["seconds"] for row in rows),
        "planned_samples": round(planned),
        "full_samples": settings.epochs * total,
        "relative": samples / planned,
    }
