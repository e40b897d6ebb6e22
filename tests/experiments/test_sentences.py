"""The sentences of README and of the site that state results have the numbers of the committed results."""

from __future__ import annotations

import re

import pytest
import sentences
import tables
from measured import ROOT

LOST = "from runs whose records were not kept"
EARLIER = "measured before this library existed"
PAPER = "the paper prints it"
BENCHMARK = "measured by benchmarks/"
# Numbers of prose that no file in experiments/results has, by page, and why.
UNCHECKED = {
    "docs/findings/budgets.md": {"it has 17.3": LOST, "half the learning rate gives 12.6": LOST},
    "docs/findings/contrastive.md": {
        "linear classifier 74 %, neighbours 65 %, of an untrained encoder 74 and 71 %": LOST,
        "came to 12 % with the paper's views and 12 to 13 % untrained": LOST,
    },
    "docs/findings/emp.md": {"± 0.04": PAPER},
    "docs/findings/glue.md": {
        'always saying "entailment" has 52.7': "the share of a label in the data",
        "(94 % of the training set)": LOST,
    },
    "docs/findings/joint-pruning.md": {"(low − base −0.2 to +2.9 points, high − base +0.4 to +2.4)": PAPER},
    "docs/findings/static-coresets.md": {
        "174 to 413 times the mean (the median sample weighs 0.002)": "weights of coresets, which are not committed"
    },
    "docs/methods/README.md": {
        "ResNet-18 100 to 105 % (intervals 94 to 114)": BENCHMARK,
        "99 to 102 % (97 to 103)": BENCHMARK,
        "at 106 and 101 %": BENCHMARK,
        "take 0.1 and 2 % of an epoch": BENCHMARK,
        "1.8 points, 84.2 against 86.0": EARLIER,
        "reached 84.2 % with a cosine over epochs and 86.6 %": EARLIER,
    },
    "docs/methods/emp_contrastive.md": {"at 1.4 times its size, autograd of the plain formula at 3.4": BENCHMARK},
    "docs/methods/rs2.md": {"84.2 % with a last step on 8 samples, 86.0 % without it": EARLIER},
    "docs/start/from-infobatch.md": {"that loss was gone: 17.3 %": LOST},
    "docs/start/which-method.md": {"cost 2.4 points": EARLIER, "cost 1.8 points": EARLIER},
}
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
    """Where numbers stand that neither a sentence nor UNCHECKED accounts for."""
    for sentence in sorted(map(sentences.plain, sentences.PAGES.get(page, lambda: [])()), key=len, reverse=True):
        text = text.replace(sentence, "…")
    for snippet in UNCHECKED.get(page, {}):
        assert snippet in text, f"{page}: no longer says {snippet!r}"
        text = text.replace(snippet, "…")
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
