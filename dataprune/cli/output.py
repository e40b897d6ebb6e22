"""Printing, checks of optional packages, and names of folders."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from rich.console import Console

from ..errors import UsageError

_WIDTH = 160  # columns of a table that is not printed on a terminal


def require_drawing() -> None:
    """Raise UsageError before training where figures could not be drawn after it."""
    for name in ("matplotlib", "markdown_it"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"figures and report need {name}: pip install -c constraints.txt -e '.[cli]'")


def require_ray() -> None:
    """Raise UsageError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray: pip install -c constraints.txt -e '.[ray]'")


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """Parse the comma-separated numbers of an option."""
    try:
        return tuple(float(number) for number in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{option} takes comma-separated numbers, got {text!r}") from None


def plain(name: str) -> str:
    """The last part of a path or name, usable in a folder's name."""
    return plain_text(Path(name).resolve().name)


def plain_text(name: str) -> str:
    """Text usable in a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def note(text: str | None) -> None:
    """Print a note on stderr."""
    if text:
        print(f"note: {text}", file=sys.stderr)


def console() -> Console:
    """The console for tables: as wide as the terminal, or fixed where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def commas(text: str | None) -> list[str]:
    """Split a comma-separated option into names."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def print_lines(*lines: str) -> None:
    """Print lines as they are: no wrapping, no markup."""
    console().print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
