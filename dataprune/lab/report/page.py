"""The report of runs: one HTML page that loads nothing, the same as Markdown, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ... import __version__
from ...errors import UsageError
from ..data.named import Data
from ..training import run_folder
from . import charts, markdown, outcome, records, selections
from .content import Chart, Charts, Section
from .records import Group

LIMIT = 3_000_000  # bytes of a page
_GALLERIES = ((64, 12), (40, 12), (32, 8), (24, 4), (16, 3))  # side and count, the first with which a page fits


class Part(NamedTuple):
    """A group's part of a report; `mark` makes its names unique among several."""

    title: str
    folder: str
    mark: str
    sections: Sequence[Section]


def write(folders: Sequence[Path], out: Path, *, watts: float | None = None, data: Data | None = None) -> list[Path]:
    """Write report.html, report.md and figures/.

    Args:
        folders: of `dataprune compare` and `dataprune train`.
        out: where to; made if it is not there.
        watts: what a processor draws; by default an assumption, which the report states.
        data: that of the runs, where it is loaded already.
    Returns:
        The page, and the Markdown.
    Raises:
        UsageError: if a folder holds no finished run, or `out` is a file.
        CheckpointError: if a record is damaged.
        OSError: if something cannot be written.
    """
    run_folder.check_folder(out)
    if watts is not None and not 0 < watts < float("inf"):
        raise UsageError(f"--watts must be a positive number, got {watts}")
    groups = records.read(folders)
    held = [selections.fitting(group, selections.load(group) if data is None else data) for group in groups]
    fixed = [_fixed(group, one, watts) for group, one in zip(groups, held, strict=True)]
    page, parts = "", []
    drawn: dict[str, str] = {}
    for side, count in _GALLERIES:
        parts = []
        for place, (group, one) in enumerate(zip(groups, held, strict=True)):
            *first, last = fixed[place]
            mark = f"-{place + 1}" if len(groups) > 1 else ""
            sections = [*first, selections.gallery(group, one, side, count), last]
            parts.append(Part(group.name, str(group.folder), mark, sections))
        drawn = drawn or _drawn(parts)
        page = render(parts, drawn)
        if len(page.encode()) < LIMIT:
            break
    run_folder.folder(out / "figures")
    for part in parts:
        for chart in _charts(part):
            run_folder.write(out / "figures" / f"{chart.name}{part.mark}.png", charts.png(chart.figure))
    files = [out / "report.html", out / "report.md"]
    run_folder.write(files[0], page.encode())
    run_folder.write(files[1], markdown.render(parts).encode())
    return files


def render(parts: Sequence[Part], drawn: dict[str, str]) -> str:
    """The page.

    Args:
        parts: of it.
        drawn: SVG elements by the name of the chart with the part's mark.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        parts=parts,
        drawn={name: Markup(text) for name, text in drawn.items()},  # charts.svg has escaped what is in it
        embedded=selections.embedded,
        version=__version__,
    )


def _fixed(group: Group, data: Data | str, watts: float | None) -> list[Section]:
    """All sections but the gallery."""
    return [
        outcome.headline(group, watts),
        outcome.against_budget(group),
        outcome.per_epoch(group),
        selections.counts(group),
        selections.trajectories(group),
        selections.classes(group, data),
        outcome.configuration(group),
    ]


def _drawn(parts: Sequence[Part]) -> dict[str, str]:
    drawn = {}
    for part in parts:
        for chart in _charts(part):
            drawn[chart.name + part.mark] = charts.svg(chart.figure, chart.name + part.mark, chart.told)
            chart.figure.set_layout_engine("none")  # laid out once; finding the places takes as long as drawing
    return drawn


def _charts(part: Part) -> list[Chart]:
    blocks: list[Any] = [block for section in part.sections for block in section.blocks]
    return [chart for block in blocks if isinstance(block, Charts) for chart in block.charts]
