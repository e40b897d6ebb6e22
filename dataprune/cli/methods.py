"""dataprune methods."""

from __future__ import annotations

import inspect
from typing import Any

from .options import AsJson
from .output import console, print_json


def list_methods(json_: AsJson = False) -> None:
    """List the pruning methods: what they keep, what they read, and their papers.

    Dynamic methods select anew in every epoch (`train`, `compare`); static methods select once, from a scoring run
    (`select`, `compare`).
    """
    from ..lab.report import tables

    rows = [*_dynamic_methods(), *_static_methods()]
    if json_:
        print_json(rows)
    else:
        console().print(tables.methods(rows))


def _dynamic_methods() -> list[dict[str, Any]]:
    """A row per recipe: the first paragraph of its documentation, and its source."""
    from ..methods import METHODS, reads

    rows = []
    for name, recipe in METHODS.items():
        text, source = (inspect.getdoc(recipe) or "").split("Source:", 1)
        keeps = text.split("\n\n", 1)[0]
        shared = ("keep", "budget", "seed", "balance")
        defaults = {key: value for key, value in (recipe.__kwdefaults__ or {}).items() if key not in shared}
        rows.append(_row(name, "dynamic", " ".join(keeps.split()), reads(name), " ".join(source.split()), defaults))
    return rows


def _static_methods() -> list[dict[str, Any]]:
    from ..coresets import METHODS

    rows = []
    for name, method in METHODS.items():
        defaults = {} if method.statistic in (None, name) else {"statistic": method.statistic}
        rows.append(_row(name, "static", method.keeps, method.needs, method.source, defaults))
    return rows


def _row(method: str, kind: str, keeps: str, read: str, source: str, defaults: dict[str, Any]) -> dict[str, Any]:
    return {"method": method, "kind": kind, "keeps": keeps, "reads": read, "source": source, "defaults": defaults}
