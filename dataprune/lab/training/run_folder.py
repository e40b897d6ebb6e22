"""The folder that a run leaves: atomic files, what machine it ran on, and checkpoints."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ... import __version__, distributed, files
from ...errors import CheckpointError, UsageError
from .settings import Settings

append, read_json, read_lines = files.append_json, files.read_json, files.read_json_lines
write, write_json = files.write_bytes, files.write_json

SCHEMA = 2  # of a run's checkpoint
RECORDED = {  # what others read in a run's record
    "method", "seed", "accuracy", "val_accuracy", "samples", "steps", "seconds", "select_seconds", "reached_keep",
}  # fmt: skip


def check_folder(out: Path) -> None:
    """Raise UsageError where what should be a folder of results is a file."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: choose a folder with --out")


def folder(out: Path) -> None:
    """Make a folder of results, unless it is there.

    Raises:
        UsageError: if a file has that name.
        OSError: if it cannot be made.
    """
    check_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder {out}: {error.strerror}; choose another --out") from error


def finished(out: Path, settings: Settings) -> dict[str, Any] | None:
    """The record of a run that is done, None where it is not.

    Raises:
        UsageError: if the folder is none, or that of another run.
        CheckpointError: if its files are damaged.
    """
    check_folder(out)
    if (out / "config.json").exists():
        other = settings.differs(read_json(out / "config.json"))
        if other:
            raise UsageError(
                f"{out} holds a run with other settings ({', '.join(other)}): choose another --out, or delete it"
            )
    path = out / "metrics.json"
    if not path.exists():
        return None
    record = read_json(path)
    missing = RECORDED - record.keys()
    if missing:
        raise CheckpointError(f"{path} is damaged (no {min(missing)}): delete it, and run again")
    if "scores" in record and not (out / record["scores"]).exists():
        raise CheckpointError(f"{out} has lost its {record['scores']}: delete the folder, and score again")
    return record


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold a run's folder, so that no other process trains in it; the first rank does it for all.

    Whoever comes second waits until the first is done or dead, and says so in a warning. Where the file system has no
    locks, nothing is held.

    Raises:
        OSError: if the folder cannot be written.
    """
    if distributed.rank() != 0:
        yield
        return
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        warnings.warn(f"another process trains in {out}: waiting for it to end", stacklevel=3)
        lock.acquire()
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise files.unwritable(out, error) from error
    try:
        yield
        # who waited for this lock finds a finished run, and so need not know that its name is gone
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state, as `write`."""
    buffer = io.BytesIO()
    torch.save({"schema": SCHEMA, **state}, buffer)
    write(path, buffer.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote.

    Raises:
        CheckpointError: if the file is damaged, or of another schema.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        schema = state["schema"]
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}): delete it to start this run from its beginning"
        ) from error
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {schema}, this version reads schema {SCHEMA}: resume with the version that wrote it, "
            "or delete it to start again"
        )
    return state


def machine(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for a run's record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "hardware": name,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "process": os.getpid(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dataprune": __version__,
        "system": f"{platform.system()} {platform.release()}",
    }
