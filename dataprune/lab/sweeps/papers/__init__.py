"""The tables and figures of papers: files of settings in `experiments/papers`, and what carries them out.

    dataprune reproduce emp_table1 --scale cpu

`experiment` reads a file, `run` carries its comparisons out, `curves` reads what figures need beside accuracies.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .... import files
from ....errors import UsageError
from ...report import reproductions
from ...training import run_folder
from ...training.device import choose_device
from ...training.settings import Settings, require
from .. import engines
from ..engines import Engine, Report
from ..joint.grid import Grid
from ..sweep import carry_out
from . import experiment, run
from .experiment import available

__all__ = ["about", "available", "reproduce"]


def about(name: str) -> tuple[str, str]:
    """Source (paper, and number of the table or figure) and claim of an experiment."""
    content = experiment.content(name)[1]
    return str(content.get("source", "")), str(content.get("claim", ""))


def reproduce(
    name: str,
    scale: str,
    out: Path,
    cache: Path,
    *,
    seeds: int | None = None,
    model: str | None = None,
    jobs: int | None = None,
    report: Report | None = None,
) -> list[Path]:
    """Carry an experiment out, or continue it, and write its table and figure.

    Args:
        name: one of `available`, the path of another file, or a file of `dataprune pack`, whose table and figure are
            written again without any run.
        cache: folder of the runs, which experiments share.
        seeds, model: in place of the file's; the model is a pretrained encoder of language tasks.
        jobs: runs in parallel; by default one for each CPU core, and one on a GPU.
    """
    if Path(name).suffix == ".json":
        return _redraw(Path(name), out)
    title, content = experiment.content(name)
    kind = content.get("kind", "grid")
    require(kind in ("grid", "joint", "script"), f"{name}: kind is grid, joint or script, got {kind!r}")
    require(model is None or kind == "grid", f"--model is for language tasks, {title} has others")
    if kind == "script":
        _run_script(title, content, scale, out)
        return [out]
    if kind == "joint":
        return _prune_jointly(title, content, scale, out, seeds, jobs, report)
    planned = experiment.of(title, content, scale)
    planned = replace(planned, seeds=seeds or planned.seeds)
    if model is not None:
        glue = all(planned.cells(panel)[0].comparison.settings.glue for panel in planned.panels)
        require(glue, f"--model is for language tasks, {title} has others")
        planned = replace(planned, settings={**planned.settings, "model": model})
    first = planned.comparison(*next(planned.runs())).settings
    result = run.reproduce(planned, out, cache, engine=_engine(first, jobs), report=report)
    return [out / "result.json", *_write_table_and_figure(result, out)]


def _prune_jointly(
    title: str,
    content: Mapping[str, Any],
    scale: str,
    out: Path,
    seeds: int | None,
    jobs: int | None,
    report: Report | None,
) -> list[Path]:
    """Carry out a grid of joint pruning: a file with `settings`, `seeds`, `published` and arguments of `Grid`."""
    from ...report import joint, tables

    own, grid = grid_of(title, content, scale, seeds)
    result = carry_out(grid, out, report=report, engine=_engine(grid.settings, jobs))
    shown = tables.plain(tables.joint(result))  # refuses an unfinished grid
    text = [*_heading(title, content, scale), "```", shown.rstrip(), "```"]
    text += joint.beside(result, own.get("published", {})) + reproductions.deviations(own)
    files.write_text(out / "table.md", "\n".join(text) + "\n")
    return [out / "joint.json", out / "table.md", *joint.draw(result, out)]


def grid_of(
    title: str, content: Mapping[str, Any], scale: str, seeds: int | None = None
) -> tuple[dict[str, Any], Grid]:
    """What a file of joint pruning says at a scale, and its grid."""
    own = experiment.at_scale(title, content, scale)
    names = {field.name for field in fields(Grid)} - {"settings", "seeds"}
    arguments = {name: value for name, value in own.items() if name in names}
    settings = experiment.settings_of(own["settings"])
    return own, Grid(settings, seeds=range(seeds or own.get("seeds", 1)), **arguments)


def _heading(title: str, content: Mapping[str, Any], scale: str) -> list[str]:
    return [f"# {title}", "", f"{content['source']}. {content['claim']}", "", f"Scale {scale}.", ""]


def _run_script(title: str, content: Mapping[str, Any], scale: str, out: Path) -> None:
    """Call `main(scale, out)` of the file's `script`, which writes its results and figures."""
    own = experiment.at_scale(title, content, scale)
    paths = (folder / content["script"] for folder in experiment.FOLDERS)
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise UsageError(f"{title} is the script experiments/{content['script']}, which is not installed: use a clone")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    sys.path.insert(0, str(path.parent))  # scripts can import each other
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        module.main(scale, out)
        files.write_text(out / "table.md", "\n".join(_heading(title, content, scale) + reproductions.deviations(own)))
    finally:
        sys.path.remove(str(path.parent))


def _redraw(packed: Path, out: Path) -> list[Path]:
    """Write the table and figure of results that `dataprune pack` wrote."""
    from ...report import pack

    results = [entry.result for entry in pack.read(packed) if entry.command == "reproduce" and entry.result]
    require(len(results) == 1, f"{packed} holds {len(results)} results of `dataprune reproduce`, not 1")
    run_folder.folder(out)
    return _write_table_and_figure(results[0], out)


def _write_table_and_figure(result: Mapping[str, Any], out: Path) -> list[Path]:
    files.write_text(out / "table.md", reproductions.table(result))
    return [out / "table.md", *reproductions.figure(result, out / "figure")]


def _engine(settings: Settings, jobs: int | None) -> Engine:
    count = jobs or (1 if choose_device(settings.device).type == "cuda" else os.cpu_count() or 1)
    return engines.local if count == 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1 else engines.processes(count)
