"""dataprune methods."""

from __future__ import annotations

import inspect
import json
from typing import Any

from .options import AsJson
from .output import console
from .shell import Debug, reported


def list_methods(json_: AsJson = False, debug: Debug = False) -> None:
    """List the pruning methods, what they keep, and where they come from.

    Dynamic ones select anew in every epoch (`train`, `compare`); static ones once, from a scoring run (`select`,
    `compare`).
    """
    with reported(debug):
        from .. import coresets
        from ..lab.report import tables
        from ..methods import METHODS

        rows = []
        own: dict[str, Any]
        for name, recipe in METHODS.items():
            rule, source = (inspect.getdoc(recipe) or "").split("Source:", 1)
            given = recipe.__kwdefaults__ or {}
            own = {key: value for key, value in given.items() if key not in ("keep", "budget", "seed", "balance")}
            keeps = " ".join(rule.split("\n\n", 1)[0].split())
            source = " ".join(source.split())
            rows.append({"method": name, "kind": "dynamic", "keeps": keeps, "source": source, "defaults": own})
        for name, method in coresets.METHODS.items():
            own = {} if method.statistic in (None, name) else {"statistic": method.statistic}
            row = {"method": name, "kind": "static", "keeps": method.keeps, "source": method.source, "defaults": own}
            rows.append(row)
        if json_:
            print(json.dumps(rows))
        else:
            console().print(tables.methods(rows))
