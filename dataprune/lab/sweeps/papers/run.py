"""An experiment carried out: its runs, kept by what is in their settings, and what they came to."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .... import __version__, distributed
from ....errors import UsageError
from ...data.named import Data
from ...training import run_folder, setup
from ...training.settings import Settings
from .. import engines
from ..compare import Places, one_run
from ..comparison import Comparison
from ..engines import Engine, Report, Steps
from . import curves
from .experiment import Cell, Experiment


class Cache(Places):
    """Where runs lie that several experiments share: by what their settings compute, and by what is left of them.

    Args:
        out: folder of all.
        kept: what a run leaves beside its record, "" for nothing: a run that has thrown its weights away cannot serve
            those who need them.
    """

    def __init__(self, out: Path, kept: str = ""):
        super().__init__(out)
        self.kept = kept

    def run(self, method: str, settings: Settings) -> Path:
        return self.out / "runs" / (settings.key() + self.kept)

    def scoring(self, settings: Settings) -> Path:
        return self.out / "runs" / settings.key()

    def coreset(self, comparison: Comparison, method: str, seed: int) -> Path:
        chosen = {
            "method": method,
            "keep": comparison.settings.keep,
            "scoring": comparison.scoring(seed).key(),
            "options": comparison.selector_options(method),
        }
        key = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]
        return self.out / "coresets" / f"{key}.safetensors"


def reproduce(
    experiment: Experiment, out: Path, cache: Path, *, engine: Engine = engines.local, report: Report | None = None
) -> dict[str, Any]:
    """Carry an experiment out, or go on with one.

    Args:
        experiment: what to do.
        out: its folder, for `result.json`, which is written after every run.
        cache: folder of the runs. Runs of the same settings are made once, whichever experiments they belong to.
        engine: where the runs are carried out, as for `compare`.
        report: called after every epoch.
    Returns:
        What result.json holds: what was claimed and done, `plan`, `rows` (a line for each run) and `summary`.
    Raises:
        UsageError: if the folder holds the results of something else; else as `compare`.
    """
    _refuse_other(experiment, out)
    result: dict[str, Any] = {
        **{name: getattr(experiment, name) for name in ("name", "scale", "source", "claim", "note", "show")},
        **{name: list(getattr(experiment, name)) for name in ("panels", "keep", "arms")},
        "seeds": experiment.seeds,
        "plan": experiment.plan,
        "version": __version__,
        "published": experiment.published,
        "rows": [],
    }
    run_folder.folder(out)
    kept = {panel: _carry_out(experiment, panel, out, cache, engine, report, result) for panel in experiment.panels}
    result["kept"] = {panel: found for panel, found in kept.items() if found}
    if distributed.rank() == 0:
        run_folder.write_json(out / "result.json", result)
    return result


def _refuse_other(experiment: Experiment, out: Path) -> None:
    """A folder is of one experiment at one scale; more seeds, shares, panels and arms may come to it."""
    if (out / "compare.json").exists():
        raise UsageError(f"{out} holds a comparison: choose another --out")
    if not (out / "result.json").exists():
        return
    before, own = run_folder.read_json(out / "result.json"), experiment.plan
    differs = [name for name in ("name", "scale") if before.get(name) != getattr(experiment, name)]
    for part, mine in own.items() if "plan" in before else ():
        theirs = before["plan"].get(part)
        if part in ("panels", "arms"):
            differs += [f"{part[:-1]} {name}" for name in mine if theirs.get(name, mine[name]) != mine[name]]
        elif mine != theirs:
            differs.append(part)
    if differs:
        raise UsageError(
            f"{out} holds results of something else ({', '.join(differs)}): choose another --out, or delete it"
        )


def _carry_out(
    experiment: Experiment,
    panel: str,
    out: Path,
    cache: Path,
    engine: Engine,
    report: Report | None,
    result: dict[str, Any],
) -> Any:
    """The runs of a panel, which share their data; returns what the figure needs beside their accuracies."""
    cells = list(experiment.cells(panel))
    settings = cells[0].comparison.settings
    data = setup.load_data(settings)
    weights, tuned = experiment.show == "interpolation", cells[0].comparison.finetune_epochs
    places = Cache(cache, "-weights" * weights + f"-finetuned{tuned}" * bool(tuned))
    done: dict[int, dict[str, Any]] = {}
    before = list(result["rows"])
    with engine(settings, data, report) as carry_out:
        made = [_cell(cell, data, places, save_model=weights) for cell in cells]
        for position, row in carry_out(made):
            done[position] = row
            result["rows"] = before + [done[place] for place in sorted(done)]
            result["summary"] = summarize(result["rows"])
            if distributed.rank() == 0:
                run_folder.write_json(out / "result.json", result)
    if experiment.show in ("accuracy", "difference") or distributed.rank() != 0:
        return None
    return curves.of(experiment.show, cells, places, data)


def _cell(cell: Cell, data: Data, places: Cache, *, save_model: bool) -> Steps:
    row = yield from one_run(cell.comparison, cell.method, cell.seed, data, places, save_model=save_model)
    return {"panel": cell.panel, "keep": cell.keep, "arm": cell.arm, **row}


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over seeds, a line for each panel, keep and arm."""
    found: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["panel"], row["keep"], row["arm"]), []).append(row)
    lines = []
    for (panel, keep, arm), mine in found.items():
        line: dict[str, Any] = {"panel": panel, "keep": keep, "arm": arm, "seeds": len(mine)}
        for name in ("accuracy", "finetuned_accuracy"):
            if name in mine[0]:
                values = [row[name] for row in mine]
                line[f"{name}_mean"] = statistics.fmean(values)
                line[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        for name in ("samples", "steps", "seconds"):
            line[name] = round(statistics.fmean(row[name] for row in mine), 2)
        lines.append(line)
    return lines
