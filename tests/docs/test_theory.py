"""Every claim on the theory pages has the same three parts; their code runs in test_pages.py."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs/theory"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.stem != "index")
PARTS = ("**The paper says**", "**What holds.**", "**Measured here.**")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_claim_is_told_in_three_parts(page: Path) -> None:
    head, *claims = page.read_text(encoding="utf-8").split("\n## ")
    assert "**In short:**" in head and claims
    for claim in claims:
        places = [claim.find(part) for part in PARTS]
        assert 0 < places[0] < places[1] < places[2], claim.splitlines()[0]
        assert all(claim.count(part) == 1 for part in PARTS), claim.splitlines()[0]


def test_the_index_has_every_page() -> None:
    text = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert [page.stem for page in PAGES if f"({page.name})" not in text] == []
