"""What a report is made of, whether it becomes a page or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Cell(NamedTuple):
    """A table's cell that is marked: "good", "bad" or "note". The text says it too."""

    text: str
    mark: str


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading.

    Attributes:
        caption: what it shows.
        head: of the columns.
        rows: cells.
        folded: whether it is shown on demand only.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: of its file, unique in the report.
        title: above it.
        told: what it shows, in words, for who cannot see it.
        figure: as `charts` draws it.
    """

    name: str
    title: str
    told: str
    figure: Figure


@dataclass(frozen=True)
class Charts:
    """Figures side by side, where there is room."""

    charts: Sequence[Chart]
    kind: str = "charts"


class Sample(NamedTuple):
    """A sample of a gallery: PNG bytes or a text, what it is, and how often it was kept."""

    image: bytes | None
    text: str | None
    label: str
    kept: str


@dataclass(frozen=True)
class Gallery:
    """Samples that were alike in how often they were kept."""

    title: str
    samples: Sequence[Sample]
    kind: str = "gallery"


@dataclass(frozen=True)
class Section:
    """A part of the report; a string among its blocks is a paragraph.

    Attributes:
        name: for links.
        title: heading.
        blocks: from top to bottom.
    """

    name: str
    title: str
    blocks: Sequence[str | Table | Charts | Gallery] = field(default_factory=list)


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
