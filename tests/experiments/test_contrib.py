"""The experiment on the methods whose claims are not confirmed here: it has them all, and runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import call
from measured import ROOT

from dataprune import contrib

FILE = ROOT / "experiments" / "contrib.yaml"
BASELINES = {"full", "short", "rs2", "memory"}


def test_arms_are_the_methods_of_contrib_and_baselines() -> None:
    arms = set(yaml.safe_load(FILE.read_text(encoding="utf-8"))["arms"])
    assert arms == BASELINES | {recipe.__name__ for recipe in contrib.RECIPES} | set(contrib.coresets.__all__)


@pytest.mark.slow
def test_the_smoke_scale_runs_and_claims_read_it(tmp_path: Path) -> None:
    out = tmp_path / "contrib"
    command = ["reproduce", FILE, "--scale", "smoke", "--out", out, "--cache", tmp_path / "cache"]
    assert call(*command).exit_code == 0
    lines = json.loads(call("claims", out, "--json").stdout)["claims"]
    measured = {line["method"]: line["measured"] for line in lines if line["measured"]}
    for name in ("orderdp", "dual_beta", "semdedup", "prototypes", "graph_cut"):
        steps = measured[name]["steps"]
        assert steps["clean"]["short"]["settings"] == steps["noisy"]["short"]["settings"] == 1, name
    assert measured["orderdp"]["compute"] == 1 and measured["semdedup"]["compute"] > 1.5
