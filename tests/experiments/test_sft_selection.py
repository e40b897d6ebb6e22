"""Fine-tuning on a chosen part of a mixture, at a scale of seconds."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("scipy")
pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")
pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; torch's number of threads is afterwards what it was."""
    threads, names = torch.get_num_threads(), ("emp_figure4", "prompts_simulation", "sft_selection")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        yield importlib.import_module(names[-1])
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
    torch.set_num_threads(threads)


def test_arms_train_what_they_say(
    script: ModuleType, encoder: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"POOL": 60, "TARGET": 12, "KEPT": 16, "QUERIES": 4, "TESTED": 20, "EPOCHS": 2, "RATES": (1e-4,)}
    for name, value in small.items():
        monkeypatch.setattr(script, name, value)
    assert os.environ["DATAPRUNE_DATA"]
    monkeypatch.setattr(sys, "argv", ["sft", "--model", encoder, "--seeds", "2", "--out", str(tmp_path)])
    script.main()
    record = json.loads((tmp_path / "sft_selection.json").read_text())
    assert len(record["points"]) == 2 * len(script.ARMS) + 1
    result = record["result"]
    assert result["target"]["of_target"] == 1 and result["target"]["kept"] == 12
    assert all(result[arm]["kept"] == 16 and result[arm]["trained"] == 32 for arm in ("random", "length", "rds"))
    assert result["rds"]["scoring"] == pytest.approx(64 / 3, abs=0.1) and result["random"]["scoring"] == 0
    assert result["random, equal FLOPs"]["kept"] == 26  # (2 * 16 + 64 / 3) / 2
    assert result["all, equal FLOPs"]["trained"] == 48  # of 53, in whole batches
    assert result["random"]["above_random"][0] == 0
    before = (tmp_path / "runs.jsonl").read_text()
    script.main()
    assert (tmp_path / "runs.jsonl").read_text() == before
