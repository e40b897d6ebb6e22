"""Folders and hub datasets of images: parquet files, idx files, or images in a folder per class."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ...errors import DataError, needs
from .datasets import SPLITS, Encoded, Images, Packed, Splits

_log = logging.getLogger(__name__)
_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
# columns by the features' type, for files whose features are unclear: CIFAR-100 has img, fine_label and coarse_label
_COLUMNS = {"Image": ("image", "img"), "ClassLabel": ("label", "labels", "fine_label", "target")}

Reader = Callable[[], tuple[Encoded, list[str]]]


def read_folder(folder: Path) -> Splits:
    """Read a folder of parquet files (also in its folder `data`, as on the hub), idx files, or a folder per class.

    This and what it calls raise DataError where there is nothing to read, or a file is broken.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give one that holds images, parquet or idx files")
    try:
        if files := parquet_files(folder):
            shards = split_files(files)
            return _choose(
                str(files[0].parent), {split: lambda p=paths: _read_parquet(p) for split, paths in shards.items()}
            )
        if any(folder.glob("*idx*ubyte*")):
            return _read_idx_folder(folder)
        return _read_image_folder(folder)
    except PermissionError as error:
        raise DataError(f"cannot read {error.filename or folder}: permission denied") from error


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files of a folder, or of its folder `data`, by name."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def read_idx(path: Path) -> UInt8[Tensor, "n ..."]:
    """Read the array of an idx file of bytes, plain or gzip."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except PermissionError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; fetch it again") from error
    dimensions = content[3] if len(content) > 3 else 0
    if content[:3] != b"\0\0\x08" or not 1 <= dimensions <= 4:
        raise DataError(f"{path} is no idx file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise DataError(f"{path} has {len(content)} bytes where {header + math.prod(shape)} belong: fetch it again")
    # a bytearray, since torch warns of memory that cannot be written
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].view(shape)


def _read_idx_folder(folder: Path) -> Splits:
    train, test = _read_idx_pair(folder, ("train",)), _read_idx_pair(folder, ("t10k", "test"))
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    return Splits(train, test, [str(number) for number in range(classes)])


def _read_idx_pair(folder: Path, words: Sequence[str]) -> Images:
    parts = []
    for kind, dimensions in (("images", 3), ("labels", 1)):
        paths = [path for word in words for path in sorted(folder.glob(f"{word}-{kind}*ubyte*"))]
        if not paths:
            raise DataError(f"no {words[0]}-{kind}-idx{dimensions}-ubyte or .gz of it in {folder}: fetch it")
        parts.append(read_idx(paths[0]))
        if parts[-1].ndim != dimensions:
            raise DataError(f"{paths[0]} has {parts[-1].ndim} dimensions where {kind} have {dimensions}")
    images, labels = parts
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels in its {words[0]} files")
    return Images(images[:, None], labels.long())


def _read_image_folder(folder: Path) -> Splits:
    splits = {split: [folder / word for word in words if (folder / word).is_dir()] for split, words in SPLITS.items()}
    root = splits["train"][0] if splits["train"] else folder
    classes = [path.name for path in _folders(root)]
    if not classes:
        raise DataError(f"nothing to train on in {folder}: give CLASS/*.png or train/CLASS/*.png, parquet or idx files")
    if wrong := [name for name in classes if name.encode(errors="replace") != os.fsencode(name)]:
        raise DataError(f"{root} has a class folder named {wrong[0]!a}, which is not UTF-8: rename it")
    test = [*splits["test"], *splits["validation"]] if splits["train"] else []
    train = _list_images(root, classes)
    if empty := set(range(len(classes))) - set(train.labels.tolist()):
        raise DataError(f"{root / classes[min(empty)]} has no images, and would be a class: fill it, or delete it")
    return Splits(train, _list_images(test[0], classes) if test else None, classes)


def _list_images(root: Path, classes: Sequence[str]) -> Encoded:
    if unknown := sorted({path.name for path in _folders(root)} - set(classes)):
        raise DataError(f"{root} has classes that the training split lacks: {', '.join(unknown)}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (root / name).rglob("*") if _is_image(path.relative_to(root)))
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"no images in {root}: give CLASS/*.png, *.jpg ...")
    return Encoded(Packed((os.fsencode(path) for path in paths), files=True), torch.tensor(labels))


def _is_image(path: Path) -> bool:
    """By its name; hidden files and folders, as of editors and notebooks, are left out."""
    return path.suffix.lower() in _SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def split_files(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Group parquet files by the split that their names begin with, as in train-00000-of-00002.parquet.

    All are training data if none is named after a split; empty if only the training split is missing.
    """
    shards: dict[str, list[Path]] = {}
    for path in files:
        word = re.split(r"[-_.]", path.name)[0].lower()
        split = next((split for split, words in SPLITS.items() if word in words), "")
        shards.setdefault(split, []).append(path)
        total = re.search(r"-of-(\d+)\.parquet$", path.name)
        if total and len(list(path.parent.glob(f"{word}-*{total[0]}"))) < int(total[1]):
            raise DataError(f"{path.parent} lacks some of the {int(total[1])} parts of {word}: fetch them")
    return shards if "train" in shards else {"train": shards[""]} if set(shards) == {""} else {}


def read_hub(name: str) -> Splits:
    """Load the images of the dataset "owner/name" from the hub, or from the cache of `datasets`."""
    readers: dict[str, Reader] = {}
    for word, split in load_from_hub(name).items():
        key = next((key for key, words in SPLITS.items() if word in words), word)
        readers[key] = lambda s=split: encode(s.with_format("arrow")[:], name)
    return _choose(name, readers)


