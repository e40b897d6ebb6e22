"""Chats by the conventions of the hub and of TRL."""

from __future__ import annotations

from typing import Any

import pytest

from dataprune.errors import DataError
from dataprune.lab.finetuning import chats

TWO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TWO},
        {"messages": TWO, "prompt": "other", "completion": "other"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        {"conversations": TWO, "messages": None},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": part} for part in "Hi"]}, TWO[1]]},
        {"prompt": "Hi", "completion": "Ho"},
        {"prompt": TWO[:1], "completion": TWO[1:]},
        {"prompt": "Hi", "response": "Ho", "id": 3},
        {"instruction": "Hi", "output": "Ho"},
        {"instruction": "Hi", "input": "", "output": "Ho"},
        {"instruction": "Hi", "context": None, "response": "Ho"},
    ],
)  # fmt: skip
def test_conventions(row: dict[str, Any]) -> None:
    assert chats.known(row) and chats.parse(row) == TWO


def test_the_input_of_an_instruction_follows_it() -> None:
    assert chats.parse({"instruction": "Add.", "input": "1 + 1", "output": "2"})[0]["content"] == "Add.\n\n1 + 1"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "Hi"}, r"has the columns text: a chat is in messages, conversations, or one of"),
        ({"messages": TWO[:1]}, "has no answer"),
        ({"messages": [TWO[0], {"role": "assistant", "content": " "}]}, "has no answer"),
        ({"messages": [TWO[0], {"role": "assistant", "content": None}]}, "has no answer"),
        ({"prompt": "Hi", "completion": None}, "has no answer"),
        ({"prompt": " ", "completion": ""}, "has no text"),
        ({"messages": "Hi"}, "has 'messages' that is no list of messages"),
        ({"prompt": "\ud800", "completion": "Ho"}, "has letters in 'prompt' that are not Unicode"),
        ({"messages": []}, "has 'messages' that is no list of messages"),
        ({"messages": [{"content": "Hi"}]}, "has a message in 'messages' without a role"),
        ({"prompt": 3, "completion": "Ho"}, "has a int in 'prompt' where a text belongs"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "has content of the type image"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        chats.parse(row)


def test_queries_need_no_answer() -> None:
    assert chats.parse({"messages": TWO[:1]}, answered=False) == TWO[:1]


def test_the_last_answer_ends_the_chat() -> None:
    more = [*TWO, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}, TWO[0]]
    assert chats.last_answer(more) == (more[:3], "So.") and chats.answers(more) == ["Ho", "So."]
