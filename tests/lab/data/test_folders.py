"""What is a class, and what is an image, in folders and parquet files that others have made."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("PIL", reason="images need Pillow: pip install -c constraints.txt -e '.[cli]'")

import pyarrow as arrow
import pyarrow.parquet as parquet
from PIL import Image

from dataprune.errors import DataError
from dataprune.lab.data.named import load


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, labels: Sequence[int]) -> None:
    images = [{"bytes": png(20 * position), "path": None} for position in range(len(labels))]
    parquet.write_table(arrow.table({"image": images, "label": list(labels)}), path)


@pytest.mark.parametrize("last", [10, 1_000_000, 2_147_483_648, 2**62])
def test_classes_are_the_ids_that_occur(last: int, tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0, 3, last, 3, 0, 0, 3, last])
    write(tmp_path / "test.parquet", [last, 3])
    tracemalloc.start()
    data = load(str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    assert data.classes == ["0", "3", str(last)]
    assert data.train.labels.tolist() == [0, 1, 2, 1, 0, 0, 1, 2] and data.test.labels.tolist() == [2, 1]
    for other in (1, last + 1):
        write(tmp_path / "test.parquet", [last, other])
        with pytest.raises(DataError, match="test has labels that the training split lacks"):
            load(str(tmp_path))


def test_ids_within_the_samples_stay_as_they_are(tmp_path: Path) -> None:
    """Of labels from 1 on, or with a class that only another file has, no position moves."""
    write(tmp_path / "train.parquet", [1, 2, 4, 4, 2, 1])
    write(tmp_path / "test.parquet", [3, 1])
    data = load(str(tmp_path))
    assert data.classes == ["0", "1", "2", "3", "4"] and data.train.labels.tolist() == [1, 2, 4, 4, 2, 1]
    assert data.test.labels.tolist() == [3, 1]


def test_a_negative_id_beside_a_large_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [-1, 5, 900, 0, 0])
    with pytest.raises(DataError, match="labels from -1 to 900"):
        load(str(tmp_path))


def image_folder(root: Path, names: Sequence[str] = ("cat", "dog")) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for position in range(5):
            (root / name / f"{position}.png").write_bytes(png(100 * number + position))
    return root


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    plain, other = image_folder(tmp_path / "plain"), image_folder(tmp_path / "other")
    for path in ("cat/.ipynb_checkpoints/0-checkpoint.png", "dog/.Trash/a/9.png", ".cache/1.png", "cat/._0.png"):
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_bytes(png(7))
    first, second = load(str(plain)), load(str(other))
    assert first.classes == second.classes and first.train.labels.tolist() == second.train.labels.tolist()
    assert (len(second.train), len(second.test)) == (8, 2)


@pytest.mark.parametrize("content", [None, "notes.txt", ".ipynb_checkpoints/0.png"])
def test_a_folder_without_images_is_no_class(content: str | None, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "train")
    (root / "bird").mkdir()
    if content:
        (root / "bird" / content).parent.mkdir(exist_ok=True)
        (root / "bird" / content).write_bytes(png(0))
    with pytest.raises(DataError, match="bird has no images, and would be a class: fill it, or delete it"):
        load(str(tmp_path))
    image_folder(tmp_path / "test", ["cat"])
    (root / "bird" / "0.png").write_bytes(png(0))
    assert load(str(tmp_path)).classes == ["bird", "cat", "dog"]  # a test set may lack some


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode")
def test_a_class_must_have_a_name_in_utf8(tmp_path: Path) -> None:
    image_folder(tmp_path, ["cat", "Füße 猫", os.fsdecode(b"caf\xe9")])
    with pytest.raises(DataError, match=r"a class folder named 'caf\\udce9', which is not UTF-8: rename it"):
        load(str(tmp_path))
    (tmp_path / os.fsdecode(b"caf\xe9")).rename(tmp_path / "café")
    assert load(str(tmp_path)).classes == ["Füße 猫", "café", "cat"]
