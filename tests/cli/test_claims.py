"""dataprune claims."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import call, fails

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_a_line_for_each_method_from_packed_results() -> None:
    done = call("claims", RESULTS / "digits.json", "--json")
    assert done.exit_code == 0
    lines = {line["method"]: line for line in json.loads(done.stdout)["claims"]}
    assert lines["memory"]["measured"]["steps"]["clean"]["short"]["seeds"] == [3, 3]
    assert lines["semdedup"]["measured"] is None and "LAION" in lines["semdedup"]["claim"]
    assert set(lines["memory"]["measured"]) == {"steps", "flops", "compute", "seconds"}


def test_the_table_and_its_markdown() -> None:
    printed = call("claims", RESULTS / "digits.json")
    assert printed.exit_code == 0 and "Claims and measurements" in printed.stdout and "infobatch" in printed.stdout
    text = call("claims", RESULTS / "digits.json", "--md")
    assert text.exit_code == 0
    lines = text.stdout.splitlines()
    assert lines[0].startswith("| method | claimed | others report |") and lines[1].startswith("| --- |")
    assert any(line.startswith("| `infobatch` | 40 % of the cost saved without loss") for line in lines)


def test_without_results_nothing_is_measured() -> None:
    text = call("claims", "--md").stdout
    assert text.count("not measured") == 6 * (len(text.splitlines()) - 2)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    fails(2, "--md and --json are two forms of one table", "claims", "--md", "--json")
    fails(2, "is no folder", "claims", tmp_path / "nothing")
    fails(2, "holds no results", "claims", tmp_path)
