"""Methods side by side at equal compute: the runs of a comparison carried out, and what they came to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ... import distributed
from ...errors import UsageError
from ...selection import Selection
from ..data.named import Data
from ..training import downstream, run_folder, select, setup
from ..training.settings import Settings
from . import engines
from .comparison import Comparison
from .engines import CarryOut, Engine, Job, Record, Report, Steps


def compare(
    comparison: Comparison,
    out: Path,
    *,
    data: Data | None = None,
    report: Report | None = None,
    engine: Engine = engines.local,
) -> dict[str, Any]:
    """Carry a comparison out, or go on with one: what is finished in `out` is not done again.

    Args:
        comparison: what to compare.
        out: its folder: `compare.json`, written after every run, and `runs/METHOD-seedN/`.
        data: the settings' data, where it is loaded already.
        report: called after every epoch; where runs are carried out elsewhere, for all epochs of a run at its end.
        engine: where the runs are carried out: `engines.local`, `engines.processes(4)`, `ray_engine.on_ray()`.
    Returns:
        What `compare.json` holds: data, model, keep, epochs, runs and summary. Rows of static methods also say what
        scoring and selecting cost: `scoring_samples`, `scoring_seconds`. With a validation split the runs and the
        summary also name the validation accuracy, with learning rates to choose from the runs also theirs. Of
        contrastive learning there is `untrained` too, what each seed's encoder was worth before training, and with
        fine-tuning everywhere `finetuned_accuracy`.
    Raises:
        as `fit`.
    """
    comparison.validate()
    run_folder.check_folder(out)
    data = setup.load_data(comparison.settings) if data is None else data
    with engine(comparison.settings, data, report) as carry_out:
        return _compare(comparison, out, data, carry_out)


def _compare(comparison: Comparison, out: Path, data: Data, carry_out: CarryOut) -> dict[str, Any]:
    settings, size = comparison.settings, len(data.train)
    steps = comparison.steps(size)
    for method in comparison.methods:  # a wrong option must not wait for its method's turn
        if method not in comparison.static:
            setup.build_pruner(comparison.run_settings(method, settings.seed, steps), size, data.train.labels)
    result: dict[str, Any] = {
        "data": settings.data,
        "model": settings.model,
        "keep": comparison.keep(size),
        "epochs": settings.epochs,
        "runs": [],
        "summary": [],
    }
    if settings.task != "classification":
        result["task"] = settings.task
        result["finetune_epochs"] = comparison.finetune_epochs
    if settings.glue:
        from ..data.glue import GLUE

        result["metric"] = GLUE[settings.glue].metrics[0]
    kept = _kept(comparison, steps, size, out, result)
    if settings.task == "contrastive":
        result["untrained"] = _untrained(comparison, data, out, carry_out)
    names = list(dict.fromkeys([*(row["method"] for row in kept), *comparison.methods]))
    tuning = [_best_rate(comparison, method, steps, data, out) for method in comparison.methods]
    rates = {comparison.methods[position]: rate for position, rate in carry_out(tuning)}
    planned = [(method, seed) for seed in comparison.seeds for method in comparison.methods]
    rows: dict[int, dict[str, Any]] = {}
    places = Places(out)
    made = [one_run(comparison, *one, data, places, rate=rates[one[0]], steps=steps) for one in planned]
    for position, row in carry_out(made):
        rows[position] = row
        result["runs"] = kept + [rows[place] for place in sorted(rows)]
        result["summary"] = summarize(result["runs"], names)
        if distributed.rank() == 0:
            run_folder.write_json(out / "compare.json", result)
    return result


class Places:
    """Where the runs of a comparison lie: by the names of methods and seeds, in one folder."""

    def __init__(self, out: Path):
        self.out = out

    def run(self, method: str, settings: Settings) -> Path:
        """Folder of a run."""
        return self.out / "runs" / f"{method}-seed{settings.seed}"

    def scoring(self, settings: Settings) -> Path:
        """Folder of a run that scores."""
        return self.out / "scoring" / f"seed{settings.seed}"

    def coreset(self, comparison: Comparison, method: str, seed: int) -> Path:
        """File of a coreset."""
        return self.out / "coresets" / f"{method}-seed{seed}.safetensors"


def one_run(
    comparison: Comparison,
    method: str,
    seed: int,
    data: Data,
    places: Places,
    *,
    rate: float | None = None,
    steps: int | None = None,
    save_model: bool = False,
) -> Steps:
    """One run, with what a static method needs before it; returns its row.

    Args:
        comparison: that it belongs to.
        method: one of its methods.
        seed: one of its seeds.
        data: its data.
        places: where folders lie.
        rate: learning rate in place of the settings'.
        steps: of the comparison, where they are known.
        save_model: keep the final weights.
    """
    static = method in comparison.static
    steps = comparison.steps(len(data.train)) if steps is None else steps
    cost = (yield from _choose(comparison, method, seed, data, places)) if static else {}
    run = _settings(comparison, method, seed, steps, len(data.train), places, static=static)
    run = run if rate is None else replace(run, lr=rate)
    folder, epochs = places.run(method, run), comparison.finetune_epochs
    (metrics,) = yield [Job(method, seed, run, folder, save_model=save_model or epochs > 0)]
    if epochs:
        weights = folder / "model.safetensors"
        (tuned,) = yield [Job(method, seed, downstream.finetuning(run, epochs), folder / "finetuned", weights=weights)]
        metrics["finetuned_accuracy"] = tuned["accuracy"]
        if distributed.rank() == 0 and not save_model:
            weights.unlink(missing_ok=True)  # a sweep would keep a model for each of its runs
    return _row(method, metrics, run if comparison.learning_rates else None) | cost


def _kept(comparison: Comparison, steps: int, size: int, out: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the folder's compare.json that this call does not make anew: another method's or seed's, of its settings.

    Raises:
        UsageError: if the folder holds another comparison.
    """
    path = out / "compare.json"
    if not path.exists():
        return []
    found = run_folder.read_json(path)
    decisive = ("data", "model", "keep", "epochs", "finetune_epochs")
    if any(found.get(name) != result.get(name) for name in decisive):
        raise UsageError(f"{path} holds another comparison: choose another --out, or delete it")
    rows, places = [], Places(out)
    for row in found.get("runs", []):
        method, seed = row["method"], row["seed"]
        if method in comparison.methods and seed in comparison.seeds:
            continue
        folder = places.run(method, replace(comparison.settings, seed=seed))
        if not (folder / "metrics.json").exists():
            raise UsageError(f"{path} names a run that {folder} does not have: choose another --out, or delete it")
        stored = run_folder.read_json(folder / "config.json")
        static = places.coreset(comparison, method, seed).exists()
        made = _settings(comparison, method, seed, steps, size, places, static=static)
        made = replace(made, lr=row.get("lr", comparison.settings.lr))
        other = [name for name in made.differs(stored) if name != "option"]  # which may name the method's own
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
        scored = [row.get("scoring_seconds", 0.0) for row in mine]
        if any(scored):
            line["scoring_samples"] = round(statistics.fmean(row.get("scoring_samples", 0) for row in mine))
            line["scoring_seconds"] = statistics.fmean(scored)
            line["total_speedup"] = (
                statistics.fmean(full) / (mean["seconds"] + statistics.fmean(scored)) if full else None
            )
        if "knn_accuracy" in mine[0]:
            line["knn_accuracy_mean"] = statistics.fmean(row["knn_accuracy"] for row in mine)
        if "finetuned_accuracy" in mine[0]:
            tuned = [row["finetuned_accuracy"] for row in mine]
            line["finetuned_accuracy_mean"] = statistics.fmean(tuned)
            line["finetuned_accuracy_std"] = statistics.stdev(tuned) if len(tuned) > 1 else 0.0
        if "val_accuracy" in mine[0]:
            line["val_accuracy_mean"] = statistics.fmean(row["val_accuracy"] for row in mine)
        summary.append(line)
    return summary


