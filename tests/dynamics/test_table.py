"""Scores on disk, for this library and for any other tool."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from dataprune import DataError, coresets, dynamics

SCORES = {"aum": torch.tensor([0.1, -2.5, torch.nan, 3e-20]), "forgetting": torch.tensor([3.0, 0.0, 1.0, 2.0])}
LABELS = torch.tensor([3, 0, 1, 1])


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("labels", [LABELS, None])
def test_round_trip(suffix: str, labels: torch.Tensor | None, tmp_path: Path) -> None:
    path = tmp_path / f"scores.{suffix}"
    dynamics.save_scores(path, SCORES, labels=labels, notes={"epochs": 3})
    table = dynamics.load_scores(path)
    assert list(table.scores) == list(SCORES) and [entry.name for entry in tmp_path.iterdir()] == [path.name]
    for name, column in SCORES.items():
        assert table.scores[name].dtype == torch.float32
        np.testing.assert_array_equal(table.scores[name].numpy(), column.numpy())
    assert (table.labels is None) == (labels is None) and (labels is None or table.labels.tolist() == labels.tolist())  # type: ignore[union-attr]
    assert table.notes == ({"epochs": 3} if suffix == "parquet" else {})


def test_the_csv_file_is_plain(tmp_path: Path) -> None:
    dynamics.save_scores(tmp_path / "a.csv", SCORES, labels=LABELS)
    assert (tmp_path / "a.csv").read_text().splitlines()[:4] == [
        "index,label,aum,forgetting", "0,3,0.1,3.0", "1,0,-2.5,0.0", "2,1,,1.0",
    ]  # fmt: skip


def test_other_tools_tables(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("index,name,label,score\n2,b,cat,0.5\n0,a,dog,1\n1,c,cat,\n")
    table = dynamics.load_scores(path)
    assert list(table.scores) == ["score"] and table.labels is None
    np.testing.assert_array_equal(table.scores["score"].numpy(), [1, np.nan, 0.5])
    path.write_text("score,other\n0.5,1\n0.25,2\n")
    assert dynamics.load_scores(path).scores["score"].tolist() == [0.5, 0.25]
    assert len(coresets.top(dynamics.load_scores(path).scores["other"], keep=0.5).index) == 1


TABLE = pandas.DataFrame({"aum": [0.5, -1.0, 3.0]})
ALIKE = {
    "sorted": TABLE.sort_values("aum"),
    "reversed": TABLE[::-1],  # a range, which parquet keeps without a column
    "position": TABLE.assign(position=range(3)).sort_values("aum").reset_index(drop=True),
    "index": TABLE.sort_values("aum").reset_index(),
    "named": TABLE.rename_axis("position").sort_values("aum"),
    "plain": TABLE,
}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("name", ALIKE)
def test_rows_that_pandas_moved_are_put_back(name: str, suffix: str, tmp_path: Path) -> None:
    path, table = tmp_path / f"scores.{suffix}", ALIKE[name]
    table = table if name not in ("index", "position") else table.sample(frac=1, random_state=0)
    table.to_csv(path, index=name not in ("index", "position")) if suffix == "csv" else table.to_parquet(
        path, index=False if name in ("index", "position") else None
    )
    loaded = dynamics.load_scores(path)
    assert loaded.scores["aum"].tolist() == [0.5, -1.0, 3.0] and list(loaded.scores) == ["aum"]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("table", [TABLE[TABLE["aum"] > 0], TABLE[1:], pandas.concat([TABLE, TABLE])])
def test_rows_that_pandas_left_out_are_missed(table: pandas.DataFrame, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scores.{suffix}"
    table.to_csv(path) if suffix == "csv" else table.to_parquet(path)
    with pytest.raises(DataError, match=r"must number all \d samples .*reset_index"):
        dynamics.load_scores(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",Unnamed: 0,aum\n0,2,1\n1,1,2\n2,0,3\n", "number the rows differently: rename"),
        ("position,aum\n5,0.5\n7,1\n", "column `position` must number"),
        ("0,-8.42528\n1,0.5\n", "no header: its first line must name the columns, got 0,-8.42528"),
        ("", "no rows"),
        ("index,score\n", "no rows"),
        ("index,score\n0,1\n2,1\n", "must number all 2 samples"),
        ("index,score\n0,1\n1\n", "line 3: 1 values where the header names 2"),
        ("index,label\n0,1\n1,1\n", "no column of scores"),
    ],
)
def test_what_is_no_table(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        dynamics.load_scores(path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="not a readable parquet"):
        dynamics.load_scores(tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="not a text file"):
        dynamics.load_scores(tmp_path / "b.csv")
    with pytest.raises(DataError, match="must end in"):
        dynamics.load_scores(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        dynamics.load_scores(tmp_path / "nowhere.parquet")
    with pytest.raises(ValueError, match="ends in"):
        dynamics.save_scores(tmp_path / "a.txt", SCORES)
    with pytest.raises(ValueError, match="lengths"):
        dynamics.save_scores(tmp_path / "a.csv", SCORES, labels=LABELS[:2])
    with pytest.raises(ValueError, match="lengths"):
        dynamics.save_scores(tmp_path / "a.csv", {})
    with pytest.raises(ValueError, match="another name"):
        dynamics.save_scores(tmp_path / "a.csv", {"label": SCORES["aum"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        dynamics.save_scores(tmp_path / "c.parquet", SCORES)
