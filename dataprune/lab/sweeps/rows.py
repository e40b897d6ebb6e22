"""The rows of a comparison: scoring, tuning, training and fine-tuning, run by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ... import distributed, files
from ...selection import Selection
from ..data.named import Data
from ..training import run_folder, select
from ..training.device import choose_device, stream
from ..training.tasks.contrastive import finetuning, untrained
from . import scoring_cost
from .engines import Job, Steps
from .sweep import Places

if TYPE_CHECKING:
    from .compare import Comparison

# columns of a run in compare.json; those from `knn_accuracy` on where they apply: with a validation split its accuracy,
# with learning rates to choose from the chosen one, of static methods the cost of scoring and selecting; `summary` adds
# `flops`, the share of the compute of `full`
COLUMNS = (
    "method", "seed", "accuracy", "samples", "steps", "seconds", "select_seconds", "reached_keep", "knn_accuracy",
    "finetuned_accuracy", "val_accuracy", "lr", "forwarded_samples", "scoring_samples", "scoring_forwarded_samples",
    "scoring_flops", "scoring_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """How the rows of a comparison are made: by scoring, tuning, training and fine-tuning."""

    comparison: Comparison
    data: Data
    places: Places
    save_models: bool = False
    columns: Sequence[str] = COLUMNS

    def run(self, method: str, seed: int) -> Steps:
        """Returns the row of a run."""
        rate = (yield from self._best_rate(method)) if self.comparison.learning_rates else None
        settings, added = yield from self._settings(method, seed)
        settings = settings if rate is None else replace(settings, lr=rate)
        folder, epochs = self.places.run(method, settings), self.comparison.finetune_epochs
        (record,) = yield [Job(method, seed, settings, folder, save_model=self.save_models or epochs > 0)]
        if epochs:
            weights = folder / "model.safetensors"
            (tuned,) = yield [Job(method, seed, finetuning(settings, epochs), folder / "finetuned", weights=weights)]
            added["finetuned_accuracy"] = tuned.accuracy
            if distributed.rank() == 0 and not self.save_models:
                weights.unlink(missing_ok=True)  # or a sweep keeps a model for each of its runs
        own = {"lr": rate, "commit": record.machine.commit, "forwarded_samples": record.forwarded_samples}
        own = {name: value or None for name, value in own.items()}
        values = {**record.as_dict(), **added, "method": method, **own}
        return {name: values[name] for name in self.columns if values.get(name) is not None}

    def untrained(self, seed: int) -> Steps:
        """Returns the row of a seed's untrained encoder; its accuracies are written, since a probe takes a while."""
        settings, epochs = replace(self.comparison.settings, seed=seed), self.comparison.finetune_epochs
        folder = self.places.run("untrained", settings)
        file = folder / "untrained.json"
        if distributed.agreed(file.exists()):
            values: Mapping[str, float] = files.read_json(file)
        else:
            values = untrained(settings, self.data, choose_device(settings.device))
            if distributed.rank() == 0:
                run_folder.folder(folder)
                files.write_json(file, values)
        row = {"seed": seed, **values}
        if epochs:
            (tuned,) = yield [Job("untrained", seed, finetuning(settings, epochs), folder)]
            row["finetuned_accuracy"] = tuned.accuracy
        return row

    def _settings(self, method: str, seed: int) -> Steps:
        """Returns settings of a run and what scoring costs; makes a static method's coreset unless it exists."""
        comparison, size = self.comparison, len(self.data.train)
        if method not in comparison.static:
            return comparison.run_settings(method, seed, size), dict[str, Any]()
        scoring, options = comparison.scoring(seed), comparison.selector_options(method)
        runs = []
        if scoring_cost.needed(method):
            others = (stream(seed, "scoring", run) % (1 << 31) for run in range(1, comparison.score_runs))
            runs = [replace(scoring, seed=one) for one in (seed, *others)]
        keep = comparison.plan(size).keep
        folders = list(map(self.places.scoring, runs))
        keys = {"method": method, "keep": keep, "scoring": [run.key() for run in runs], "options": options}
        file = self.places.coreset(f"{method}-seed{seed}", keys)
        jobs = [Job("scoring", run.seed, run, place, save_model=True, test=False) for run, place in zip(runs, folders)]
        scored = (yield jobs) if jobs else []
        if distributed.rank() == 0 and not file.exists():
            about = {"keep": keep, "seed": seed, "options": options, "data": self.data}
            about |= {"model": scoring.model} if folders else {}
            select.write(file, *select.select(method, next(iter(folders), None), others=folders[1:], **about))
        distributed.barrier()
        cost = scoring_cost.spent(comparison, self.data, scored, Selection.metadata(file))
        return comparison.run_settings(method, seed, size, file, cost), dict(cost)

    def _best_rate(self, method: str) -> Steps:
        """Returns the learning rate with the best validation accuracy on the first seed; the test set stays unread."""
        seed = self.comparison.seeds[0]
        settings, _ = yield from self._settings(method, seed)
        runs = [replace(settings, lr=rate) for rate in self.comparison.learning_rates]
        records = yield [Job(method, seed, run, self.places.tuning(method, run), test=False) for run in runs]
        return max(zip(records, runs), key=lambda pair: pair[0].val_accuracy or 0.0)[1].lr
