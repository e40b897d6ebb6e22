"""Files of results: each is written whole or not at all, and a damaged one is refused with a remedy."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import socket
import uuid
from pathlib import Path
from typing import Any

from .errors import CheckpointError


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: a full disk or a kill leaves the former one as it was.

    Several processes may write one file at once: each has a temporary file of its own, and the last rename stands.

    Args:
        path: file to write; its folder must exist.
        content: all of it.
    Raises:
        OSError: if it cannot be written; the former file is intact.
    """
    path = Path(path)
    stem = f".{path.name[:100]}.{socket.gethostname()}"
    part = path.with_name(f"{stem}.{os.getpid()}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:  # fails where the name exists, as a link that leads elsewhere
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _remove_abandoned(path.parent, stem)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _remove_abandoned(folder: Path, stem: str) -> None:
    """Remove what writers of this machine that were killed have left."""
    for part in folder.glob(f"{glob.escape(stem)}.*.part"):
        try:
            os.kill(int(part.name.split(".")[-3]), 0)
        except ProcessLookupError:
            part.unlink(missing_ok=True)
        except (OSError, ValueError):
            continue  # another user's process, or no file of ours


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented JSON as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_json(path: str | os.PathLike[str], value: Any) -> None:
    """Append one line of JSON.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        with open(path, "a") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise unwritable(path, error) from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        value = json.loads(Path(path).read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it, and run again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged (it holds a {type(value).__name__}): delete it, and run again")
    return value


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the lines that `append_json` wrote."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def unwritable(path: str | os.PathLike[str], error: OSError) -> OSError:
    """The error for a file or folder that cannot be written, with its path and the cause."""
    return OSError(error.errno, f"cannot write {path}: {error.strerror}; what was written before is intact")
