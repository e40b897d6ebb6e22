"""Files of chats, row by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataprune.errors import DataError
from dataprune.lab.finetuning import rows

ROW = {"prompt": "Hi", "completion": "Hö"}
LINE = json.dumps(ROW, ensure_ascii=False)


def test_lines_are_rows_but_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"\ufeff{LINE}\r\n\n{LINE}\u2028\n{LINE}".encode())
    found = list(rows.read(rows.find(path)))
    assert [row.position for row in found] == [0, 1, 2] and [row.value for row in found] == [ROW] * 3
    assert [row.place for row in found] == ["a.jsonl, line 1", "a.jsonl, line 3", "a.jsonl, line 4"]
    assert found[0].as_line() == LINE


def test_a_broken_row_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    broken = [
        "{oops",
        "[1]",
        json.dumps({"prompt": "Hi", "completion": ""}),
        '{"prompt": "\\ud8"}',
        json.dumps({"x": 1}),
    ]
    for line, message in zip(broken, ("is broken", "no JSON object but a list", "no answer", "is broken", "columns x")):
        path.write_text("\n".join([LINE, "", line, LINE]))
        with pytest.raises(DataError, match=f"a.jsonl, line 3 .*{message}.*--skip-broken"):
            rows.scan(rows.find(path))
    path.write_bytes(b"\n".join([LINE.encode(), *map(str.encode, broken), b"\xff", LINE.encode()]))
    scan = rows.scan(rows.find(path), skip_broken=True)
    assert scan.size == 8 and scan.broken == [1, 2, 3, 4, 5, 6] and list(scan.letters) == [2, *[0] * 6, 2]
    assert scan.usable.tolist() == [True, *[False] * 6, True] and scan.first_problem.startswith("a.jsonl, line 2 is")


def test_what_holds_no_chats_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "id": 1}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 1 has the columns text, id: a chat is in messages"):
        rows.scan([path], skip_broken=True)
    for text in (json.dumps([ROW]), json.dumps([ROW], indent=1)):
        path.write_text(text)
        with pytest.raises(DataError, match="is one JSON array, not JSON lines"):
            rows.scan([path])
    with pytest.raises(DataError, match=r"there is no .*b.jsonl"):
        rows.find(tmp_path / "b.jsonl")
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError, match=r"the suffix says the format, one of .parquet, .jsonl"):
        rows.find(tmp_path / "a.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds neither .parquet nor"):
        rows.find(tmp_path / "empty")


def test_parquet_files_of_a_folder_are_one_list(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    messages = [[{"role": "user", "content": str(i)}, {"role": "assistant", "content": "a" * i}] for i in range(1, 600)]
    for part, name in ((slice(0, 400), "train-0.parquet"), (slice(400, None), "train-1.parquet")):
        parquet.write_table(pa.table({"messages": messages[part]}), tmp_path / name, row_group_size=100)
    found = list(rows.read(rows.find(tmp_path)))
    assert [row.position for row in found] == list(range(599)) and found[400].place == "train-1.parquet, row 0"
    assert [json.loads(row.as_line())["messages"] for row in found] == messages
    assert list(rows.scan(rows.find(tmp_path)).letters) == list(range(1, 600))
    other = tmp_path / "other.parquet"
    parquet.write_table(pa.table({"text": ["x"]}), other)
    with pytest.raises(DataError, match=r"other.parquet has the columns text"):
        rows.scan([other])
    other.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"other.parquet cannot be read after row 0"):
        rows.scan([other])


def test_the_digest_is_of_the_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_text(LINE)
    two.write_text(LINE + "\n")
    assert rows.digest([one]) != rows.digest([two]) == rows.digest([two])
    assert rows.digest([one, two]) != rows.digest([two, one])
