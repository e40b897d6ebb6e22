"""The report of a choice: what was kept, what scoring cost, and examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .chats import Chat, last_answer
from .rows import Row

_EXAMPLES = 3  # of each kind
_LETTERS = 300  # of a prompt or an answer


class Example(NamedTuple):
    """A row that the report shows."""

    kind: str  # "kept first", "just dropped", "dropped last"
    rank: int
    place: str
    score: float
    chat: Chat


def examples(
    chats: Iterable[tuple[Row, Chat | None, str]], order: np.ndarray, kept: int, scores: np.ndarray
) -> list[Example]:
    """The first rows that are kept, the first that are not, and the last; found in one more pass over the files."""
    kinds = {"Kept first": range(min(_EXAMPLES, kept)), "Just dropped": range(kept, min(kept + _EXAMPLES, len(order)))}
    kinds["Dropped last"] = range(max(kept + _EXAMPLES, len(order) - _EXAMPLES), len(order))
    wanted = {int(order[rank]): (kind, rank + 1) for kind, ranks in kinds.items() for rank in ranks}
    picked = []
    for row, chat, _ in chats:
        if row.position in wanted and chat is not None:
            kind, rank = wanted[row.position]
            picked.append(Example(kind, rank, row.place, float(scores[row.position]), chat))
    return sorted(picked, key=lambda example: example.rank)


def lines(result: Mapping[str, Any]) -> list[str]:
    """What is printed."""
    ratio = result["letters_of_kept_answers"] / max(result["letters_of_answers"], 1e-9)
    return [
        f"{result['method']}: {result['kept']:,} of {result['rows']:,} rows; their answers are {ratio:.2f} times as "
        "long as the mean answer",
        cost(result),
        *(f"note: {note}" for note in result["notes"]),
        f"subset: {result['files']['subset']}, report: {result['files']['report']}",
    ]


def cost(result: Mapping[str, Any]) -> str:
    """What scoring cost, in a sentence."""
    if not result["forwarded_rows"]:
        return "scoring: no row was forwarded through a model"
    spent, kept = result["scoring_compute"], result["kept"]
    return (
        f"scoring: {result['forwarded_rows']:,} rows ({result['forwarded_tokens']:,} tokens) forwarded in "
        f"{result['seconds']:,.1f} s, as much compute as training on {spent:,.0f} rows: {result['scoring_share']:.2f} "
        f"epochs of all rows, {spent / kept:.2f} of those kept"
    )


def markdown(result: Mapping[str, Any], shown: Iterable[Example]) -> str:
    """The report; texts of the data are indented, so that none of their markup counts."""
    first, compute, *rest = lines(result)
    text = [f"# What to fine-tune on: {result['data']}", "", f"Method {first}.", ""]
    text += [f"{compute[0].upper()}{compute[1:]}. A row that is only forwarded counts a third of one that is trained."]
    text += ["The unit is a row through the model that scores; a smaller one costs less beside the one you train.", ""]
    text += [f"- {note.removeprefix('note: ')}" for note in rest[:-1]] + [""] * bool(rest[:-1])
    text += ["| | lowest | median | highest |", "| --- | --- | --- | --- |"]
    for name, key in (("score, all rows", "score_of_all"), ("score, rows kept", "score_of_kept")):
        cells = [f"{value:.4g}" for value in result[key] if value is not None]
        text.append(f"| {name} | {' | '.join(cells)} |" if len(cells) == 3 else f"| {name} | – | – | – |")
    kind = ""
    for example in shown:
        if example.kind != kind:
            kind = example.kind
            text += ["", f"## {kind}"]
        prompt, answer = last_answer(example.chat)
        score = "none" if example.score != example.score else f"{example.score:.4g}"
        text += ["", f"Rank {example.rank}, {example.place}, score {score}:", ""]
        text += _indented(" / ".join(message["content"] for message in prompt) or "(no prompt)")
        text += ["    ->", *_indented(answer)]
    return "\n".join(text) + "\n"


def _indented(text: str) -> list[str]:
    short = text if len(text) <= _LETTERS else f"{text[:_LETTERS].rstrip()} ... ({len(text):,} letters)"
    return [f"    {line}" for line in short.splitlines() if line.strip()]
