"""The tables and figures of papers: files that say what to run, in `experiments/papers`, and what runs them.

    dataprune reproduce emp_table1 --scale cpu

`experiment` reads a file, `run` carries a grid of comparisons out, `findings` are what figures need beside accuracies,
`other` is for what is no grid.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ....errors import UsageError
from .experiment import available, content

__all__ = ["about", "available", "reproduce"]


def about(name: str) -> tuple[str, str]:
    """Paper, and number of the table or figure; and what it claims."""
    found = content(name)[1]
    return str(found.get("source", "")), str(found.get("claim", ""))


def reproduce(
    name: str,
    scale: str,
    out: Path,
    cache: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    report: Callable[..., None] | None = None,
) -> list[Path]:
    """Carry an experiment out, or go on with it, and write its table and figure.

    Args:
        name: of one that is `available`, the path of a file of one's own, or a file of `dataprune pack`, whose results
            are drawn again without any run.
        scale: "smoke", "cpu" or "paper".
        out: folder of the results.
        cache: folder of the runs, which experiments share.
        overrides: `seeds`, and of language tasks `model`, in place of the file's where they are not None.
        jobs: runs side by side; by default one for each CPU core, and one on a GPU.
        report: called after every epoch, a run's name first.
    Returns:
        The files written.
    Raises:
        UsageError: if there is no such experiment or scale, the file says what cannot be meant, it has no model to be
            given, or `out` holds something else; else as `fit`.
    """
    from ...report import joint_plots, tables
    from ...training import run_folder, setup
    from .. import engines
    from . import experiment, other, run

    if Path(name).suffix == ".json":
        return _redraw(Path(name), out)
    title, said = content(name)
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if "seeds" in given:
        said = _with(said, scale, seeds=given["seeds"])
    kind = said.get("kind", "grid")
    if "model" in given and kind != "grid":
        raise UsageError(f"--model is for language tasks, {title} has others")
    if kind == "script":
        other.script(title, said, scale, out)
        return [out]
    if kind == "joint":
        result = other.joint(title, said, scale, out, report or (lambda *_: None))
        shown = tables.plain(tables.joint(result))  # refuses a grid that is not finished
        text = f"# {title}\n\n{said['source']}. {said['claim']}\n\nScale {scale}.\n\n```\n{shown}```\n"
        run_folder.write(out / "table.md", text.encode())
        return [out / "joint.json", out / "table.md", *joint_plots.draw(result, out)]
    if kind != "grid":
        raise UsageError(f"{name}: kind is grid, joint or script, got {kind!r}")
    planned = experiment.of(title, said, scale)
    if "model" in given:
        if not all(next(planned.cells(panel)).comparison.settings.glue for panel in planned.panels):
            raise UsageError(f"--model is for language tasks, {title} has others")
        said = _with(said, scale, settings={**planned.settings, "model": given["model"]})
        planned = experiment.of(title, said, scale)
    first = next(planned.cells(next(iter(planned.panels)))).comparison.settings
    count = jobs or (1 if setup.choose_device(first.device).type == "cuda" else os.cpu_count() or 1)
    engine = engines.local if count == 1 or int(os.environ.get("WORLD_SIZE", 1)) > 1 else engines.processes(count)
    result = run.reproduce(planned, out, cache, engine=engine, report=report)
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
    from ...training import run_folder

    run_folder.write(out / "table.md", reproductions.table(result).encode())
    return [out / "table.md", *reproductions.figure(result, out / "figure")]


def _with(said: dict[str, Any], scale: str, **more: Any) -> dict[str, Any]:
    """What a file says, with more at one scale; a scale that it does not have stays away."""
    scales = said.get("scales") or {}
    return {**said, "scales": {**scales, scale: {**(scales[scale] or {}), **more}}} if scale in scales else said
