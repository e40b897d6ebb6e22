"""Carry an experiment out: a sweep for each panel, whose runs are stored by what their settings compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .... import __version__, distributed, files
from ...data.named import Data
from ...report.summary import summarize
from ...training.build import load_data
from ...training.settings import Settings
from .. import engines, sweep
from ..engines import Engine, Report, Steps
from ..rows import COLUMNS, Rows
from ..sweep import Cache, Places, carry_out
from . import curves
from .experiment import Cell, Experiment, Key


@dataclass(frozen=True)
class Panel:
    """A panel of an experiment, whose runs share their data, as a `Sweep`. All panels write one result.json."""

    kind: ClassVar[str] = "experiment"
    file: ClassVar[str] = "result.json"

    experiment: Experiment
    cells: Sequence[Cell]

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

    def steps(self, data: Data, places: Places) -> dict[sweep.Key, Steps]:
        """How each row is made, that of a run of a comparison."""
        return {
            cell.key: Rows(cell.comparison, data, places, self.reads_weights, (*COLUMNS, "commit")).run(
                cell.method, cell.key.seed
            )
            for cell in self.cells
        }

    def kept(self, content: Mapping[str, Any]) -> dict[sweep.Key, dict[str, Any]]:
        """The experiment's rows; those of other seeds, shares, panels and arms are not shown."""
        rows = {Key(*(row[name] for name in Key._fields)): row for row in content["rows"]}
        planned = set(self.experiment.runs())
        return {key: row for key, row in rows.items() if key in planned}

    def summary(self, data: Data, rows: Mapping[sweep.Key, dict[str, Any]]) -> dict[str, Any]:
        """Content of result.json: claim, plan, `rows`, one for each run, and their `summary`."""
        experiment = self.experiment
        made = [key for key in experiment.runs() if key in rows]
        lines = [{"panel": key.panel, "keep": key.keep, "arm": key.arm, **rows[key]} for key in made]
        return {
            **{name: getattr(experiment, name) for name in ("name", "scale", "source", "claim", "note", "show")},
            **{name: list(getattr(experiment, name)) for name in ("panels", "keep", "arms")},
            **{name: getattr(experiment, name) for name in ("seeds", "plan", "published", "differs")},
            "version": __version__,
            "rows": lines,
            "summary": summarize(lines, ("panel", "keep", "arm")),
        }


def reproduce(
    experiment: Experiment, out: Path, cache: Path, *, engine: Engine = engines.local, report: Report | None = None
) -> dict[str, Any]:
    """Carry an experiment out, or continue it, as `carry_out`.

    Runs in the folder `cache` with equal settings are made once, whichever experiments they belong to.

    Returns:
        Content of result.json, with `kept`: what the figure needs beside accuracies.
    """
    content, shown = dict[str, Any](), dict[str, Any]()
    for name in experiment.panels:
        panel = Panel(experiment, experiment.cells(name))
        data, tuned = load_data(panel.settings), panel.cells[0].comparison.finetune_epochs
        places = Cache(cache, "-weights" * panel.reads_weights + f"-finetuned{tuned}" * bool(tuned))
        content = carry_out(panel, out, data=data, engine=engine, report=report, places=places)
        if experiment.show not in ("accuracy", "difference") and distributed.rank() == 0:
            shown[name] = curves.of(experiment.show, panel.cells, places, data)
    content["kept"] = shown
    if distributed.rank() == 0:
        files.write_json(out / "result.json", content)
    return content
