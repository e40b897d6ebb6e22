"""The folder that a run leaves: atomic files, what machine it ran on, and checkpoints."""

from __future__ import annotations

import io
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import CheckpointError

SCHEMA = 1  # of a run's checkpoint


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a full disk or a kill leaves the former one as it was."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror}; what was written before is intact"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON, as `write`."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it, and run again") from error


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
            f"{path} has schema {schema}, this version reads schema {SCHEMA}: resume with the version that wrote it, or "
            "delete it to start again"
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
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dataprune": __version__,
        "system": f"{platform.system()} {platform.release()}",
    }
