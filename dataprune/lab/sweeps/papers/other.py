"""Experiments that are not comparisons: joint pruning, and scripts."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....errors import UsageError
from ..joint.grid import Grid
from .experiment import at_scale, settings_of

_OF_GRID = (
    "ratios",
    "amounts",
    "data_methods",
    "score_epochs",
    "finetune_epochs",
    "finetune_on",
    "finetune_lr",
    "scope",
)


def grid(name: str, content: Mapping[str, Any], scale: str) -> Grid:
    """The grid of joint data and network pruning in a file with `settings`, `seeds` and arguments of `Grid`."""
    own = at_scale(name, content, scale)
    given = {key: own[key] for key in _OF_GRID if key in own}
    return Grid(settings_of(own["settings"]), seeds=range(own.get("seeds", 1)), **given)


def script(name: str, content: Mapping[str, Any], scale: str, out: Path) -> None:
    """Call `main(scale, out)` of the file's `script`, which writes its results and figures.

    Raises:
        UsageError: if the script does not exist.
    """
    at_scale(name, content, scale)
    here = Path(__file__).parent
    folders = (here / "files", here.parents[3] / "experiments")
    path = next((folder / content["script"] for folder in folders if (folder / content["script"]).exists()), None)
    if path is None:
        raise UsageError(f"{name} is the script experiments/{content['script']}, which is not installed: use a clone")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    sys.path.insert(0, str(path.parent))  # scripts can import each other
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        module.main(scale, out)
    finally:
        sys.path.remove(str(path.parent))
