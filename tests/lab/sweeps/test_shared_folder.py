"""Two calls at once in one folder: both end, each with all of its rows, as if it had been alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dataprune
from dataprune import files

pytestmark = [pytest.mark.slow, pytest.mark.ddp]

ROOT = Path(dataprune.__file__).parents[1]
HERE = ["-m", "dataprune"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dataprune"]
JOINT = [
    *("joint", "--model", "mlp", "--train-size", "320", "--test-size", "60", "--epochs", "2", "--score-epochs", "2"),
    *("--ratios", "0.5", "--finetune-epochs", "1", "--amounts", "0.5", "--device", "cpu", "--seeds", "1", "--json"),
    *("--batch-size", "16"),
]
ADVISE = [
    *("advise", "--model", "mlp", "--epochs", "4", "--train-size", "600", "--pilot-size", "200", "--budget", "0.5"),
    *("--seeds", "2", "--device", "cpu", "--json"),
]


def at_once(folder: Path, *commands: list[str]) -> list[dict[str, Any]]:
    """Start the commands together; what each printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    calls = [
        subprocess.Popen(
            [sys.executable, *command, "--out", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder.parent,
        )
        for command in commands
    ]
    results = []
    try:
        for call in calls:
            out, err = call.communicate(timeout=240)
            assert call.returncode == 0, err
            results.append(json.loads(out))
    finally:
        for call in calls:
            call.kill()
    return results


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        pytest.param(HERE, ([], []), id="the same"),
        pytest.param(HERE, (["--data-method", "emp"], ["--data-method", "memory,emp"]), id="other methods"),
        pytest.param(TORCHRUN, ([], []), id="torchrun"),
    ],
)
def test_two_grids(launcher: list[str], options: tuple[list[str], list[str]], tmp_path: Path) -> None:
    commands = [[*launcher, *JOINT, *more] for more in options]
    shared = at_once(tmp_path / "shared", *commands)
    (alone,) = at_once(tmp_path / "alone", commands[-1])  # it has the methods of the first too
    assert shared[-1] == alone
    for part in ("cells", "training", "scoring"):
        assert [row for row in alone[part] if row in shared[0][part]] == shared[0][part]
    assert files.read_json(tmp_path / "shared/joint.json") in shared
    names = {f"{cell['arm']}{cell['ratio'] or ''}-{cell['amount']}" for result in shared for cell in result["cells"]}
    assert len(list((tmp_path / "shared").glob("cells/*/cell.json"))) == len(names)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """Without the seconds, which no two calls share."""
    result["cost"].pop("seconds")
    return result


def test_two_advices(tmp_path: Path) -> None:
    """One after the other they agree too; other candidates are another plan, which is refused in words."""
    command = [*HERE, *ADVISE, "--candidates", "loss"]
    one, other = map(timeless, at_once(tmp_path / "shared", command, command))
    assert one == other == timeless(files.read_json(tmp_path / "shared/advice.json"))
    with pytest.raises(AssertionError, match=r'holds another plan \(pilot.methods was \["short", "rs2", "loss"\], now'):
        at_once(tmp_path / "shared", [*HERE, *ADVISE, "--candidates", "memory"])
