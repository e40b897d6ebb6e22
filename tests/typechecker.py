"""Type checker for `pytest --jaxtyping-packages=dataprune,typechecker.check`: shapes and types at every call.

Tests of rejected input pass what annotations forbid, and fail under it; the examples of the docstrings must pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a valid float


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments and result of a function; protocols cannot be checked at run time."""
    try:
        return _checked(function)
    except BeartypeDecorHintPep3119Exception:
        return function
