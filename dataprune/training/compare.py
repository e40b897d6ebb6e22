"""Methods side by side at equal compute: which runs there are, and what they came to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import distributed
from ..errors import UsageError, suggest
from ..methods import METHODS
from ..pruner import Pruner
from . import runs, setup
from .data import Data
from .fit import fit
from .settings import Settings

Report = Callable[[str, int, dict[str, Any]], None]  # method, seed, a line of its history

SHORT = "short"  # all data, for as many steps as the pruned runs


@dataclass(frozen=True)
class Comparison:
    """Methods, seeds and the settings they share.

    All pruned methods run one schedule: the first epoch full, then `keep`, then `anneal` of the epochs full. Every run
    but `full` trains equally many optimizer steps, those of that schedule: `short` on all data, a method that decides
    itself how much it keeps on what it keeps; each with its learning rate planned over its own steps.

    Attributes:
        settings: of every run; its method, seed and steps are set run by run.
        methods: names from METHODS, and "short".
        seeds: one run of each method per seed.
        anneal: share of full epochs at the end.
        learning_rates: if there are any, each method takes the one with the best validation accuracy on the first seed.
    """

    settings: Settings
    methods: Sequence[str]
    seeds: Sequence[int]
    anneal: float = 0.0
    learning_rates: Sequence[float] = ()

    def validate(self) -> None:
        """Raise UsageError for what cannot be meant, before any data is read."""
        setup.check(self.settings)
        if not self.methods or not self.seeds:
            raise UsageError("a comparison needs at least one method and one seed")
        if not 0 <= self.anneal <= 1:
            raise UsageError(f"--anneal is a share in [0, 1], got {self.anneal}")
        known = [*METHODS, SHORT]
        for number, method in enumerate(self.methods):
            if method not in known:
                raise UsageError(suggest(method, known, what="method"))
            if method in self.methods[:number]:
                raise UsageError(f"method {method} is named twice")
        for text in self.settings.option:
            method, _, name = text.split("=", 1)[0].rpartition(".")
            if name.replace("-", "_") in ("warmup", "anneal", "keep", "budget", "prune_probability"):
                raise UsageError(
                    f"all methods of a comparison share one schedule: --option {text} would change it for one"
                )
            if not method:
                raise UsageError(f"--option {text} must say which method it is for: METHOD.{text}")
            if method not in self.methods:
                raise UsageError(f"--option {text}: this comparison has no {method}")
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
        if method in ("full", SHORT):
            return replace(
                self.settings, method="full", seed=seed, steps=None if method == "full" else steps, option=()
            )
        return replace(
            self.settings, method=method, seed=seed, steps=steps, option=(*self.settings.option, *self._schedule)
        )

    @property
    def _schedule(self) -> tuple[str, ...]:
        return ("warmup=1", f"anneal={self.anneal}")

    def _pruner(self, size: int) -> Pruner:
        return setup.build_pruner(replace(self.settings, method="rs2", option=self._schedule), size)


def compare(
    comparison: Comparison, out: Path, *, data: Data | None = None, report: Report | None = None
) -> dict[str, Any]:
    """Carry a comparison out, or go on with one: what is finished in `out` is not done again.

    Args:
        comparison: what to compare.
        out: its folder: `compare.json`, written after every run, and `runs/METHOD-seedN/`.
        data: the settings' data, where it is loaded already.
        report: called after every epoch.
    Returns:
        What `compare.json` holds: data, model, keep, epochs, runs and summary. With a validation split the runs and the
        summary also name the validation accuracy, with learning rates to choose from the runs also theirs.
    Raises:
        as `fit`.
    """
    comparison.validate()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: choose a folder with --out")
    data = setup.load_data(comparison.settings) if data is None else data
    with setup.connected(setup.choose_device(comparison.settings.device)):
        return _carry_out(comparison, out, data, report)


def _carry_out(comparison: Comparison, out: Path, data: Data, report: Report | None) -> dict[str, Any]:
    settings, size = comparison.settings, len(data.train)
    steps = comparison.steps(size)
    for method in comparison.methods:  # a wrong option must not wait for its method's turn
        setup.build_pruner(comparison.run_settings(method, settings.seed, steps), size, data.train.labels)
    result: dict[str, Any] = {
        "data": settings.data,
        "model": settings.model,
        "keep": comparison.keep(size),
        "epochs": settings.epochs,
        "runs": [],
        "summary": [],
    }
    result["runs"] = kept = _kept(comparison, steps, out, result)
    rates = {method: _best_rate(comparison, method, steps, data, out, report) for method in comparison.methods}
    for seed in comparison.seeds:
        for method in comparison.methods:
            run = replace(comparison.run_settings(method, seed, steps), lr=rates[method])
            folder = out / "runs" / f"{method}-seed{seed}"
            try:
                metrics = fit(run, folder, data=data, save_model=False, report=_of(report, method, seed))
            except ValueError as error:
                raise type(error)(f"{method}, seed {seed}: {error}") from error
            result["runs"].append(_row(method, metrics, run if comparison.learning_rates else None))
            names = dict.fromkeys([*(row["method"] for row in kept), *comparison.methods])
            result["summary"] = summarize(result["runs"], list(names))
            if distributed.rank() == 0:
                runs.write_json(out / "compare.json", result)
    return result


def _kept(comparison: Comparison, steps: int, out: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the folder's compare.json that this call does not make anew: another method's or seed's, of its settings.

    Raises:
        UsageError: if the folder holds another comparison.
    """
    path = out / "compare.json"
    if not path.exists():
        return []
    found = runs.read_json(path)
    if any(found.get(name) != result[name] for name in ("data", "model", "keep", "epochs")):
        raise UsageError(f"{path} holds another comparison: choose another --out, or delete it")
    rows = []
    for row in found.get("runs", []):
        method, seed = row["method"], row["seed"]
        if method in comparison.methods and seed in comparison.seeds:
            continue
        folder = out / "runs" / f"{method}-seed{seed}"
        if not (folder / "metrics.json").exists():
            raise UsageError(f"{path} names a run that {folder} does not have: choose another --out, or delete it")
        stored = runs.read_json(folder / "config.json")
        made = replace(comparison.run_settings(method, seed, steps), lr=row.get("lr", comparison.settings.lr))
        other = [name for name in made.differs(stored) if name != "option"]  # which may name the method's own
        if tuple(stored["option"][-2:]) != tuple(made.option[-2:]):
            other.append("anneal")
        if other:
            raise UsageError(
                f"{folder} is of another comparison ({', '.join(other)}): choose another --out, or delete it"
            )
        rows.append(row)
    return rows


