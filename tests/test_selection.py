"""Selections, in memory and on disk."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset, TensorDataset

from dataprune import DataError, Selection
from dataprune.selection import pack, unpack


@pytest.fixture
def dataset() -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(50, 3, generator=draw), torch.arange(50) % 4)


def selection() -> Selection:
    return Selection(torch.tensor([3, 7, 20, 49]), torch.tensor([1.0, 2.0, 1.0, 0.5]))


def test_a_selection_has_the_length_of_its_samples() -> None:
    made = Selection.of(torch.tensor([4, 2, 9]))
    assert len(made) == 3
    assert made.numpy().tolist() == [4, 2, 9]
    assert made.weight.tolist() == [1.0, 1.0, 1.0]
    assert made.weight.dtype == torch.float32
    assert repr(made) == "Selection(3 samples)"
    assert repr(selection()) == "Selection(4 samples, weighted)"
    assert made == made and made != Selection.of(torch.tensor([4, 2, 9]))  # compared as objects, not as tensors
    with pytest.raises(FrozenInstanceError):
        made.index = torch.tensor([1])  # type: ignore[misc]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_selection_is_not_unpacked(count: int) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        list(Selection.of(torch.arange(count)))  # type: ignore[call-overload]


@pytest.mark.parametrize("positions", [[7], [3, 8], [0, 4, 5, 9]])
def test_a_subset_of_a_selection_has_its_samples(dataset: TensorDataset, positions: list[int]) -> None:
    subset = Subset(dataset, Selection.of(torch.tensor(positions)))  # type: ignore[arg-type]
    assert len(subset) == len(positions)
    loaded = torch.cat([y for _, y in DataLoader(subset, batch_size=2)])
    assert loaded.tolist() == [position % 4 for position in positions]


def test_round_trip(tmp_path: Path, dataset: TensorDataset) -> None:
    path = tmp_path / "core.safetensors"
    selection().save(
        path, metadata={"method": "emp", "keep": 0.3, "seed": 1, "note": None, "list": [1, 2]}, dataset=dataset
    )
    loaded = Selection.load(path, dataset)
    assert isinstance(loaded, Selection)
    assert torch.equal(loaded.index, selection().index)
    assert torch.equal(loaded.weight, selection().weight)
    assert loaded.index.dtype == torch.int64
    assert torch.equal(Selection.load(path).index, selection().index)
    metadata = Selection.metadata(path)
    assert metadata["method"] == "emp"
    assert metadata["keep"] == 0.3
    assert metadata["list"] == [1, 2]
    assert os.listdir(tmp_path) == ["core.safetensors"]  # nothing half-written is left


def test_an_empty_selection_is_saved_and_loaded(tmp_path: Path, dataset: TensorDataset) -> None:
    Selection.of([]).save(tmp_path / "none", dataset=dataset)
    assert len(Selection.load(tmp_path / "none", dataset)) == 0


def test_order_and_text_paths_survive(tmp_path: Path) -> None:
    path = str(tmp_path / "core.safetensors")
    Selection.of(torch.tensor([9, 1, 5])).save(path)
    assert Selection.load(path).index.tolist() == [9, 1, 5]


def test_another_dataset_is_refused(tmp_path: Path, dataset: TensorDataset) -> None:
    path = tmp_path / "core.safetensors"
    selection().save(path, dataset=dataset)
    other = TensorDataset(torch.zeros(50, 3), torch.arange(50) % 4)
    with pytest.raises(DataError, match="another dataset"):
        Selection.load(path, other)
    with pytest.raises(DataError, match="another dataset"):
        Selection.load(path, TensorDataset(torch.zeros(10, 3)))


def test_without_a_fingerprint_only_the_size_is_checked(tmp_path: Path, dataset: TensorDataset) -> None:
    path = tmp_path / "core.safetensors"
    selection().save(path)
    with pytest.warns(UserWarning, match="fingerprint"):
        Selection.load(path, dataset)
    with pytest.raises(DataError, match="49"):
        Selection.load(path, TensorDataset(torch.zeros(10, 3)))


@pytest.mark.parametrize("content", [b"", b"no such format", b"\xff" * 1000])
def test_a_file_that_is_no_selection(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "core.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a saved selection"):
        Selection.load(path)


def test_a_truncated_or_foreign_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "core.safetensors"
    selection().save(path)
    whole = path.read_bytes()
    for cut in (1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            Selection.load(path)
    save_file({"weights": torch.zeros(3)}, path)
    with pytest.raises(DataError):
        Selection.load(path)
    save_file({"weights": torch.zeros(3)}, path, metadata={"dataprune": "{}"})
    with pytest.raises(DataError):
        Selection.load(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Selection.load(tmp_path / "none.safetensors")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "core.safetensors"
    selection().save(path)

    def full_disk(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="space"):
        Selection.of(torch.tensor([1])).save(path)
    assert torch.equal(Selection.load(path).index, selection().index)


def test_a_selection_of_arrays_and_lists() -> None:
    for index in ([3, 1], np.array([3, 1]), np.array([3, 1], dtype=np.uint8), torch.tensor([3, 1], dtype=torch.int32)):
        assert Selection.of(index).index.tolist() == [3, 1] and Selection.of(index).index.dtype == torch.int64
    assert len(Selection.of([])) == 0
    for wrong in ([0.5, 1.0], np.array([True, False]), torch.tensor([0.0])):
        with pytest.raises(TypeError, match="whole numbers"):
            Selection.of(wrong)
    with pytest.raises(ValueError, match="must be"):
        Selection.of([[1, 2]])


@pytest.mark.parametrize(
    ("index", "weight", "message"),
    [
        (torch.tensor([0, -1]), torch.ones(2), "negative"),
        (torch.tensor([2, 2]), torch.ones(2), "only 1 of them different"),
        (torch.tensor([0, 1]), torch.tensor([1.0, torch.nan]), "not finite"),
        (torch.tensor([0, 1]), torch.tensor([1.0, -1.0]), "negative"),
        (torch.tensor([[0, 1]]), torch.ones(1, 2), "int64 .K,. and float32"),
        (torch.tensor([0.0, 1.0]), torch.ones(2), "torch.float32 .2,."),
        (torch.tensor([0, 1]), torch.ones(3), "weights"),
    ],
)
def test_files_with_impossible_content_are_refused(
    tmp_path: Path, index: torch.Tensor, weight: torch.Tensor, message: str
) -> None:
    path = tmp_path / "x.safetensors"
    Selection(index, weight).save(path)
    with pytest.raises(DataError, match=message):
        Selection.load(path)


# -- packing ---------------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 60), seed=st.integers(0, 99), ascending=st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_packing_round_trip(size: int, seed: int, ascending: bool) -> None:
    draw = np.random.default_rng(seed)
    index = torch.from_numpy(draw.permutation(size)[: draw.integers(1, size + 1)].copy())
    if ascending:
        index = index.sort().values
    packed = pack(index, size)
    assert torch.equal(unpack(packed, size), index)
    if ascending:
        assert packed.nbytes == -(-size // 8)
