"""What a report consists of, and its Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading, a cell of several lines keeps them.

    Attributes:
        caption: what it shows.
        head: of the columns.
        rows: cells.
        folded: whether it is shown on demand only.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: of its file, unique among a group's figures.
        description: what it shows, for readers who cannot see it.
        figure: as `plots` draws it.
    """

    name: str
    description: str
    figure: Figure


Block = str | Table | Sequence[Chart]  # a paragraph, a table, figures side by side


@dataclass(frozen=True)
class Section:
    """A part of a group's report.

    Attributes:
        title: heading.
        blocks: from top to bottom.
    """

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Part:
    """The report of a group of runs.

    Attributes:
        title: what was run.
        source: folder or file that the records are from.
        result: the result in a sentence.
        first: what a reader sees before the sections.
        sections: the details.
    """

    title: str
    source: str
    result: str
    first: Sequence[Block]
    sections: Sequence[Section]

    @property
    def charts(self) -> list[Chart]:
        """All figures."""
        blocks = [*self.first, *(block for section in self.sections for block in section.blocks)]
        return [chart for block in blocks if not isinstance(block, str | Table) for chart in block]


def markdown(parts: Sequence[Part], overview: Sequence[Block] = ()) -> str:
    """The report as Markdown; figures are `figures/NAME.png`, of several parts `figures/NAME-PART.png`.

    Args:
        parts: of the report.
        overview: what several parts have in common; one part stands without it.
    """
    several, lines = len(parts) > 1, []
    if several:
        lines = [f"# {len(parts)} groups of runs", "", *(line for block in overview for line in _block(block, ""))]
    for number, part in enumerate(parts):
        mark = f"-{number + 1}" if several else ""
        source = f"From `{part.source.replace('`', '')}`."
        lines += [
            f"{'##' if several else '#'} {escaped(part.title)}",
            "",
            source,
            "",
            f"**{escaped(part.result)}**",
            "",
        ]
        for block in part.first:
            lines += _block(block, mark)
        for section in part.sections:
            lines += [f"{'###' if several else '##'} {escaped(section.title)}", ""]
            for block in section.blocks:
                lines += _block(block, mark)
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text as it is, whatever Markdown or HTML would make of it.

    Example:
        >>> print(escaped("a|b <i> emp_contrastive"))
        a\\|b &lt;i> emp\\_contrastive
    """
    text = re.sub(r"([\\`*_\[\]|!~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> listed(["full", "short", "emp"]), listed([])
        ('full, short and emp', 'none')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "seed"), counted(1200, "sample")
        ('1 seed', '1,200 samples')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _block(block: Block, mark: str) -> list[str]:
    if isinstance(block, str):
        return [re.sub(r"^(\d*)([#+.)-])", r"\1\\\2", escaped(block)), ""]  # neither a list nor a heading
    if isinstance(block, Table):
        return _table(block)
    return [*(f"![{escaped(chart.description)}](figures/{chart.name}{mark}.png)" for chart in block), ""]


def _table(table: Table) -> list[str]:
    rule = ["---", *["---:"] * (len(table.head) - 1)]
    rows = [rule if row is None else [_cell(cell) for cell in row] for row in (table.head, None, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if table.folded:
        return ["<details>", f"<summary>{escape(table.caption)}</summary>", "", *lines, "", "</details>", ""]
    return [f"**{escaped(table.caption)}**", "", *lines, ""]


def _cell(text: str) -> str:
    return "<br>".join(map(escaped, text.split("\n")))