def _settings(
    comparison: Comparison, method: str, seed: int, steps: int, size: int, places: Places, *, static: bool
) -> Settings:
    if static:
        return comparison.coreset_settings(method, seed, steps, size, places.coreset(comparison, method, seed))
    return comparison.run_settings(method, seed, steps)


def _choose(comparison: Comparison, method: str, seed: int, data: Data, places: Places) -> Steps:
    """Make a static method's coreset, with the scoring run it needs, unless both are there; returns what they cost."""
    settings, file = comparison.scoring(seed), places.coreset(comparison, method, seed)
    folder = places.scoring(settings)
    (scored,) = yield [Job("scoring", seed, settings, folder, save_model=True, test=False)]
    if distributed.rank() == 0 and not file.exists():
        select.write(file, *comparison.choose(method, seed, folder, data))
    distributed.barrier()
    seconds = scored["seconds"] + Selection.metadata(file)["seconds"]
    return {"scoring_samples": scored["samples"], "scoring_seconds": seconds}


def _untrained(comparison: Comparison, data: Data, out: Path, carry_out: CarryOut) -> list[dict[str, Any]]:
    """What encoders are worth before training, a row for each seed; those that compare.json has are not made anew."""
    path = out / "compare.json"
    known = run_folder.read_json(path).get("untrained", []) if path.exists() else []
    rows = {row["seed"]: row for row in known}
    new = [seed for seed in comparison.seeds if seed not in rows]
    made = [_of_untrained(comparison, seed, data, out / "runs" / f"untrained-seed{seed}") for seed in new]
    rows |= {new[position]: row for position, row in carry_out(made)}
    return [rows[seed] for seed in sorted(rows)]


