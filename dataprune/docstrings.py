"""Arguments that several functions share: described once, and added to the docstring of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def add_arguments(function: Callable[..., Any], shared: Mapping[str, str]) -> None:
    """Add the parameters that a docstring leaves out to its `Args:`, so that `help` shows all of them.

    Args:
        function: its docstring is changed; one without `Args:` gets them before its first section.
        shared: parameter -> description; those that the function lacks or describes itself are left out.
    """
    text = function.__doc__ or ""  # python -OO drops docstrings
    own = text.partition("    Args:\n")[2]
    lines = "".join(
        f"        {name}: {shared[name]}\n"
        for name in inspect.signature(function).parameters
        if name in shared and f"        {name}: " not in own
    )
    sections = [f"    {title}:" for title in ("Returns", "Raises", "Example", "Source") if f"\n    {title}:" in text]
    if own:
        function.__doc__ = text.replace("    Args:\n", f"    Args:\n{lines}", 1)
    elif sections:
        function.__doc__ = text.replace(sections[0], f"    Args:\n{lines}{sections[0]}", 1)
