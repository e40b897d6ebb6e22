"""The example and the page run as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "lightning", reason="the extra lightning is not installed: pip install -c constraints.txt -e '.[lightning]'"
)

from integrations.lightning_tiny import every_step, quiet, trainer

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        # Lightning uses what torch 2.13 warns of
        [sys.executable, "-W", "error", "-W", "ignore:`isinstance(treespec:FutureWarning",
         str(ROOT / "examples" / "lightning_loop.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_example_resumes(tmp_path: Path) -> None:
    first = run("--epochs", "7", cwd=tmp_path)
    assert "on 3584 samples trained in 112 steps" in first
    assert run("--epochs", "7", "--resume", cwd=tmp_path) == first  # from step 110, in the middle of an epoch


@pytest.mark.slow
@pytest.mark.ddp
def test_example_with_two_processes(tmp_path: Path) -> None:
    assert "on 3200 samples trained in 50 steps" in run("--epochs", "6", "--devices", "2", cwd=tmp_path)


def test_the_programs_of_the_page_end_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "how-to" / "lightning.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    namespace: dict = {"__name__": "page"}
    with quiet():
        exec("\n".join(code), namespace)
        model = namespace["model"]
        assert model.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
        # the second program resumes
        saves, lengths = every_step(tmp_path), []
        for resume in (None, tmp_path / "57.ckpt"):
            pruner = namespace["dataprune"].infobatch(1000, keep=0.6, epochs=10)
            module = namespace["Follows"](pruner)
            callbacks = [namespace["PruneCallback"](pruner), *([] if resume else [saves])]
            running = trainer(pruner, callbacks, enable_checkpointing=resume is None)
            running.fit(module, namespace["dataprune"].prune_loader(namespace["loader"], pruner), ckpt_path=resume)
            assert module.progress.done == pytest.approx(1)
            lengths.append((running.global_step, module.progress.state_dict()))
        assert lengths[0][0] < 200
