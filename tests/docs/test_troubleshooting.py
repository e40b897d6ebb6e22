"""Every message that docs/troubleshooting.md explains is one that the package has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("message", explained())
def test_the_message_exists(message: str, messages: str) -> None:
    pattern = r"[^\n]*".join(re.escape(part.strip()) for part in message.split("…") if part.strip())
    assert re.search(pattern, messages), message
