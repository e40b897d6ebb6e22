"""dataprune select --task sft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import call, fails

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

from sft_models import save


@pytest.fixture(autouse=True)
def chats(empty_folder: None) -> None:
    rows = [{"prompt": "ab" * (i % 4 + 1), "completion": "c" * (i + 1)} for i in range(12)]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_method_writes_ids_ranking_subset_and_report(empty_folder: None) -> None:
    model = save(Path("model").absolute())
    given = ["select", "--task", "sft", "--data", "chats.jsonl", "--keep", "0.25"]
    for method, more in {"random": [], "length": ["--model", model], "ifd": ["--model", model],
                         "rds": ["--model", model, "--queries", "chats.jsonl"]}.items():  # fmt: skip
        result = call(*given, "--method", method, *more, "--batch-size", "4")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith(f"{method}: 3 of 12 rows; ") and "scoring: " in result.stdout
        out = Path("runs") / f"sft-chats.jsonl-{method}"
        assert len((out / "ids.txt").read_text().split()) == len((out / "subset.jsonl").read_text().splitlines()) == 3
        assert (out / "report.md").exists() and list(out.glob("ranking.*")) and "Traceback" not in result.stderr
    longest = [json.loads(line) for line in Path("runs/sft-chats.jsonl-length/subset.jsonl").read_text().splitlines()]
    assert [len(row["completion"]) for row in longest] == [10, 11, 12]


def test_json_and_skipping(empty_folder: None) -> None:
    Path("chats.jsonl").write_text(Path("chats.jsonl").read_text() + '{"prompt": "a", "completion": ""}\n{oops\n')
    given = ["select", "--task", "sft", "--data", "chats.jsonl", "--method", "random", "--keep", "5", "--out", "o"]
    fails(1, "chats.jsonl, line 13 has no answer", *given)
    result = call(*given, "--skip-broken", "--json")
    record = json.loads(result.stdout)
    assert (record["rows"], record["kept"], record["broken"]) == (12, 5, 2) and result.stderr == ""
    assert record == json.loads(Path("o/selection.json").read_text())


def test_options_of_the_two_tasks_do_not_mix() -> None:
    sft = ["select", "--task", "sft", "--method", "random", "--keep", "0.5"]
    fails(2, "--task sft chooses from --data", *sft)
    fails(2, "--scores, --balance: such options choose a coreset", *sft, "--scores", "s", "--balance", "class")
    fails(2, "unknown task of select 'stf'; did you mean 'sft'", "select", "--task", "stf", *sft[3:])
    fails(2, "--data, --skip-broken: such options belong to --task sft", "select", *sft[3:], "--data", "chats.jsonl",
          "--skip-broken")  # fmt: skip
    fails(2, "give --scores, of which a coreset is selected, or --task sft", "select", *sft[3:])
    fails(2, "--keep is the fraction kept, in (0, 1], got 1.5", *sft[:-1], "1.5", "--data", "chats.jsonl")
