"""The tables and figures of papers: files of settings in `experiments/papers`, and what carries them out.

    dataprune reproduce emp_table1 --scale cpu

`experiment` reads a file, `run` carries its comparisons out, `curves` reads what figures need beside accuracies,
`other` is for experiments that are not comparisons.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .... import files
from ....errors import UsageError
from .experiment import available, content

if TYPE_CHECKING:
    from ...training.settings import Settings
    from ..engines import Engine, Report

__all__ = ["about", "available", "reproduce"]


def about(name: str) -> tuple[str, str]:
    """Source (paper, and number of the table or figure) and claim of an experiment."""
    given = content(name)[1]
    return str(given.get("source", "")), str(given.get("claim", ""))


def reproduce(
    name: str,
    scale: str,
    out: Path,
    cache: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    report: Report | None = None,
) -> list[Path]:
    """Carry an experiment out, or continue it, and write its table and figure.

    Args:
        name: one of `available`, the path of another file, or a file of `dataprune pack`, whose table and figure are
            written again without any run.
        scale: "smoke", "cpu" or "paper".
        out: folder of the results.
        cache: folder of the runs, which experiments share.
        overrides: `seeds`, and of language tasks `model`, in place of the file's where they are not None.
        jobs: runs in parallel; by default one for each CPU core, and one on a GPU.
        report: called after every epoch.
    Returns:
        The files written.
    Raises:
        UsageError: if there is no such experiment or scale, its settings are invalid, a model is given to an experiment
            without language tasks, or `out` holds another experiment; else as `run`.
    """
    from ...report import joint as grids
    from ...report import tables
    from ..joint.run import joint
    from . import experiment, other, run

    if Path(name).suffix == ".json":
        return _redraw(Path(name), out)
    title, given = content(name)
    changed = {key: value for key, value in (overrides or {}).items() if value is not None}
    if "seeds" in changed:
        given = _with(given, scale, seeds=changed["seeds"])
    kind = given.get("kind", "grid")
    if "model" in changed and kind != "grid":
        raise UsageError(f"--model is for language tasks, {title} has others")
    if kind == "script":
        other.script(title, given, scale, out)
        return [out]
    if kind == "joint":
        grid = other.grid(title, given, scale)
        result = joint(grid, out, report=report, engine=_engine(grid.settings, jobs))
        shown = tables.plain(tables.joint(result))  # refuses an unfinished grid
        text = f"# {title}\n\n{given['source']}. {given['claim']}\n\nScale {scale}.\n\n```\n{shown}```\n"
        files.write_text(out / "table.md", text)
        return [out / "joint.json", out / "table.md", *grids.draw(result, out)]
    if kind != "grid":
        raise UsageError(f"{name}: kind is grid, joint or script, got {kind!r}")
    planned = experiment.of(title, given, scale)
    if "model" in changed:
        if not all(next(planned.cells(panel)).comparison.settings.glue for panel in planned.panels):
            raise UsageError(f"--model is for language tasks, {title} has others")
        given = _with(given, scale, settings={**planned.settings, "model": changed["model"]})
        planned = experiment.of(title, given, scale)
    first = next(planned.cells(next(iter(planned.panels)))).comparison.settings
    result = run.reproduce(planned, out, cache, engine=_engine(first, jobs), report=report)
    return [out / "result.json", *_write_table_and_figure(result, out)]


def _redraw(packed: Path, out: Path) -> list[Path]:
    """Write the table and figure of results that `dataprune pack` wrote."""
    from ...report import pack
    from ...training import run_folder

    results = [entry.result for entry in pack.read(packed) if entry.command == "reproduce" and entry.result]
    if len(results) != 1:
        raise UsageError(f"{packed} holds {len(results)} results of `dataprune reproduce`, not 1")
    run_folder.folder(out)
    return _write_table_and_figure(results[0], out)


def _write_table_and_figure(result: Mapping[str, Any], out: Path) -> list[Path]:
    from ...report import reproductions

    files.write_text(out / "table.md", reproductions.table(result))
    return [out / "table.md", *reproductions.figure(result, out / "figure")]


def _engine(settings: Settings, jobs: int | None) -> Engine:
    from ...training.device import choose_device
    from .. import engines

    count = jobs or (1 if choose_device(settings.device).type == "cuda" else os.cpu_count() or 1)
    return engines.local if count == 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1 else engines.processes(count)


def _with(given: dict[str, Any], scale: str, **changes: Any) -> dict[str, Any]:
    """Content of a file with changes at one scale; a scale that the file does not have stays missing."""
    scales = given.get("scales") or {}
    return {**given, "scales": {**scales, scale: {**(scales[scale] or {}), **changes}}} if scale in scales else given