def load_from_hub(*name: str) -> dict[str, Any]:
    """Load the splits of a dataset, or of a configuration of it, with `datasets`."""
    with needs("the hub is read with datasets", "hf", DataError):
        import datasets

    load: Any = datasets.load_dataset
    try:
        return {str(word): split for word, split in dict(load(*name)).items()}
    except Exception as error:  # the library raises many types, also of its dependencies
        raise DataError(f"cannot load {'/'.join(name)!r} from the hub: {first_line(error)}") from error


def _choose(source: str, readers: dict[str, Reader]) -> Splits:
    """The training split, and the first of test and validation with known labels as the test set."""
    if "train" not in readers:
        raise DataError(f"no training split in {source}: name its files train-*.parquet")
    train, classes = readers["train"]()
    if (ids := occurring(train.labels, classes)) is not None:
        train, classes = _renumbered(f"{source}: train", train, ids), list(map(str, ids.tolist()))
    classes = classes or [str(number) for number in range(int(train.labels.max()) + 1)]
    check_labels(f"{source}: train", train.labels, len(classes))
    for split in ("test", "validation"):
        if split in readers:
            test, _ = readers[split]()
            if bool((test.labels == -1).all()):  # benchmarks publish a test set without its labels so
                _log.info("%s: the labels of %s are withheld", source, split)
                continue
            test = _renumbered(f"{source}: {split}", test, ids) if ids is not None else test
            check_labels(f"{source}: {split}", test.labels, len(classes))
            return Splits(train, test, classes)
    return Splits(train, None, classes)


def occurring(labels: Int[Tensor, " n"], names: Sequence[str] | None) -> Int[Tensor, " c"] | None:
    """The ids that occur, where these are the classes: they have no names, and ids are larger than the data."""
    ids = labels.unique()
    return ids if not names and int(ids[0]) >= 0 and int(ids[-1]) >= len(labels) else None


def _renumbered(source: str, part: Encoded, ids: Int[Tensor, " c"]) -> Encoded:
    """Replace class ids by their places among `ids`, which are sorted."""
    place = torch.searchsorted(ids, part.labels).clamp(max=len(ids) - 1)
    if not torch.equal(ids[place], part.labels):
        raise DataError(f"{source} has labels that the training split lacks")
    return part._replace(labels=place)


def _read_parquet(paths: Sequence[Path]) -> tuple[Encoded, list[str]]:
    columns = [columns_of(path) for path in paths][-1]
    return encode(read_table(paths, columns), str(paths[0].parent))


def read_table(paths: Sequence[Path], columns: Sequence[str] | None = None) -> Any:
    """Read parquet files as one arrow table, of all columns or some."""
    arrow, parquet = _pyarrow()
    tables = []
    for path in paths:
        try:
            tables.append(parquet.read_table(path, columns=None if columns is None else list(columns)))
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {first_line(error)}; fetch it again") from error
    try:
        return arrow.concat_tables(tables)
    except arrow.ArrowException as error:
        raise DataError(f"{paths[0].parent}: the parts have different columns: {first_line(error)}") from error


def columns_of(path: Path) -> tuple[str, str]:
    """The names of the image and the label column of a parquet file."""
    arrow, parquet = _pyarrow()
    try:
        return _columns(parquet.read_schema(path), str(path))
    except (arrow.ArrowException, OSError, json.JSONDecodeError) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}; fetch it again") from error


def class_names(path: Path) -> list[str]:
    """The names of the classes in a parquet file; empty where it has none."""
    return features_of(_pyarrow()[1].read_schema(path)).get(columns_of(path)[1], {}).get("names") or []


def features_of(schema: Any) -> dict[str, Any]:
    """The features by column that `datasets` has noted in an arrow schema."""
    return json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})


def _pyarrow() -> tuple[Any, Any]:
    with needs("reading parquet files needs pyarrow", "cli", DataError):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet


def encode(table: Any, source: str) -> tuple[Encoded, list[str]]:
    """Convert an arrow table to samples and class names, none where its features do not name them."""
    import pyarrow as arrow
    import pyarrow.compute as compute

    image, label = _columns(table.schema, source)
    content, labels = table[image], table[label]
    if arrow.types.is_struct(content.type) and content.type.get_field_index("bytes") >= 0:
        content = compute.struct_field(content, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
    if not (arrow.types.is_binary(content.type) or arrow.types.is_large_binary(content.type)):
        raise DataError(f"{source}: column {image} must hold encoded images, as bytes or as {{bytes, path}}")
    if not arrow.types.is_integer(labels.type):
        raise DataError(f"{source}: column {label} must hold class ids, not {labels.type}")
    if not len(table) or content.null_count or labels.null_count:
        raise DataError(f"{source}: {'a row lacks its image or label' if len(table) else 'a split without rows'}")
    items = Packed((memoryview(cell.as_buffer()) for cell in content), name=f"image {{}} of {source}")
    ids = torch.from_numpy(np.array(labels.to_numpy(), dtype=np.int64))
    return Encoded(items, ids), features_of(table.schema).get(label, {}).get("names") or []


def _columns(schema: Any, source: str) -> tuple[str, str]:
    """Names of the image and the label column: by usual name, else by the features' type."""
    columns, features = [], features_of(schema)
    for kind, usual in _COLUMNS.items():
        marked = [name for name in schema.names if features.get(name, {}).get("_type") == kind]
        candidates = [name for name in usual if name in schema.names] + marked
        if not candidates:
            names = ", ".join(schema.names)
            raise DataError(f"{source}: no {usual[0]} column among {names}: name the columns image and label")
        columns.append(candidates[0])
    return columns[0], columns[1]


def check_labels(source: str, labels: Int[Tensor, " n"], classes: int, owner: str = "there are") -> None:
    """Raise DataError if a label is not a class."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{source} has labels from {low} to {high}, but {owner} {classes} classes")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
