"""Files of results: each is written whole or not at all, and a damaged one is refused with a remedy."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import CheckpointError


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
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


@contextlib.contextmanager
def undamaged(path: str | os.PathLike[str], remedy: str = "delete it, and run again") -> Iterator[None]:
    """Raise CheckpointError in place of what content that is not as it was written makes its readers raise."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): {remedy}") from error


def write_state(path: str | os.PathLike[str], state: Any) -> None:
    """Write tensors and plain values as `torch.save` does, whole or not at all, with a digest after them.

    `torch.load` reads the file as well; unlike `read_state` it does not check the digest.

    Raises:
        OSError: as `write_bytes`.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.write(_digest(buffer.getbuffer()))
    write_bytes(path, buffer.getbuffer())


def read_state(path: str | os.PathLike[str], advice: str) -> Any:
    """Read what `write_state` wrote, to the CPU. Files of `torch.save` itself are read unchecked.

    Args:
        path: of the file.
        advice: what to do where it is damaged, the end of the error's sentence.
    Raises:
        CheckpointError: if the file is damaged.
    """
    import torch

    content = Path(path).read_bytes()
    body, digest = memoryview(content)[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    try:
        if content[-_ZIP_END_BYTES:][:4] != b"PK\5\6" and _digest(body) != digest:
            raise ValueError("its digest is another")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}): {advice}") from error


_ZIP_END_BYTES = 22  # the record at the end of what torch.save writes
_DIGEST_BYTES = 72


def _digest(content: bytes | memoryview) -> bytes:
    return b"\nsha256:" + hashlib.sha256(content).hexdigest().encode()


def unwritable(path: str | os.PathLike[str], error: OSError) -> OSError:
    """The error for a file or folder that cannot be written, with its path and the cause."""
    return OSError(error.errno, f"cannot write {path}: {error.strerror}; what was written before is intact")
