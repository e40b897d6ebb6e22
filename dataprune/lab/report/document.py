"""What a report consists of, and its Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of rows by heading; the first cell is the row's name, a cell of several lines keeps them."""

    caption: str
    rows: Sequence[Mapping[str, str]]  # all with the columns of the first, or "–" in their place
    folded: bool = False  # shown on demand only

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Chart:
    """A figure, with the name of its file, unique within a part, and a description for readers who cannot see it."""

    name: str
    description: str
    figure: Figure


Block = str | Table | Sequence[Chart]  # a paragraph, a table, figures side by side; nothing is shown of an empty one


@dataclass(frozen=True)
class Part:
    """The report of a group of runs."""

    title: str
    source: str  # folder or file of the records
    result: str  # in a sentence
    first: Sequence[Block]  # before the sections
    sections: Mapping[str, Sequence[Block]]  # by heading

    @property
    def charts(self) -> list[Chart]:
        """All figures."""
        blocks = [*self.first, *(block for section in self.sections.values() for block in section)]
        return [chart for block in blocks if not isinstance(block, str | Table) for chart in block]


def outline(
    parts: Sequence[Part], overview: Sequence[Block]
) -> Iterator[tuple[int, str, Part | None, Sequence[Block], str]]:
    """Level and title of every heading, the part that it begins, its blocks, and what their figures' names end with.

    Several parts come after an overview of them.
    """
    several = len(parts) > 1
    if several:
        yield 1, f"{len(parts)} groups of runs", None, overview, ""
    for number, part in enumerate(parts, 1):
        mark = f"-{number}" if several else ""
        yield 1 + several, part.title, part, part.first, mark
        for title, blocks in part.sections.items():
            yield 2 + several, title, None, blocks, mark


def markdown(parts: Sequence[Part], overview: Sequence[Block]) -> str:
    """The report as Markdown; figures are `figures/NAME.png`, of several parts `figures/NAME-PART.png`."""
    lines = []
    for level, title, part, blocks, mark in outline(parts, overview):
        lines += [f"{'#' * level} {escaped(title)}", ""]
        if part is not None:
            lines += [f"From `{part.source.replace('`', '')}`.", "", f"**{escaped(part.result)}**", ""]
        lines += [line for block in blocks if block for line in (*_block(block, mark), "")]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text as it is, whatever Markdown or HTML would make of it."""
    text = re.sub(r"([\\`*_\[\]|!~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def by_position(rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[str]]]:
    """The headings of rows, and their cells, "–" where a row lacks one that the first has."""
    return list(rows[0]), [[row.get(name, "–") for name in rows[0]] for row in rows]


def pipe_table(head: Sequence[str], rows: Sequence[Sequence[str]], alignment: str = "---") -> str:
    """Markdown of a table whose cells are Markdown, with the alignment of all columns but the first."""
    lines = [head, ["---", *[alignment] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _block(block: Block, mark: str) -> list[str]:
    if isinstance(block, str):
        return [re.sub(r"^(\d*)([#+.)-])", r"\1\\\2", escaped(block))]  # neither a list nor a heading
    if not isinstance(block, Table):
        return [f"![{escaped(chart.description)}](figures/{chart.name}{mark}.png)" for chart in block]
    rows = [
        {escaped(name): "<br>".join(map(escaped, cell.split("\n"))) for name, cell in row.items()} for row in block.rows
    ]
    text = pipe_table(*by_position(rows), alignment="---:")
    if block.folded:
        return ["<details>", f"<summary>{escape(block.caption)}</summary>", "", text, "", "</details>"]
    return [f"**{escaped(block.caption)}**", "", text]
