"""Folders of images by what lies in them: parquet files, idx files, or images in a folder per class."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from ...errors import DataError
from .datasets import SPLITS, Encoded, Images, Packed, Splits
from .tables import read_parquets

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))


def read_folder(folder: Path) -> Splits:
    """Read a folder by what lies in it.

    Args:
        folder: where the files are; parquet files may be in its folder `data`, as on the hub.
    Returns:
        The splits.
    Raises:
        DataError: if there is nothing to read, or what is there is broken.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give one that holds images, parquet or idx files")
    try:
        for place in (folder, folder / "data"):
            if files := sorted(place.glob("*.parquet")):
                return read_parquets(files)
        if any(folder.glob("*idx*ubyte*")):
            return _read_idx_folder(folder)
        return _read_image_folder(folder)
    except PermissionError as error:
        raise DataError(f"cannot read {error.filename or folder}: permission denied") from error


def read_idx(path: Path) -> UInt8[Tensor, "n ..."]:
    """Read an idx file of bytes, plain or gzip.

    Args:
        path: the file.
    Returns:
        Its array.
    Raises:
        DataError: if it is truncated, too long, or not an idx file of bytes.
    """
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
    # a bytearray, for torch warns of memory that cannot be written
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].view(shape)


def _read_idx_folder(folder: Path) -> Splits:
    train, test = _read_idx_pair(folder, ("train",)), _read_idx_pair(folder, ("t10k", "test"))
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    return Splits(train, test, [str(number) for number in range(classes)])


def _read_idx_pair(folder: Path, words: Sequence[str]) -> Images:
    parts = []
    for kind, dimensions in (("images", 3), ("labels", 1)):
        found = [path for word in words for path in sorted(folder.glob(f"{word}-{kind}*ubyte*"))]
        if not found:
            raise DataError(f"no {words[0]}-{kind}-idx{dimensions}-ubyte or .gz of it in {folder}: fetch it")
        parts.append(read_idx(found[0]))
        if parts[-1].ndim != dimensions:
            raise DataError(f"{found[0]} has {parts[-1].ndim} dimensions where {kind} have {dimensions}")
    images, labels = parts
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels in its {words[0]} files")
    return Images(images[:, None], labels.long())


def _read_image_folder(folder: Path) -> Splits:
    found = {split: [folder / word for word in words if (folder / word).is_dir()] for split, words in SPLITS.items()}
    root = found["train"][0] if found["train"] else folder
    classes = [path.name for path in _folders(root)]
    if not classes:
        raise DataError(f"nothing to train on in {folder}: it takes train/CLASS/*.png, parquet or idx files")
    held = [*found["test"], *found["validation"]] if found["train"] else []
    return Splits(_list_images(root, classes), _list_images(held[0], classes) if held else None, classes)


def _list_images(root: Path, classes: Sequence[str]) -> Encoded:
    if unknown := sorted({path.name for path in _folders(root)} - set(classes)):
        raise DataError(f"{root} has classes that are not trained on: {', '.join(unknown)}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"no images in {root}: it takes CLASS/*.png, *.jpg ...")
    return Encoded(Packed((os.fsencode(path) for path in paths), files=True), torch.tensor(labels))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
