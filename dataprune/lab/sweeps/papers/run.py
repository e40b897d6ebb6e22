"""Carry an experiment out: a sweep for each panel, whose runs are stored by what their settings compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .... import __version__, distributed, files
from ...data.named import Data
from ...report.summary import summarize
from ...training.build import load_data
from ...training.settings import Settings
from .. import compare, engines
from ..engines import Engine, Report, Steps
from ..sweep import Places, carry_out
from . import curves
from .experiment import Cell, Experiment


class Cache(Places):
    """Runs that several experiments share, stored by what their settings compute.

    Args:
        out: folder of all runs.
        kept: what a run leaves beside its record, "" for nothing: a run without weights cannot serve an experiment that
            reads them.
    """

    def __init__(self, out: Path, kept: str = ""):
        super().__init__(out)
        self.kept = kept

    def run(self, arm: str, settings: Settings) -> Path:
        return self.out / "runs" / (settings.key() + self.kept)

    def scoring(self, settings: Settings) -> Path:
        return self.out / "runs" / settings.key()

    def coreset(self, name: str, keys: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:12]
        return self.out / "coresets" / f"{key}.safetensors"


@dataclass(frozen=True)
class Row:
    """A run of an experiment, as a row of result.json."""

    panel: str
    keep: float
    arm: str
    run: compare.Row

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Row:
        """From a row of result.json."""
        own = {name: values[name] for name in ("panel", "keep", "arm")}
        return cls(**own, run=compare.Row(**{name: values[name] for name in values if name not in own}))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"panel": self.panel, "keep": self.keep, "arm": self.arm, **self.run.as_dict()}

    @property
    def key(self) -> tuple[str, float, str, int]:
        """The key of its cell."""
        return self.panel, self.keep, self.arm, self.run.seed


@dataclass(frozen=True)
class Panel:
    """A panel of an experiment, whose runs share their data, as a `Sweep`. All panels write one result.json."""

    kind: ClassVar[str] = "experiment"
    file: ClassVar[str] = "result.json"

    experiment: Experiment
    panel: str

    @property
    def cells(self) -> list[Cell]:
        """Its cells."""
        return list(self.experiment.cells(self.panel))

    @property
    def settings(self) -> Settings:
        """Those of its first run."""
        return self.cells[0].comparison.settings

    @property
    def identity(self) -> dict[str, Any]:
        """Name, scale and plan; seeds, shares, panels and arms can be added."""
        plan = self.experiment.plan
        panels = {f"panel {name}": values for name, values in plan.pop("panels").items()}
        arms = {f"arm {name}": values for name, values in plan.pop("arms").items()}
        return {"name": self.experiment.name, "scale": self.experiment.scale, **plan, **panels, **arms}

    @property
    def reads_weights(self) -> bool:
        """Whether the figure reads the final weights."""
        return self.experiment.show == "interpolation"

    def steps(self, data: Data, places: Places) -> dict[Hashable, Steps]:
        """How each row is made."""
        return {cell.key: self._row(cell, data, places) for cell in self.cells}

    def _row(self, cell: Cell, data: Data, places: Places) -> Steps:
        run = yield from compare.method_run(
            cell.comparison, cell.method, cell.seed, data, places, save_model=self.reads_weights
        )
        return Row(cell.panel, cell.keep, cell.arm, run)

    def kept(self, content: Mapping[str, Any]) -> dict[Hashable, Row]:
        """The experiment's rows; those of other seeds, shares, panels and arms are not shown."""
        rows = {row.key: row for row in map(Row.read, content["rows"])}
        return {key: row for key, row in rows.items() if key in self._order}

    def summary(self, data: Data, rows: Sequence[Row]) -> dict[str, Any]:
        """Content of result.json."""
        experiment, order = self.experiment, self._order
        lines = [row.as_dict() for row in sorted(rows, key=lambda row: order[row.key])]
        return {
            **{name: getattr(experiment, name) for name in ("name", "scale", "source", "claim", "note", "show")},
            **{name: list(getattr(experiment, name)) for name in ("panels", "keep", "arms")},
            "seeds": experiment.seeds,
            "plan": experiment.plan,
            "version": __version__,
            "published": experiment.published,
            "rows": lines,
            "summary": summarize(lines, ("panel", "keep", "arm")),
        }

    @property
    def _order(self) -> dict[Hashable, int]:
        cells = (cell for panel in self.experiment.panels for cell in self.experiment.cells(panel))
        return {cell.key: place for place, cell in enumerate(cells)}


def reproduce(
    experiment: Experiment, out: Path, cache: Path, *, engine: Engine = engines.local, report: Report | None = None
) -> dict[str, Any]:
    """Carry an experiment out, or continue it.

    Args:
        experiment: what to run.
        out: folder of `result.json`, which is written after every run.
        cache: folder of the runs. Runs with equal settings are made once, whichever experiments they belong to.
        engine: where the runs are carried out.
        report: called after every epoch.
    Returns:
        Content of result.json: claim, plan, `rows` (one for each run), `summary`, and `kept`, what the figure needs
        beside accuracies.
    Raises:
        UsageError: if the folder holds another experiment; else as `compare`.
    """
    content: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    for name in experiment.panels:
        panel = Panel(experiment, name)
        data, tuned = load_data(panel.settings), panel.cells[0].comparison.finetune_epochs
        places = Cache(cache, "-weights" * panel.reads_weights + f"-finetuned{tuned}" * bool(tuned))
        content = carry_out(panel, out, data=data, engine=engine, report=report, places=places)
        if experiment.show not in ("accuracy", "difference") and distributed.rank() == 0:
            shown[name] = curves.of(experiment.show, panel.cells, places, data)
    content["kept"] = shown
    if distributed.rank() == 0:
        files.write_json(out / "result.json", content)
    return content
