"""dataprune select, from scoring to training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import QUICK, call, fails

from dataprune import Selection, dynamics


def test_score_then_select_then_train(tmp_path: Path) -> None:
    scored = call("score", *QUICK[:6], "--lr", "0.05", "--statistics", "forgetting,el2n,aum", "--out", "s")
    assert scored.exit_code == 0 and "scores: s/scores." in scored.stdout, scored.output
    result = call("select", "--scores", "s", "--method", "ccs", "--keep", "0.3", "--option", "cutoff=0.1")
    assert result.exit_code == 0 and "ccs: 96 of 320 samples" in result.stdout and "kept per class" in result.stdout
    file = Path("s/ccs-keep0.3-seed0-cutoff0.1.safetensors")
    again = call("select", "--scores", "s", "--method", "k_center", "--keep", "0.3", "--json")
    assert json.loads(again.stdout)["samples"] == 96
    coreset = Selection.metadata(file)
    assert coreset["method"] == "ccs" and coreset["options"] == {"cutoff": 0.1} and coreset["size"] == 320
    assert sum(kept for _, kept, _ in coreset["retention"]) == 96
    trained = call("train", *QUICK[:6], "--selection", file, "--device", "cpu", "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["samples"] == 4 * 96 and json.loads(trained.stdout)["method"] == "ccs"
    longer = call("train", *QUICK[:6], "--selection", file, "--strategy", "P", "--json")
    assert json.loads(longer.stdout)["samples"] == 13 * 96  # 4 / 0.3 epochs
    small = call("train", *QUICK[:6], "--selection", file, "--small-batches", "--json")
    assert json.loads(small.stdout)["steps"] == json.loads(trained.stdout)["steps"]  # 30 % is not small
    fails(1, "made for another dataset", "train", *QUICK[:4], "--train-size", "321", "--selection", file)
    fails(1, "made for another dataset", "train", *QUICK[:6], "--label-noise", "0.01", "--selection", file)


def test_keep_may_be_a_number_of_samples() -> None:
    dynamics.save_scores("t.csv", {"aum": torch.rand(50)})
    for keep in ("7", "50"):
        chosen = call("select", "--scores", "t.csv", "--method", "aum", "--keep", keep, "--json")
        assert json.loads(chosen.stdout)["samples"] == int(keep), chosen.output
    fails(1, "keep asks for 51 samples, there are 50", "select", "--scores", "t.csv", "--method", "aum", "--keep", "51")
    fails(1, "got 1.5", "select", "--scores", "t.csv", "--method", "aum", "--keep", "1.5")
    trained = call("train", *QUICK[:6], "--method", "static_random", "--warmup", "0", "--keep", "64", "--json")
    assert json.loads(trained.stdout)["samples"] == 4 * 64, trained.output


def test_options_of_other_methods_are_refused(tmp_path: Path) -> None:
    dynamics.save_scores("t.csv", {"aum": torch.rand(50)})
    given = ["select", "--scores", "t.csv", "--method", "ccs", "--keep", "0.2"]
    assert "t.csv" not in call(*given, "--option", "ccs.cutoff=0.2").stdout
    assert Selection.metadata("ccs-keep0.2-seed0-cutoff0.2.safetensors")["options"] == {"cutoff": 0.2}
    fails(
        2,
        "--option craig.cutoff belongs to method craig; this call selects with ccs",
        *given,
        "--option",
        "craig.cutoff=0.2",
    )
    fails(2, "a value of the wrong type", *given, "--option", "cutoff=abc")
    fails(2, "unknown option of aum 'statistic'", *given[:3], "--method", "aum", "--keep", "0.2", "--statistic", "aum")
    fails(2, "--method top --statistic loss", *given[:3], "--method", "loss", "--keep", "0.2")
    fails(2, "is a folder", *given, "--out", tmp_path)
    fails(2, "ccs is a static method", "train", "--method", "ccs")
    call(*given)
    fails(
        2,
        "leave it out with --selection",
        "train",
        "--selection",
        "ccs-keep0.2-seed0.safetensors",
        "--option",
        "beta=2",
    )
    fails(1, "made for 50 samples", "train", *QUICK[:6], "--selection", "ccs-keep0.2-seed0.safetensors")


def test_the_suffix_of_out_names_the_format(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    dynamics.save_scores("t.csv", {"aum": torch.rand(50)}, labels=torch.arange(50) % 5)
    given = ["select", "--scores", "t.csv", "--method", "aum", "--keep", "0.2", "--json", "--out"]
    records = {suffix: json.loads(call(*given, f"out/x{suffix}").stdout) for suffix in
               (".safetensors", ".csv", ".json", ".txt", ".parquet")}  # fmt: skip
    expected = Selection.load("out/x.safetensors")
    index = expected.index.tolist()
    for suffix, record in records.items():
        assert record.pop("path") == f"out/x{suffix}" and record["samples"] == len(index) == 10
        assert record["retention"] == records[".safetensors"]["retention"] and record["method"] == "aum"
    assert Path("out/x.csv").read_text().splitlines() == ["index,weight", *(f"{position},1.0" for position in index)]
    assert Path("out/x.txt").read_text().split() == [str(position) for position in index]
    stored = json.loads(Path("out/x.json").read_text())
    assert stored["index"] == index and stored["weight"] == [1.0] * 10 and stored["keep"] == 0.2
    table = parquet.read_table("out/x.parquet")
    assert table["index"].to_pylist() == index and table["weight"].to_pylist() == [1.0] * 10
    assert json.loads(table.schema.metadata[b"dataprune"])["method"] == "aum"
    known = ".safetensors, .csv, .json, .parquet, .txt"
    fails(2, f"the suffix says the format, one of {known}; got '.yaml'", *given, "x.yaml")
    fails(2, f"one of {known}; got ''", *given, "x")
