"""The typed errors of the library; what is merely a wrong value is a plain `ValueError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """Data that is missing, unreadable or not what was asked for."""


class CheckpointError(ValueError):
    """A checkpoint that is corrupt, of an unknown version, or of another run."""


class PlanError(RuntimeError):
    """What was trained is not what was planned."""


class UsageError(ValueError):
    """A wrong name or option; `suggest` builds the message for a name."""


def check_known(name: object, known: Iterable[str], *, what: str) -> None:
    """Raise UsageError with the message of `suggest` unless `name` is one of `known`."""
    if name not in (known := list(known)):
        raise UsageError(suggest(str(name), known, what=what))


@contextmanager
def needs(what: str, extra: str, error: type[Exception] = ImportError) -> Iterator[None]:
    """Context manager: where an import in it fails, raise `what`, as "Ray Train needs Ray", and how to install it."""
    try:
        yield
    except ImportError as cause:
        raise error(f"{what}: pip install -c constraints.txt -e '.[{extra}]'") from cause


def suggest(name: str, known: Iterable[str], *, what: str = "name") -> str:
    """The message of an unknown name: the nearest known one, then all of them.

    Args:
        name: what was asked for.
        known: the names there are.
        what: what the name names, such as "method".
    Returns:
        One line.
    Example:
        >>> suggest("epm", ["emp", "rs2"], what="method")
        "unknown method 'epm'; did you mean 'emp'? (known: emp, rs2)"
    """
    known = list(known)
    # compared in lower case, so that "EMP" finds "emp"
    spelled = {other.lower().replace("_", "-"): other for other in known}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), list(spelled), n=1, cutoff=0.5)
    hint = f"; did you mean {spelled[near[0]]!r}?" if near else ""
    return f"unknown {what} {name!r}{hint} (known: {', '.join(known)})"
