"""Annotated shapes and dtypes hold in every example of the library's docstrings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_examples_fit_their_annotations() -> None:
    """The functions are instrumented when they are imported, so that this takes a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "dataprune"]
    command += ["--jaxtyping-packages=dataprune,typechecker.check", "--ignore=dataprune/lab", "--ignore=dataprune/cli"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_a_wrong_shape_raises() -> None:
    code = """
from jaxtyping import install_import_hook
with install_import_hook("dataprune", "typechecker.check"):
    import dataprune, torch
    from dataprune.coresets import replay
replay.weighted(dataprune.Selection.of(torch.tensor([0])), torch.ones(3, 1))
"""
    path = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert "TypeCheckError" in done.stderr and "scores" in done.stderr
