"""dataprune methods."""

from __future__ import annotations

import inspect

from .options import AsJson
from .output import console, print_json


def list_methods(json_: AsJson = False) -> None:
    """List the pruning methods: what they keep, what they read, and their papers.

    Dynamic methods select anew in every epoch (`train`, `compare`); static methods select once, from a scoring run
    (`select`, `compare`).
    """
    from .. import coresets, methods
    from ..lab.report import tables

    rows = []
    for name, recipe in methods.METHODS.items():
        text, source = (inspect.getdoc(recipe) or "").split("Source:", 1)
        shared = ("keep", "budget", "seed", "balance")
        defaults = {key: value for key, value in (recipe.__kwdefaults__ or {}).items() if key not in shared}
        rows.append((name, "dynamic", text.split("\n\n", 1)[0], methods.reads(name), source, defaults))
    for name, method in coresets.METHODS.items():
        defaults = {} if method.statistic in (None, name) else {"statistic": method.statistic}
        rows.append((name, "static", method.keeps, method.needs, method.source, defaults))
    keys = ("method", "kind", "keeps", "reads", "source", "defaults")
    lines = [{key: " ".join(v.split()) if isinstance(v, str) else v for key, v in zip(keys, row)} for row in rows]
    if json_:
        print_json(lines)
    else:
        console().print(tables.methods(lines))