def summarize(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over seeds; the speed-up is against the mean seconds of `full`."""
    full = [row["seconds"] for row in rows if row["method"] == "full"]
    summary = []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        if not mine:
            continue
        mean = {
            name: statistics.fmean(row[name] for row in mine) for name in ("accuracy", "samples", "steps", "seconds")
        }
        line = {
            "method": method,
            "accuracy_mean": mean["accuracy"],
            "accuracy_std": statistics.stdev(row["accuracy"] for row in mine) if len(mine) > 1 else 0.0,
            "samples": round(mean["samples"]),
            "steps": round(mean["steps"]),
            "seconds": mean["seconds"],
            "speedup": statistics.fmean(full) / mean["seconds"] if full else None,
        }
        if "val_accuracy" in mine[0]:
            line["val_accuracy_mean"] = statistics.fmean(row["val_accuracy"] for row in mine)
        summary.append(line)
    return summary


def _best_rate(comparison: Comparison, method: str, steps: int, data: Data, out: Path, report: Report | None) -> float:
    """The learning rate with the best validation accuracy; the test set stays unread."""
    if not comparison.learning_rates:
        return comparison.settings.lr
    seed = comparison.seeds[0]
    found = {}
    for rate in comparison.learning_rates:
        run = replace(comparison.run_settings(method, seed, steps), lr=rate)
        folder = out / "tuning" / f"{method}-lr{rate:g}"
        metrics = fit(run, folder, data=data, save_model=False, test=False, report=_of(report, method, seed))
        found[rate] = metrics["val_accuracy"]
    return max(found, key=lambda rate: found[rate])


def _row(method: str, metrics: dict[str, Any], tuned: Settings | None) -> dict[str, Any]:
    names = ("seed", "accuracy", "samples", "steps", "seconds", "select_seconds", "reached_keep")
    row = {"method": method, **{name: metrics[name] for name in names}}
    if metrics["val_accuracy"] is not None:
        row["val_accuracy"] = metrics["val_accuracy"]
    if tuned is not None:
        row["lr"] = tuned.lr
    return row


def _of(report: Report | None, method: str, seed: int) -> Callable[[dict[str, Any]], None] | None:
    if report is None:
        return None
    return lambda line: report(method, seed, line)
