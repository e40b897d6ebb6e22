"""How each row of a comparison is made: scoring, tuning, training and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ... import distributed, files
from ...selection import Selection
from ..data.named import Data
from ..training import run_folder, select
from ..training.device import choose_device
from ..training.tasks.contrastive import finetuning, untrained
from .engines import Job, Record, Steps
from .sweep import Places

if TYPE_CHECKING:
    from .compare import Comparison


@dataclass(frozen=True)
class Row:
    """A run in compare.json. Values that are None do not apply and are not written."""

    method: str
    seed: int
    accuracy: float
    samples: int
    steps: int
    seconds: float
    select_seconds: float
    reached_keep: float
    knn_accuracy: float | None = None
    finetuned_accuracy: float | None = None
    val_accuracy: float | None = None
    lr: float | None = None
    scoring_samples: int | None = None
    scoring_seconds: float | None = None

    @classmethod
    def of(cls, method: str, record: Mapping[str, Any]) -> Row:
        """From the record of a run."""
        names = [name for name in cls.__dataclass_fields__ if name in record and name not in ("method", "lr")]
        return cls(method=method, **{name: record[name] for name in names})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Untrained:
    """Accuracy of a seed's encoder before pre-training, in compare.json."""

    values: Mapping[str, Any]  # with `seed`

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.values)


def method_run(
    comparison: Comparison,
    method: str,
    seed: int,
    data: Data,
    places: Places,
    *,
    save_model: bool = False,
) -> Steps:
    """Steps of one run, with the scoring and tuning that it needs before; they return its `Row`.

    Args:
        comparison: that it belongs to.
        method: one of its methods.
        seed: one of its seeds.
        data: training and test data.
        places: where the runs are stored.
        save_model: keep the final weights.
    """
    rate = None
    if comparison.learning_rates:
        rate = yield from _best_rate(comparison, method, data, places)
    settings, cost = yield from _settings(comparison, method, seed, data, places)
    settings = settings if rate is None else replace(settings, lr=rate)
    folder, epochs = places.run(method, settings), comparison.finetune_epochs
    (record,) = yield [Job(method, seed, settings, folder, save_model=save_model or epochs > 0)]
    row = replace(Row.of(method, record), lr=rate, **cost)
    if epochs:
        weights = folder / "model.safetensors"
        tuning = finetuning(settings, epochs)
        (tuned,) = yield [Job(method, seed, tuning, folder / "finetuned", weights=weights)]
        row = replace(row, finetuned_accuracy=tuned["accuracy"])
        if distributed.rank() == 0 and not save_model:
            weights.unlink(missing_ok=True)  # or a sweep keeps a model for each of its runs
    return row


def _settings(comparison: Comparison, method: str, seed: int, data: Data, places: Places) -> Steps:
    """Returns settings of a run and what scoring costs; makes a static method's coreset where it does not exist."""
    size = len(data.train)
    if method not in comparison.static:
        return comparison.run_settings(method, seed, size), {}
    scoring, options = comparison.scoring(seed), comparison.selector_options(method)
    folder = places.scoring(scoring)
    keep = comparison.plan(size).keep
    keys = {"method": method, "keep": keep, "scoring": scoring.key(), "options": options}
    file = places.coreset(f"{method}-seed{seed}", keys)
    (scored,) = yield [Job("scoring", seed, scoring, folder, save_model=True, test=False)]
    if distributed.rank() == 0 and not file.exists():
        select.write(file, *select.select(method, folder, keep=keep, seed=seed, options=options, data=data))
    distributed.barrier()
    seconds = scored["seconds"] + Selection.metadata(file)["seconds"]
    cost = {"scoring_samples": scored["samples"], "scoring_seconds": seconds}
    return comparison.run_settings(method, seed, size, file), cost


def _best_rate(comparison: Comparison, method: str, data: Data, places: Places) -> Steps:
    """Returns the learning rate with the best validation accuracy on the first seed; the test set stays unread."""
    seed = comparison.seeds[0]
    settings, _ = yield from _settings(comparison, method, seed, data, places)
    runs = [replace(settings, lr=rate) for rate in comparison.learning_rates]
    records: list[Record] = yield [Job(method, seed, run, places.tuning(method, run), test=False) for run in runs]
    best = max(range(len(runs)), key=lambda number: records[number]["val_accuracy"])
    return runs[best].lr


def untrained_row(comparison: Comparison, seed: int, data: Data, places: Places) -> Steps:
    """Returns the accuracies of an encoder before pre-training; they are written, since a probe takes a while."""
    settings = replace(comparison.settings, seed=seed)
    folder = places.run("untrained", settings)
    file = folder / "untrained.json"
    if file.exists():
        values = files.read_json(file)
    else:
        values = untrained(settings, data, choose_device(settings.device))
        if distributed.rank() == 0:
            run_folder.folder(folder)
            files.write_json(file, values)
    if comparison.finetune_epochs:
        tuning = finetuning(settings, comparison.finetune_epochs)
        (record,) = yield [Job("untrained", seed, tuning, folder)]
        values = {**values, "finetuned_accuracy": record["accuracy"]}
    return Untrained({"seed": seed, **values})
