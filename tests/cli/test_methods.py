"""dataprune methods."""

from __future__ import annotations

import json

from command_line import call

import dataprune
from dataprune import coresets


def test_methods_are_listed() -> None:
    rows = json.loads(call("methods", "--json").stdout)
    for kind, methods in (("dynamic", dataprune.METHODS), ("static", coresets.METHODS)):
        assert [row["method"] for row in rows if row["kind"] == kind] == list(methods)
    assert all(row["keeps"] and row["source"] for row in rows)
    read = {row["method"]: row["reads"] for row in rows}
    assert (read["rs2"], read["loss"], read["memory"]) == ("nothing", "losses", "probabilities")
    assert (read["aum"], read["k_center"]) == ("scores", "features")
    table = call("methods")
    assert table.exit_code == 0 and "arXiv:2408.16031" in table.stdout and table.stderr == ""
