"""Every message that docs/troubleshooting.md explains is one that the package has."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import dataprune

ROOT = Path(__file__).parents[2]


def explained() -> list[str]:
    """The first column of the tables of messages."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| message \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    return [
        line.split(" | ")[0].removeprefix("| ").replace(" (a warning)", "").removeprefix("the ranks ")
        for line in "".join(tables).splitlines()
    ]


def texts() -> str:
    """All strings of the package; what is formatted into one is an ellipsis."""
    strings = []
    for file in (ROOT / "dataprune").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                strings.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return "\n".join(" ".join(text.split()) for text in strings)


@pytest.fixture(scope="module")
def messages() -> str:
    return texts()


def pattern(message: str) -> str:
    """A row of a table as a regular expression; a row that does not begin with "…" is how the message begins."""
    parts = [re.escape(part.strip()) for part in message.split("…")]
    return ("" if message.startswith("…") else "^") + r"[^\n]*".join(part for part in parts if part)


def none_recorded() -> None:
    pruner = dataprune.loss(20, keep=0.5, epochs=4)
    loader = dataprune.prune_loader(DataLoader(TensorDataset(torch.zeros(20)), batch_size=10), pruner)
    for _ in range(2):
        list(loader)


def begun_at_epoch_one() -> None:
    dataprune.loss(20, keep=0.5, epochs=4).select(1)


PUT_TOGETHER: dict[str, Callable[[], None]] = {  # no single string of the package has them
    "… batches of epoch … were handed out … but none was recorded": none_recorded,
    "epoch … is pruned … but none was recorded": begun_at_epoch_one,
}


@pytest.mark.parametrize("message", [message for message in explained() if message not in PUT_TOGETHER])
def test_the_message_exists(message: str, messages: str) -> None:
    assert re.search(pattern(message), messages, flags=re.MULTILINE), message


@pytest.mark.parametrize("message", PUT_TOGETHER)
def test_the_warning_is_given(message: str) -> None:
    with pytest.warns(UserWarning, match=pattern(message)):
        PUT_TOGETHER[message]()
