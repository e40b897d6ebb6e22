"""The report of runs: Markdown, and one HTML page of it that loads nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ... import __version__
from ...errors import UsageError
from ...files import write_bytes, write_text
from ..data.named import Data
from ..training import run_folder
from . import joint, plots, records, sections, selections
from .differences import sentence
from .document import Part, markdown

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_CLASSES = {  # of a table's cell, by the words it ends with
    "higher": "good", "lower": "bad", "passed": "good", "failed": "bad", "note": "note", "starved": "bad",
}  # fmt: skip
_FOLD = re.compile(r"<details>\n<summary>(.*)</summary>\n?|</details>\n?")


def write(paths: Sequence[Path], out: Path, *, watts: float | None = None, data: Data | None = None) -> list[Path]:
    """Write report.html, report.md and figures/ to a folder; returns the first two.

    Args:
        paths: folders and packed files of `dataprune compare`, `train`, `pretrain` and `joint`, or folders above them.
        out: folder to write to.
        watts: power of a processor; by default an assumption, which the report states.
        data: the runs' data, where it is loaded already.
    Raises:
        UsageError: if there is no finished run, or `out` is a file.
        CheckpointError: if a record is damaged.
        OSError: if something cannot be written.
    """
    run_folder.check_folder(out)
    if watts is not None and not 0 < watts < float("inf"):
        raise UsageError(f"--watts must be a positive number, got {watts}")
    entries = records.entries(paths)
    groups, left_out = records.groups(entries)
    parts = [_part(group, title, data, watts) for group, title in zip(groups, sections.titles(groups))]
    grids = [entry for entry in entries if entry.command == "joint" and entry.result]
    parts += [joint.part(str(entry.folder), entry.result or {}) for entry in grids]
    text = markdown(parts, sections.overview(groups, left_out))
    drawn = {}
    run_folder.folder(out / "figures")
    for number, part in enumerate(parts):
        for chart in part.charts:
            name = chart.name + (f"-{number + 1}" if len(parts) > 1 else "")
            drawn[name] = plots.svg(chart.figure, name, chart.description)
            chart.figure.set_layout_engine("none")  # it is laid out; doing so again takes as long as drawing
            write_bytes(out / "figures" / f"{name}.png", plots.png(chart.figure))
    files = [out / "report.html", out / "report.md"]
    write_text(files[0], html(text, drawn))
    write_text(files[1], text)
    return files


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


def html(text: str, drawn: Mapping[str, str]) -> str:
    """The page of a report's Markdown, with SVG elements by the name of the figure that they replace."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table").disable(["link", "autolink"])
    rules = {
        "image": lambda token: f"<figure>{drawn[Path(str(token.attrs['src'])).stem]}</figure>",
        "html_inline": lambda token: token.content if token.content == "<br>" else escape(token.content),
        "html_block": lambda token: token.content if _FOLD.fullmatch(token.content) else escape(token.content),
        "raw": lambda token: token.content,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, lambda _, tokens, at, *rest, rule=rule: rule(tokens[at]))
    tokens = parser.parse(text)
    title = next(token.content for before, token in pairwise(tokens) if before.type == "heading_open")
    contents = _contents(tokens, parser)
    _mark_paragraphs(tokens)
    _mark_cells(tokens)
    body = parser.renderer.render(_with_captions(tokens, parser), parser.options, {})
    heading, end, rest = body.partition("</h1>\n")
    body = heading + end + contents + rest
    page, style = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    title = re.sub("<.*?>", "", parser.renderInline(title))
    return Template(page).substitute(title=title, style=style, body=body, version=__version__)


def _contents(tokens: Sequence[Token], parser: MarkdownIt) -> str:
    """Links to all headings but the first, which get ids."""
    used: Counter[str] = Counter()
    items = []
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag != "h1":
            slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\\|&\w+;", "", inline.content.lower())).strip("-")
            used[slug] += 1
            slug += f"-{used[slug]}" if used[slug] > 1 else ""
            opening.attrs["id"] = slug
            link = f'<a href="#{slug}">{parser.renderInline(inline.content)}</a>'
            items.append(f'<li class="level{opening.tag[1]}">{link}</li>\n')
    folded = f"<details><summary>Contents</summary>\n<ul>\n{''.join(items)}</ul></details>"
    return f'<nav aria-label="Contents">{folded}</nav>\n'


def _mark_paragraphs(tokens: Sequence[Token]) -> None:
    """Paragraphs of nothing but images become grids of figures, those with a bold sentence alone the result."""
    for opening, inline, closing in zip(tokens, tokens[1:], tokens[2:]):
        if opening.type != "paragraph_open":
            continue
        kinds = [child.type for child in inline.children or () if child.type != "text" or child.content]
        if "image" in kinds and set(kinds) <= {"image", "softbreak"}:
            opening.tag = closing.tag = "div"
            opening.attrs["class"] = "figures single" if kinds.count("image") == 1 else "figures"
        elif kinds[:1] == ["strong_open"] and kinds.index("strong_close") == len(kinds) - 1:
            opening.attrs["class"] = "result"


def _mark_cells(tokens: Sequence[Token]) -> None:
    """The first cell of a row is its heading, and cells have a class by their words."""
    head = first = False
    for opening, inline, closing in zip(tokens, tokens[1:], tokens[2:]):
        if opening.type in ("thead_open", "tbody_open"):
            head = opening.type == "thead_open"
        elif opening.type == "tr_open":
            first = True
        elif opening.type in ("th_open", "td_open"):
            opening.attrs = {"scope": "col" if head else "row"} if head or first else {}
            opening.tag = closing.tag = "th" if opening.attrs else "td"
            words = inline.content.split() or [""]
            if mark := _CLASSES.get(re.split(r"<br>|>", words[-1])[-1]):
                opening.attrs["class"] = mark
            elif len(inline.content) > 40:
                opening.attrs["class"] = "long"
            first = False


def _with_captions(tokens: Sequence[Token], parser: MarkdownIt) -> list[Token]:
    """Tables get the caption that stands before them, and scroll on their own."""
    from markdown_it.token import Token

    changed: list[Token] = []
    caption = ""
    for token in tokens:
        if token.type == "html_block" and (match := _FOLD.fullmatch(token.content)) and match[1]:
            caption = match[1]
        if token.type == "table_open":
            if len(changed) >= 3 and changed[-3].attrs.get("class") == "result":
                caption = parser.renderInline(changed[-2].content[2:-2])
                del changed[-3:]
            label = re.sub("<.*?>", "", caption)
            opening = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
            caption_element = f"<caption><span>{caption}</span></caption>"
            changed += [Token("raw", "", 0, content=opening), token, Token("raw", "", 0, content=caption_element)]
        else:
            changed.append(token)
            if token.type == "table_close":
                changed.append(Token("raw", "", 0, content="</div>"))
    return changed
