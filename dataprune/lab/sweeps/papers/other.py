"""Experiments that are no grid of comparisons: joint pruning, and scripts with a procedure of their own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ....errors import UsageError
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


def joint(
    name: str, content: Mapping[str, Any], scale: str, out: Path, report: Callable[[str, dict[str, Any]], None]
) -> dict[str, Any]:
    """Carry out, or go on with, a grid of joint data and network pruning; what `joint.json` holds.

    Args:
        name: of the experiment.
        content: what its file holds: `settings`, `seeds` and what `Grid` takes.
        scale: "smoke", "cpu" or "paper".
        out: its folder.
        report: called after every epoch with a run's name and its line.
    """
    from ..joint.grid import Grid
    from ..joint.run import joint as carry_out

    own = at_scale(name, content, scale)
    grid = Grid(
        settings_of(own["settings"]),
        seeds=range(own.get("seeds", 1)),
        **{key: own[key] for key in _OF_GRID if key in own},
    )
    return carry_out(grid, out, report=report)


def script(name: str, content: Mapping[str, Any], scale: str, out: Path) -> None:
    """Call `main(scale, out)` of the file's `script`, which writes its results and figures itself.

    Raises:
        UsageError: if the script is not there.
    """
    at_scale(name, content, scale)
    here = Path(__file__).parent
    folders = (here / "files", here.parents[3] / "experiments")
    path = next((folder / content["script"] for folder in folders if (folder / content["script"]).exists()), None)
    if path is None:
        raise UsageError(f"{name} is a script, experiments/{content['script']}, and that is not installed: use a clone")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    sys.path.insert(0, str(path.parent))  # one script may build on another
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        module.main(scale, out)
    finally:
        sys.path.remove(str(path.parent))
