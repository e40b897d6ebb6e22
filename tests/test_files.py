"""Atomic files: whole or not at all, and errors that say what to do."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

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


def _write(path: str, text: str, times: int) -> None:
    for _ in range(times):
        files.write_text(path, text)


def test_several_writers_and_a_reader_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    texts = ["a" * 200_000, "b" * 300_000]
    files.write_text(path, texts[0])
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(path), text, 100)) for text in texts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process with threads
        for writer in writers:
            writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "a", "x")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    ended = multiprocessing.get_context("fork").Process(target=_write, args=(str(tmp_path / "a"), "x", 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ended.start()
    ended.join()
    host = socket.gethostname()
    for name in (f".a.{host}.{ended.pid}.0f.part", f".a.{host}.{os.getpid()}.0f.part", ".a.elsewhere.1.0f.part"):
        (tmp_path / name).write_text("half")
    files.write_text(tmp_path / "a", "whole")
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"a", f".a.{host}.{os.getpid()}.0f.part", ".a.elsewhere.1.0f.part"}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "elsewhere").read_text() == "kept" and (tmp_path / "a").read_text() == "new"


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


def test_a_state_is_read_as_written_and_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    files.write_state(path, {"score": torch.arange(5.0), "epoch": 3})
    state = files.read_state(path, "start again")
    assert torch.equal(state["score"], torch.arange(5.0)) and state["epoch"] == 3
    assert torch.load(path, weights_only=True)["epoch"] == 3
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"state.pt is damaged \(\w+\): start again"):
            files.read_state(path, "start again")
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            files.read_state(path, "start again")


def test_a_state_of_torch_itself_is_read(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "state.pt")
    assert files.read_state(tmp_path / "state.pt", "start again") == {"epoch": 3}
