"""Printing, and the names of folders."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import UsageError

_WIDTH = 160  # columns of a table that is not printed on a terminal


def first_rank() -> bool:
    """Whether this process prints for all processes of torchrun; does not need torch."""
    return os.environ.get("RANK", "0") == "0"


def require_drawing() -> None:
    """Raise UsageError before training where figures could not be drawn after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("figures and report need matplotlib: pip install -c constraints.txt -e '.[cli]'")


def default_out(command: str, data: str, *parts: str) -> Path:
    """The folder of a command's results where --out does not name one."""
    return Path("runs") / "-".join([command, folder_name(data), *parts])


def folder_name(path: str) -> str:
    """The last part of a path or name, usable in a folder's name."""
    return file_name(Path(path).resolve().name)


def file_name(text: str) -> str:
    """Text usable in a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text)


def note(text: str | None) -> None:
    """Print a note on stderr."""
    if text:
        print(f"note: {text}", file=sys.stderr)


class _Console(Console):
    """A console that leaves a closed stdout to the command's errors, where rich would end the process in silence."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """The console for tables: as wide as the terminal, or fixed where there is none."""
    return _Console() if sys.stdout is not None and sys.stdout.isatty() else _Console(width=_WIDTH)


def print_lines(*lines: str) -> None:
    """Print lines as they are: no wrapping, no markup."""
    console().print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def print_json(result: Any) -> None:
    """Print the result of --json."""
    print(json.dumps(result))
