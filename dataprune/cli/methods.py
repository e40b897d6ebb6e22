"""dataprune methods."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from .options import AsJson
from .output import console
from .shell import Debug, reported


def list_methods(json_: AsJson = False, debug: Debug = False) -> None:
    """List the pruning methods: what they keep, what they read, and their papers.

    Dynamic methods select anew in every epoch (`train`, `compare`); static methods select once, from a scoring run
    (`select`, `compare`).
    """
    with reported(debug):
        from .. import coresets
        from ..lab.report import tables
        from ..methods import METHODS, reads

        rows: list[dict[str, Any]] = []
        for name, recipe in METHODS.items():
            rule, source = (" ".join(part.split()) for part in _parts(recipe))
            defaults = {
                key: value
                for key, value in (recipe.__kwdefaults__ or {}).items()
                if key not in ("keep", "budget", "seed", "balance")
            }
            rows.append(_row(name, "dynamic", rule, reads(name), source, defaults))
        for name, method in coresets.METHODS.items():
            defaults = {} if method.statistic in (None, name) else {"statistic": method.statistic}
            rows.append(_row(name, "static", method.keeps, method.needs, method.source, defaults))
        if json_:
            print(json.dumps(rows))
        else:
            console().print(tables.methods(rows))


def _row(method: str, kind: str, keeps: str, read: str, source: str, defaults: dict[str, Any]) -> dict[str, Any]:
    return {"method": method, "kind": kind, "keeps": keeps, "reads": read, "source": source, "defaults": defaults}


def _parts(recipe: Callable[..., Any]) -> tuple[str, str]:
    """The first paragraph of a recipe's documentation, and its source."""
    rule, source = (inspect.getdoc(recipe) or "").split("Source:", 1)
    return rule.split("\n\n", 1)[0], source
