"""A report as Markdown, with the figures as PNG beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .content import Cell, Charts, Gallery, Table

if TYPE_CHECKING:
    from .page import Part


def render(parts: Sequence[Part]) -> str:
    """The report's parts; galleries are on the page alone."""
    lines = ["# dataprune report", ""]
    for part in parts:
        lines += [f"## {escaped(part.title)}", "", f"From `{part.folder.replace('`', '')}`.", ""]
        for section in part.sections:
            lines += [f"### {section.title}", ""]
            for block in section.blocks:
                if isinstance(block, str):
                    lines += [escaped(block), ""]
                elif isinstance(block, Table):
                    lines += [f"**{escaped(block.caption)}**", "", *_table(block), ""]
                elif isinstance(block, Charts):
                    for chart in block.charts:
                        lines += [f"![{escaped(chart.told)}](figures/{chart.name}{part.mark}.png)", ""]
            if any(isinstance(block, Gallery) for block in section.blocks):
                lines += ["The samples are shown in report.html.", ""]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text as it is, whatever Markdown or HTML would make of it.

    Example:
        >>> print(escaped("a|b <i> emp_contrastive"))
        a\\|b &lt;i> emp\\_contrastive
    """
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")


def _table(table: Table) -> list[str]:
    cells = [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in table.rows]
    rows = [list(table.head), ["---", *["---:"] * (len(table.head) - 1)], *cells]
    return [f"| {' | '.join(row if place == 1 else map(escaped, row))} |" for place, row in enumerate(rows)]