def _of_untrained(comparison: Comparison, seed: int, data: Data, folder: Path) -> Steps:
    settings = replace(comparison.settings, seed=seed)
    found = {"seed": seed, **downstream.untrained(settings, data, setup.choose_device(settings.device))}
    if comparison.finetune_epochs:
        tuned = downstream.finetuning(settings, comparison.finetune_epochs)
        (metrics,) = yield [Job("untrained", seed, tuned, folder)]
        found["finetuned_accuracy"] = metrics["accuracy"]
    return found


def _best_rate(comparison: Comparison, method: str, steps: int, data: Data, out: Path) -> Steps:
    """Returns the learning rate with the best validation accuracy; the test set stays unread."""
    rates, static, seed = comparison.learning_rates, method in comparison.static, comparison.seeds[0]
    if not rates:
        return comparison.settings.lr
    places = Places(out)
    if static:
        yield from _choose(comparison, method, seed, data, places)
    run = _settings(comparison, method, seed, steps, len(data.train), places, static=static)
    folders = [out / "tuning" / f"{method}-lr{rate:g}" for rate in rates]
    found: list[Record] = yield [
        Job(method, seed, replace(run, lr=rate), folder, test=False) for rate, folder in zip(rates, folders)
    ]
    accuracies = dict(zip(rates, (record["val_accuracy"] for record in found)))
    return max(accuracies, key=lambda rate: accuracies[rate])


def _row(method: str, metrics: dict[str, Any], tuned: Settings | None) -> dict[str, Any]:
    names = ("seed", "accuracy", "samples", "steps", "seconds", "select_seconds", "reached_keep")
    row = {"method": method, **{name: metrics[name] for name in names}}
    row |= {name: metrics[name] for name in ("knn_accuracy", "finetuned_accuracy") if name in metrics}
    if metrics["val_accuracy"] is not None:
        row["val_accuracy"] = metrics["val_accuracy"]
    if tuned is not None:
        row["lr"] = tuned.lr
    return row
