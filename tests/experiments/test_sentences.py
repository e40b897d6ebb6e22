"""The sentences of README and of the site that state results have the numbers of the committed results."""

from __future__ import annotations

import re

import pytest
import sentences
import tables
from measured import ROOT

SETTINGS = re.compile(
    r"`[^`]*`"  # code
    r"|\]\([^)]*\)"  # where a link goes
    r"|arXiv:\S+|[Ss]ections? [\d.]+|Python 3\.\d+ to 3\.\d+|Apache-2\.0|version [\d.]+|cleanlab [\d.]+"
    r"|20 % (?:random|wrong|noise|of the)|\d\d % pruned|\d\d or \d\d %|(?:at|for) 5 %|[\d.]+ % of the data"
    r"|[Mm]eans? ± |learning rate is [\d.]+|[Cc]hance is 1 %|far below 100 %|0\.875 · T|0\.125"
    r"|(?<![\d.,−+])0\.(?:05|1|2|3|4|5|7|8|9)(?=\]|[,:;.)]*(?: (?!points|above|below|±|%)|$))"  # shares of the data
)
RESULT = re.compile(r"\d\.\d|\d %|\d points|±")


def prose(page: str) -> str:
    """A page without its generated tables, code blocks and comments."""
    text = tables.MARKED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    return sentences.plain(text)


def unexplained(page: str, text: str) -> list[str]:
    """Where numbers stand that no sentence accounts for."""
    for sentence in sorted(map(sentences.plain, sentences.PAGES.get(page, lambda: [])()), key=len, reverse=True):
        text = text.replace(sentence, "…")
    rest = SETTINGS.sub("…", text)
    return [rest[max(0, match.start() - 60) : match.end() + 30] for match in RESULT.finditer(rest)]


@pytest.mark.parametrize("page", sentences.PAGES)
def test_a_page_says_what_the_results_say(page: str) -> None:
    lacking = [sentence for sentence in map(sentences.plain, sentences.PAGES[page]()) if sentence not in prose(page)]
    assert not lacking, f"{page} says otherwise"


ALL = {*sentences.PAGES, *(path.relative_to(ROOT).as_posix() for path in tables.pages())}
PAGES = sorted(page for page in ALL if not page.startswith("docs/how-to"))  # those print benchmarks and examples


@pytest.mark.parametrize("page", PAGES)
def test_every_number_has_a_source(page: str) -> None:
    assert not unexplained(page, prose(page)), f"{page}: add the sentence to experiments/sentences.py"


def test_a_changed_number_is_noticed() -> None:
    page = "docs/findings/label-noise.md"
    text = prose(page)
    wrong = text.replace("it is 0.8 and 0.5 points above `short`", "it is 1.8 and 0.5 points above `short`")
    assert wrong != text and unexplained(page, wrong)
