"""Check values of a settings file against type annotations."""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Mapping
from typing import Any

from ....errors import UsageError


def check(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that does not match an annotation.

    Args:
        name: of the setting in the file.
        value: of the setting.
        kind: annotation: `Any`, plain types, and unions, sequences and mappings of them.
    Raises:
        UsageError: if it does not match.
    """
    if not _is(value, kind):
        raise UsageError(f"{name.replace('_', '-')} must be {_describe(kind)}, got {value!r}")


def _is(value: Any, kind: Any) -> bool:
    inner = typing.get_args(kind)
    match typing.get_origin(kind) or kind:
        case typing.Any:
            return True
        case types.UnionType:
            return any(_is(value, member) for member in inner)
        case collections.abc.Mapping:
            return isinstance(value, Mapping) and all(
                _is(key, inner[0]) and _is(item, inner[1]) for key, item in value.items()
            )
        case collections.abc.Sequence:
            return isinstance(value, list | tuple) and all(_is(item, inner[0]) for item in value)
        case plain if plain in (int, float):
            return isinstance(value, (int, plain)) and not isinstance(value, bool)
        case plain:
            return isinstance(value, plain)


def _describe(kind: Any) -> str:
    inner = typing.get_args(kind)
    match typing.get_origin(kind) or kind:
        case types.UnionType:
            return " or ".join(_describe(member) for member in inner)
        case collections.abc.Mapping:
            return "lines of name: value" + (f", each {_describe(inner[1])}" if inner[1] is not Any else "")
        case collections.abc.Sequence:
            return f"a list, each {_describe(inner[0])}"
        case plain:
            return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(plain, "nothing")
