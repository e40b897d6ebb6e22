"""Methods side by side at equal compute: the runs of a comparison carried out, and what they came to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import distributed
from ..errors import UsageError
from ..selection import Selection
from . import coreset, downstream, runs, setup
from .comparison import Comparison
from .data import Data
from .fit import fit
from .settings import Settings

Report = Callable[[str, int, dict[str, Any]], None]  # method, seed, a line of its history


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
        What `compare.json` holds: data, model, keep, epochs, runs and summary. Rows of static methods also say what
        scoring and selecting cost: `scoring_samples`, `scoring_seconds`. With a validation split the runs and the
        summary also name the validation accuracy, with learning rates to choose from the runs also theirs. Of
        contrastive learning there is `untrained` too, what each seed's encoder was worth before training, and with
        fine-tuning everywhere `finetuned_accuracy`.
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
        from .glue import GLUE

        result["metric"] = GLUE[settings.glue].metrics[0]
    result["runs"] = kept = _kept(comparison, steps, size, out, result)
    if settings.task == "contrastive":
        result["untrained"] = _untrained(comparison, data, out)
    rates = {method: _best_rate(comparison, method, steps, data, out, report) for method in comparison.methods}
    for seed in comparison.seeds:
        for method in comparison.methods:
            static = method in comparison.static
            cost = _choose(comparison, method, seed, data, out, report) if static else {}
            run = _settings(comparison, method, seed, steps, size, out, static=static)
            run = replace(run, lr=rates[method])
            folder = out / "runs" / f"{method}-seed{seed}"
            save, look = comparison.finetune_epochs > 0, _of(report, method, seed)
            try:
                metrics = fit(run, folder, data=data, save_model=save, report=look)
                if save:
                    metrics |= _finetuned(comparison, run, folder, data, folder / "model.safetensors")
            except ValueError as error:
                raise type(error)(f"{method}, seed {seed}: {error}") from error
            result["runs"].append(_row(method, metrics, run if comparison.learning_rates else None) | cost)
            names = dict.fromkeys([*(row["method"] for row in kept), *comparison.methods])
            result["summary"] = summarize(result["runs"], list(names))
            if distributed.rank() == 0:
                runs.write_json(out / "compare.json", result)
    return result


def _kept(comparison: Comparison, steps: int, size: int, out: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the folder's compare.json that this call does not make anew: another method's or seed's, of its settings.

    Raises:
        UsageError: if the folder holds another comparison.
    """
    path = out / "compare.json"
    if not path.exists():
        return []
    found = runs.read_json(path)
    decisive = ("data", "model", "keep", "epochs", "finetune_epochs")
    if any(found.get(name) != result.get(name) for name in decisive):
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
        static = _coreset(out, method, seed).exists()
        made = _settings(comparison, method, seed, steps, size, out, static=static)
        made = replace(made, lr=row.get("lr", comparison.settings.lr))
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
    comparison: Comparison, method: str, seed: int, steps: int, size: int, out: Path, *, static: bool
) -> Settings:
    if static:
        return comparison.coreset_settings(seed, steps, size, _coreset(out, method, seed))
    return comparison.run_settings(method, seed, steps)


def _coreset(out: Path, method: str, seed: int) -> Path:
    return out / "coresets" / f"{method}-seed{seed}.safetensors"


def _choose(
    comparison: Comparison, method: str, seed: int, data: Data, out: Path, report: Report | None
) -> dict[str, Any]:
    """Make a static method's coreset, with the scoring run it needs, unless both are there; what they cost."""
    folder, file = out / "scoring" / f"seed{seed}", _coreset(out, method, seed)
    scored = fit(comparison.scoring(seed), folder, data=data, test=False, report=_of(report, "scoring", seed))
    if distributed.rank() == 0 and not file.exists():
        coreset.write(file, *comparison.choose(method, seed, folder, data))
    distributed.barrier()
    seconds = scored["seconds"] + Selection.metadata(file)["seconds"]
    return {"scoring_samples": scored["samples"], "scoring_seconds": seconds}


def _finetuned(
    comparison: Comparison, run: Settings, folder: Path, data: Data, weights: Path | None
) -> dict[str, float]:
    accuracy = downstream.finetuned(run, folder / "finetuned", data, epochs=comparison.finetune_epochs, weights=weights)
    return {"finetuned_accuracy": accuracy}


def _untrained(comparison: Comparison, data: Data, out: Path) -> list[dict[str, Any]]:
    """What encoders are worth before training, a row for each seed; those that compare.json has are not made anew."""
    path = out / "compare.json"
    known = runs.read_json(path).get("untrained", []) if path.exists() else []
    rows = {row["seed"]: row for row in known}
    for seed in comparison.seeds:
        if seed in rows:
            continue
        settings = replace(comparison.settings, seed=seed)
        rows[seed] = {"seed": seed, **downstream.untrained(settings, data, setup.choose_device(settings.device))}
        if comparison.finetune_epochs:
            rows[seed] |= _finetuned(comparison, settings, out / "runs" / f"untrained-seed{seed}", data, None)
    return list(rows.values())


def _best_rate(comparison: Comparison, method: str, steps: int, data: Data, out: Path, report: Report | None) -> float:
    """The learning rate with the best validation accuracy; the test set stays unread."""
    if not comparison.learning_rates:
        return comparison.settings.lr
    seed = comparison.seeds[0]
    found = {}
    for rate in comparison.learning_rates:
        if method in comparison.static:
            _choose(comparison, method, seed, data, out, report)
        run = _settings(comparison, method, seed, steps, len(data.train), out, static=method in comparison.static)
        run = replace(run, lr=rate)
        folder = out / "tuning" / f"{method}-lr{rate:g}"
        metrics = fit(run, folder, data=data, save_model=False, test=False, report=_of(report, method, seed))
        found[rate] = metrics["val_accuracy"]
    return max(found, key=lambda rate: found[rate])


def _row(method: str, metrics: dict[str, Any], tuned: Settings | None) -> dict[str, Any]:
    names = ("seed", "accuracy", "samples", "steps", "seconds", "select_seconds", "reached_keep")
    row = {"method": method, **{name: metrics[name] for name in names}}
    row |= {name: metrics[name] for name in ("knn_accuracy", "finetuned_accuracy") if name in metrics}
    if metrics["val_accuracy"] is not None:
        row["val_accuracy"] = metrics["val_accuracy"]
    if tuned is not None:
        row["lr"] = tuned.lr
    return row


def _of(report: Report | None, method: str, seed: int) -> Callable[[dict[str, Any]], None] | None:
    if report is None:
        return None
    return lambda line: report(method, seed, line)
