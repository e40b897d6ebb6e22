"""The pruner's state in a Trainer's checkpoint folders, and which of these were written whole."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

from ... import files
from ...errors import CheckpointError

STATE = "pruner.pt"  # in a checkpoint's folder
LAST = "trainer_state.json"  # what the Trainer writes last


def save(folder: str, state: dict[str, Any]) -> None:
    """Begin a checkpoint with the pruner's state; an older one in the folder is whole no longer."""
    os.makedirs(folder, exist_ok=True)
    Path(folder, LAST).unlink(missing_ok=True)
    files.write_state(Path(folder, STATE), state)


def load(folder: str) -> dict[str, Any]:
    """The state that `save` wrote.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    path = Path(folder, STATE)
    if not path.is_file():
        raise CheckpointError(
            f"no {path}: the checkpoint was not saved by a PrunedTrainer; resume it with the Trainer that saved it"
        )
    return files.read_state(path, "resume from an older checkpoint, or start again")


def newest(folder: str) -> str | None:
    """The newest checkpoint in a Trainer's folder that was written whole; None where there is no checkpoint.

    Raises:
        CheckpointError: if none of them is whole.
    """
    numbers = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(folder).glob("checkpoint-*")}
    checkpoints = sorted((int(match[1]), path) for path, match in numbers.items() if match and path.is_dir())
    for _, path in reversed(checkpoints):
        if _is_whole(path):
            if path != checkpoints[-1][1]:
                warnings.warn(
                    f"{checkpoints[-1][1]} was not written to its end: training resumes from {path.name}",
                    UserWarning,
                    stacklevel=3,
                )
            return str(path)
    if checkpoints:
        raise CheckpointError(f"no checkpoint in {folder} was written to its end: start again, without resuming")
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        files.read_json(checkpoint / LAST)
    except (OSError, CheckpointError):
        return False
    return True
