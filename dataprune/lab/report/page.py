"""The report of runs: Markdown, and one HTML page that loads nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from ... import __version__
from ...errors import UsageError
from ...files import undamaged, write_bytes, write_text
from ..data.named import Data
from ..training import run_folder
from . import joint, plots, records, saving_part, sections, selections
from .differences import sentence
from .document import Block, Part, Table, by_position, markdown, outline

_CLASSES = {  # of a table's cell, by the words it ends with
    "higher": "good", "lower": "bad", "passed": "good", "failed": "bad", "note": "note", "starved": "bad",
}  # fmt: skip
_PARTS = {"joint": joint.part, "saving": saving_part.part}  # of results that are more than a comparison, by command


def write(paths: Sequence[Path], out: Path, *, watts: float | None = None, data: Data | None = None) -> list[Path]:
    """Write report.html, report.md and figures/ to a folder; returns the first two.

    `paths` are folders and packed files of `dataprune compare`, `saving`, `train`, `pretrain` and `joint`, or folders
    above them; `watts` is the power of a processor, by default an assumption, which the report states.
    """
    run_folder.check_folder(out)
    if watts is not None and not 0 < watts < float("inf"):
        raise UsageError(f"--watts must be a positive number, got {watts}")
    entries = records.entries(paths)
    groups, left_out = records.groups(entries)
    parts = [_part(group, title, data, watts) for group, title in zip(groups, sections.titles(groups))]
    for entry in entries:
        if entry.command in _PARTS and entry.result:
            with undamaged(entry.folder / entry.file):
                parts.append(_PARTS[entry.command](str(entry.folder), entry.result))
    overview, drawn = sections.overview(groups, left_out), {}
    run_folder.folder(out / "figures")
    for number, part in enumerate(parts):
        for chart in part.charts:
            name = chart.name + (f"-{number + 1}" if len(parts) > 1 else "")
            drawn[name] = plots.svg(chart.figure, name, chart.description)
            chart.figure.set_layout_engine("none")  # it is laid out; doing so again takes as long as drawing
            write_bytes(out / "figures" / f"{name}.png", plots.png(chart.figure))
    files = {out / "report.html": html(parts, overview, drawn), out / "report.md": markdown(parts, overview)}
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def _part(group: records.Group, title: str, data: Data | None, watts: float | None) -> Part:
    details = {
        "Accuracy and differences": sections.differences(group),
        "Saved against full": sections.savings(group, watts),
        "Accuracy over epochs": sections.along_the_way(group),
        "Samples and learning rate per epoch": sections.per_epoch(group),
        **selections.sections(group, data),
        "Configuration and checks": sections.configuration(group),
    }
    shown = {heading: blocks for heading, blocks in details.items() if any(blocks)}
    return Part(title, str(group.folder), sentence(group.result), sections.result(group, title), shown)


def html(parts: Sequence[Part], overview: Sequence[Block], drawn: Mapping[str, str]) -> str:
    """The report as a page, with SVG elements by the name of their figure."""
    contents, body, used = [], [], Counter[str]()
    for level, title, part, blocks, mark in outline(parts, overview):
        heading, slug = escape(title), re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        if level == 1:
            body.append(f"<h1>{heading}</h1>")
        else:
            used[slug] += 1
            slug += f"-{used[slug]}" if used[slug] > 1 else ""
            contents.append(f'<li class="level{level}"><a href="#{slug}">{heading}</a></li>')
            body.append(f'<h{level} id="{slug}">{heading}</h{level}>')
        if part is not None:
            body.append(f"<p>From <code>{escape(part.source)}</code>.</p>")
            body.append(f'<p class="result"><strong>{escape(part.result)}</strong></p>')
        body += [_block(block, mark, drawn) for block in blocks if block]
    folded = f"<details><summary>Contents</summary>\n<ul>\n{_lines(contents)}</ul></details>"
    body.insert(1, f'<nav aria-label="Contents">{folded}</nav>')
    page, style = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    _, title, *_ = next(outline(parts, overview))
    return Template(page).substitute(title=escape(title), style=style, body=_lines(body), version=__version__)


def _block(block: Block, mark: str, drawn: Mapping[str, str]) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if not isinstance(block, Table):
        figures = [f"<figure>{drawn[chart.name + mark]}</figure>" for chart in block]
        return f'<div class="figures{" single" if len(block) == 1 else ""}">\n{_lines(figures)}</div>'
    caption, (head, rows) = escape(block.caption), by_position(block.rows)
    body = [_row(cells, ["row", *[""] * (len(head) - 1)]) for cells in rows]
    table = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>\n'
        f"<caption><span>{caption}</span></caption>\n"
        f"<thead>{_row(head, ['col'] * len(head))}</thead>\n<tbody>\n{_lines(body)}</tbody></table></div>"
    )
    return f"<details><summary>{caption}</summary>\n{table}</details>" if block.folded else table


def _row(cells: Sequence[str], scopes: Sequence[str]) -> str:
    """A row of cells, of which those with a scope are headings; they have a class by their last word."""
    texts = []
    for cell, scope in zip(cells, scopes):
        tag, attributes = ("th", f' scope="{scope}"') if scope else ("td", "")
        last = (cell.split() or [""])[-1]
        if mark := _CLASSES.get(last, "long" if len(cell) > 40 else ""):
            attributes += f' class="{mark}"'
        texts.append(f"<{tag}{attributes}>{'<br>'.join(map(escape, cell.splitlines()))}</{tag}>")
    return f"<tr>{''.join(texts)}</tr>"


def _lines(elements: Sequence[str]) -> str:
    return "".join(f"{element}\n" for element in elements)
