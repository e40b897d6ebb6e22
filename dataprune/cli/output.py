"""What commands print, what they need for it, and the names of folders."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import UsageError
from .shell import first_rank

_WIDTH = 160  # of tables where the output is no terminal


def require_drawing() -> None:
    """Refuse a call that cannot draw before it trains."""
    for name in ("matplotlib", "markdown_it"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"figures and report need {name}: pip install 'dataprune[cli]'")


def require_ray() -> None:
    """Refuse --engine ray without Ray."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray: pip install 'dataprune[ray]'")


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """Comma-separated numbers that an option was given."""
    try:
        return tuple(float(one) for one in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{option} takes comma-separated numbers, got {text!r}") from None


def plain(name: str) -> str:
    """The last part of a path, or a name, as part of a folder's name."""
    return plain_text(Path(name).resolve().name)


def plain_text(name: str) -> str:
    """Text as part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def note(text: str | None) -> None:
    """Say something beside the result, on stderr."""
    if text:
        print(f"note: {text}", file=sys.stderr)


def console() -> Console:
    """Where tables are printed: wide where no terminal says how wide it is."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def progress_bar(total: int, unit: str) -> Any:
    """A bar on stderr where that is a terminal, of the first rank alone."""
    from tqdm import tqdm

    # disable=None: off where stderr is no terminal
    return tqdm(total=total, unit=f" {unit}", disable=None if first_rank() else True, leave=False)


@contextmanager
def progress_of_runs(epochs: int) -> Iterator[Callable[[str, int, dict[str, Any]], None]]:
    """A bar over the epochs of all runs; gives what is called after each."""
    with progress_bar(epochs, "epochs") as bar:

        def report(method: str, seed: int, line: dict[str, Any]) -> None:
            bar.update(1)
            bar.set_postfix(method=method, seed=seed)

        yield report
