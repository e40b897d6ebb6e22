"""Atomic files: whole or not at all, and errors that say what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from dataprune import files
from dataprune.errors import CheckpointError


def test_a_write_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    files.write_json(str(path), {"a": [1, "é"]})
    assert files.read_json(path) == {"a": [1, "é"]} and path.read_text().endswith("}\n")
    files.write_text(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_former_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files.write_bytes(path, b"former")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"cannot write .*a: No space left on device; what was written before is intact"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"former" and len(list(tmp_path.iterdir())) == 1


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for number in range(3):
        files.append_json(path, {"number": number})
    assert files.read_json_lines(path) == [{"number": number} for number in range(3)]
    with pytest.raises(OSError, match="cannot write"):
        files.append_json(tmp_path / "none" / "lines.jsonl", {})


@pytest.mark.parametrize(("text", "message"), [("{", "is damaged"), ("[1]", "it holds a list")])
def test_a_damaged_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=f"{message}.*delete it, and run again"):
        files.read_json(path)
