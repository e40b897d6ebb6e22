"""Calls of the command line, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dataprune

QUICK = [
    *("--model", "mlp", "--epochs", "4", "--train-size", "320", "--keep", "0.3", "--lr", "0.05", "--device", "cpu"),
    *("--data", "digits"),
]


def call(*arguments: Any) -> Any:
    """Run a command in this process."""
    from typer.testing import CliRunner

    from dataprune.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments: Any, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    root = Path(dataprune.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **more)


def fails(code: int, message: str, *arguments: Any) -> None:
    """One line on stderr that holds `message`, nothing on stdout, and the exit code."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], result.stderr
