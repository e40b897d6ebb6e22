"""The tables of README and of the site are those of the committed results, and the results are small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tables

from dataprune.lab.report import pack, packed_tables

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "experiments/results").glob("*.json"))
FINDINGS = sorted((ROOT / "docs/findings").glob("*.md"))
MARKED = [page for page in tables.pages() if tables.MARKED.search(page.read_text(encoding="utf-8"))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", MARKED, ids=name)
def test_the_tables_of_a_page_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, f"{page} differs from the results: python experiments/tables.py"


@pytest.mark.parametrize("page", [page for page in tables.pages() if page.parent.name != "how-to"], ids=name)
def test_no_number_of_a_table_is_written_by_hand(page: Path) -> None:
    rest = tables.MARKED.sub("", page.read_text(encoding="utf-8"))
    cells = [line for line in rest.splitlines() if line.startswith("|")]
    shares = re.compile(r"(keep|at) 0\.\d|\d+ % pruned")  # of the data, which are settings
    assert [line for line in cells if re.search(r"\d\.\d|±|\d %", shares.sub("", line))] == []


def test_every_table_is_on_a_page() -> None:
    named = [name for page in MARKED for _, name, _ in tables.MARKED.findall(page.read_text(encoding="utf-8"))]
    assert sorted(named) == sorted(tables.TABLES)


def test_a_changed_number_is_noticed() -> None:
    text = (ROOT / "docs/findings/quarter.md").read_text(encoding="utf-8")
    wrong = text.replace("| 88.02", "| 88.03")
    assert wrong != text and tables.filled(wrong) == text


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_table_beside_a_file_is_that_of_the_file(path: Path) -> None:
    expected = packed_tables.markdown(path.stem, pack.read(path))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == expected, "python experiments/tables.py"


def test_figures_are_cited_and_citations_exist() -> None:
    cited = {
        name for page in FINDINGS for name in re.findall(r"\(figures/(\w+\.png)\)", page.read_text(encoding="utf-8"))
    }
    assert cited == {path.name for path in (ROOT / "docs/findings/figures").iterdir()}


def test_results_that_pages_name_exist() -> None:
    for page in FINDINGS:
        for name in re.findall(r"experiments/results/(\w+\.(?:json|md))", page.read_text(encoding="utf-8")):
            assert name.startswith("NAME") or (ROOT / "experiments/results" / name).exists(), f"{page}: {name}"


def test_results_are_small() -> None:
    files = [path for path in (ROOT / "experiments").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) < 200 and sum(path.stat().st_size for path in files) < 4_000_000
