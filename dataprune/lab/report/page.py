"""The report of runs: Markdown, and one HTML page of it that loads nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ... import __version__
from ...errors import UsageError
from ...files import write_bytes, write_text
from ..data.named import Data
from ..training import run_folder
from . import joint_sections, plots, records, sections, selections
from .document import Part, markdown

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_CLASSES = {  # of a table's cell, by the words it ends with
    "higher": "good", "lower": "bad", "passed": "good", "failed": "bad", "note": "note", "starved": "bad",
}  # fmt: skip
_FOLD = re.compile(r"<details>\n<summary>(.*)</summary>\n?|</details>\n?")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title} – dataprune report</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<main id="main" tabindex="-1">
{body}</main>
<footer><p>Report by dataprune {version}. This page is one file and loads nothing.</p></footer>
</body>
</html>
"""


def write(paths: Sequence[Path], out: Path, *, watts: float | None = None, data: Data | None = None) -> list[Path]:
    """Write report.html, report.md and figures/.

    Args:
        paths: folders and packed files of `dataprune compare`, `train`, `pretrain` and `joint`, or folders above them.
        out: folder to write to.
        watts: power of a processor; by default an assumption, which the report states.
        data: the runs' data, where it is loaded already.
    Returns:
        The page, and the Markdown.
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
    titles = sections.titles(groups)
    parts = []
    for group, title in zip(groups, titles):
        loaded = selections.matching(group, selections.load(group) if data is None else data)
        parts.append(_part(group, title, loaded, watts))
    grids = [(str(entry.folder), entry.result) for entry in entries if entry.command == "joint" and entry.result]
    parts += [joint_sections.part(source, result) for source, result in grids]
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


def html(text: str, drawn: Mapping[str, str]) -> str:
    """The page of a report.

    Args:
        text: Markdown.
        drawn: SVG elements by the name of the figure that they replace.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table").disable(["link", "autolink"])
    parser.add_render_rule("image", lambda _, tokens, at, *rest: f"<figure>{drawn[_figure(tokens[at])]}</figure>")
    parser.add_render_rule("html_inline", lambda _, tokens, at, *rest: _known(tokens[at].content, "<br>"))
    parser.add_render_rule("html_block", lambda _, tokens, at, *rest: _fold(tokens[at].content))
    parser.add_render_rule("raw", lambda _, tokens, at, *rest: tokens[at].content)
    tokens = parser.parse(text)
    title = next(token.content for before, token in pairwise(tokens) if before.type == "heading_open")
    headings = _with_ids(tokens)
    _mark_figures(tokens)
    body = parser.renderer.render(_with_captions(tokens, parser), parser.options, {})
    first = body.index("</h1>") + len("</h1>\n")
    shown = parser.renderInline(title)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = body[:first] + _contents(headings, parser) + body[first:]
    return _PAGE.format(title=re.sub("<.*?>", "", shown), style=style, body=body, version=__version__)


def _part(group: records.Group, title: str, data: Data | str, watts: float | None) -> Part:
    result, first = sections.result(group, title)
    details = [
        sections.differences(group),
        sections.savings(group, watts),
        sections.along_the_way(group),
        sections.per_epoch(group),
        selections.counts(group),
        selections.trajectories(group),
        selections.classes(group, data),
        selections.gallery(group, data),
        sections.configuration(group),
    ]
    return Part(title, str(group.folder), result, first, [section for section in details if section.blocks])


def _figure(image: Token) -> str:
    return Path(str(image.attrs["src"])).stem


def _known(content: str, *known: str) -> str:
    return content if content in known else escape(content)


def _fold(content: str) -> str:
    match = _FOLD.fullmatch(content)
    return escape(content) if match is None else content


def _with_ids(tokens: Sequence[Token]) -> list[tuple[int, str, str]]:
    """Give headings ids; returns level, id and Markdown of each below the first."""
    used: dict[str, int] = {}
    headings = []
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.tag != "h1":
            slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\\|&\w+;", "", inline.content.lower())).strip("-")
            used[slug] = used.get(slug, 0) + 1
            slug += f"-{used[slug]}" if used[slug] > 1 else ""
            opening.attrs["id"] = slug
            headings.append((int(opening.tag[1]), slug, inline.content))
    return headings


def _contents(headings: Sequence[tuple[int, str, str]], parser: MarkdownIt) -> str:
    items = [
        f'<li class="level{level}"><a href="#{slug}">{parser.renderInline(text)}</a></li>\n'
        for level, slug, text in headings
    ]
    folded = f"<details><summary>Contents</summary>\n<ul>\n{''.join(items)}</ul></details>"
    return f'<nav aria-label="Contents">{folded}</nav>\n'


def _mark_figures(tokens: Sequence[Token]) -> None:
    """Paragraphs of nothing but images become grids of figures, those with a bold sentence alone the result."""
    for opening, inline, closing in zip(tokens, tokens[1:], tokens[2:]):
        if opening.type != "paragraph_open":
            continue
        kinds = {child.type for child in inline.children or ()}
        if "image" in kinds and kinds <= {"image", "softbreak"}:
            opening.tag = closing.tag = "div"
            alone = sum(child.type == "image" for child in inline.children or ()) == 1
            opening.attrs["class"] = "figures single" if alone else "figures"
        elif _is_strong(inline):
            opening.attrs["class"] = "result"


def _is_strong(inline: Token) -> bool:
    children = inline.children or []
    inner = [child.type for child in children if child.type != "text" or child.content]
    return inner[:1] == ["strong_open"] and inner.index("strong_close") == len(inner) - 1


def _with_captions(tokens: Sequence[Token], parser: MarkdownIt) -> list[Token]:
    """Tables get the caption that stands before them, scroll on their own, and have row headings."""
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
            changed += [_raw(opening), token, _raw(f"<caption><span>{caption}</span></caption>")]
        elif token.type == "table_close":
            changed += [token, _raw("</div>")]
        else:
            changed.append(token)
    header, head = False, False
    cell: Token | None = None
    for token in changed:
        if token.type in ("thead_open", "thead_close"):
            head = token.type == "thead_open"
        elif token.type == "tr_open":
            header = True
        elif token.type in ("th_open", "td_open"):
            token.attrs = {"scope": "col" if head else "row"} if head or header else {}
            cell = token
            token.tag = "th" if head or header else "td"
            header = False
        elif token.type == "inline" and cell is not None:
            words = token.content.split() or [""]
            if mark := _CLASSES.get(re.split(r"<br>|>", words[-1])[-1]):
                cell.attrs["class"] = mark
            elif len(token.content) > 40:
                cell.attrs["class"] = "long"
        elif token.type in ("th_close", "td_close") and cell is not None:
            token.tag, cell = cell.tag, None
    return changed


def _raw(content: str) -> Token:
    from markdown_it.token import Token

    return Token("raw", "", 0, content=content)
