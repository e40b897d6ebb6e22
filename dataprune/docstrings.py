"""Arguments, results and errors that several functions share: described once, added to the docstring of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_SECTIONS = ("Args", "Returns", "Raises", "Example", "Source")


def complete(
    function: Callable[..., Any], arguments: Mapping[str, str], *, returns: str = "", raises: str = ""
) -> None:
    """Add what a docstring leaves out, so that `help` shows all of it.

    Args:
        function: its docstring is changed.
        arguments: parameter -> description; those that the function lacks or describes itself are left out.
        returns: the result, where the docstring has none.
        raises: errors, before those of the docstring.
    """
    text = function.__doc__ or ""  # python -OO drops docstrings
    own = text.partition("    Args:\n")[2]
    names = [name for name in inspect.signature(function).parameters if name in arguments]
    text = _insert(text, "Args", [f"{name}: {arguments[name]}" for name in names if f"        {name}: " not in own])
    text = _insert(text, "Returns", [returns] if returns and "    Returns:\n" not in text else [])
    function.__doc__ = _insert(text, "Raises", [raises] if raises else [])


def _insert(text: str, title: str, entries: list[str]) -> str:
    """Put entries first in a section; one that is missing is made before the next that there is."""
    lines = "".join(f"        {entry}\n" for entry in entries)
    heading = f"    {title}:\n"
    if heading in text:
        return text.replace(heading, heading + lines, 1)
    following = [f"    {name}:" for name in _SECTIONS[_SECTIONS.index(title) :] if f"\n    {name}:" in text]
    return text.replace(following[0], heading + lines + following[0], 1) if lines and following else text
