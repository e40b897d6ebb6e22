"""Datasets: pixels or tokens in memory, or images that are decoded on access."""

from __future__ import annotations

import io
import logging
import os
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import DataError, needs

if TYPE_CHECKING:
    from PIL import Image

SPLITS = {"train": ("train", "training"), "test": ("test", "t10k"), "validation": ("validation", "valid", "val", "dev")}

_log = logging.getLogger(__name__)
_BITS_PER_SAMPLE = 258  # a tag of TIFF
_SMALL = 8192  # bytes of an encoded image below which threads wait for the interpreter more than they decode


class InMemory(Dataset):
    """Samples in one tensor in memory, a label each; of `Images` or `Texts`."""

    def __init__(self, samples: Shaped[Tensor, "n ..."], labels: Shaped[Tensor, " n"]):
        if len(samples) != len(labels):
            raise ValueError(f"{len(samples)} {type(self).__name__.lower()} but {len(labels)} labels")
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, Any]:
        return self.samples[position], self.labels[position]

    def to(self, device: torch.device | str) -> Self:
        """The same samples on a device."""
        return type(self)(self.samples.to(device), self.labels.to(device))

    def take(self, index: Int[Tensor, " b"] | slice) -> tuple[Shaped[Tensor, "b ..."], Shaped[Tensor, " b"]]:
        """Samples and labels at these positions."""
        return self.samples[index], self.labels[index]

    def subset(self, index: Int[Tensor, " k"]) -> Self:
        """The samples at these positions, in this order."""
        return type(self)(*self.take(index.to(self.labels.device)))


class Images(InMemory):
    """Pixels, uint8 (N, C, H, W), and class ids."""

    def __getitem__(self, position: int) -> tuple[UInt8[Tensor, "c h w"], int]:
        return self.samples[position], int(self.labels[position])

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """The pixels."""
        return self.samples


class Texts(InMemory):
    """Token ids, attention mask and token type ids, int32 (N, 3, S), padded on the right; class ids, or scores."""


class Packed:
    """Byte strings in one tensor: worker processes share it, where a list would be copied object by object.

    With `files` the strings are paths, and an item is the content of its file. In errors an item is called by its path,
    or by `name`, in which "{}" stands for its position.
    """

    def __init__(self, items: Iterable[bytes | memoryview], *, name: str = "image {}", files: bool = False):
        items = list(items)
        self.ends = torch.tensor([len(item) for item in items], dtype=torch.int64).cumsum(0)
        self.buffer = torch.frombuffer(bytearray(b"".join(items) or b"\0"), dtype=torch.uint8)
        self._name, self._files = name, files

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, position: int) -> bytes:
        if not self._files:
            return self._item(position)
        try:
            return Path(self.name(position)).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.name(position)}: {error.strerror}") from error

    def name(self, position: int) -> str:
        """The item's name in errors."""
        return os.fsdecode(self._item(position)) if self._files else self._name.format(position)

    def _item(self, position: int) -> bytes:
        start = int(self.ends[position - 1]) if position else 0
        return self.buffer[start : int(self.ends[position])].numpy().tobytes()


class Encoded(NamedTuple):
    """Samples with encoded images."""

    items: Packed
    labels: Int[Tensor, " n"]


class Splits(NamedTuple):
    """The splits of a dataset; `test` is None where there is only one."""

    train: Encoded | Images
    test: Encoded | Images | None
    classes: list[str]


@dataclass(eq=False)
class Streamed(Dataset):
    """Images at some positions of `items`, decoded on access to `shape` (C, H, W), in the workers of a loader.

    An image of another size is resized by its shorter side and cropped at the centre, or without `resize` refused.
    """

    items: Packed
    positions: Int[Tensor, " n"]
    labels: Int[Tensor, " n"]
    shape: Sequence[int]
    resize: bool

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[UInt8[Tensor, "c h w"], int]:
        pixels = self._decode(int(self.positions[position]))
        return torch.from_numpy(pixels.copy()), int(self.labels[position])

    def subset(self, index: Int[Tensor, " k"]) -> Streamed:
        """The samples at these positions, in this order."""
        return replace(self, positions=self.positions[index], labels=self.labels[index])

    def decoded(self) -> Images:
        """Decode all samples into memory, with threads where images are large."""
        start = time.perf_counter()
        images = np.empty((len(self), *self.shape), dtype=np.uint8)
        positions = self.positions.tolist()
        large = bool(positions) and len(self.items[positions[0]]) > _SMALL
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = (pool.map if large else map)(self._decode, positions)
            for at, pixels in enumerate(decoded):
                images[at] = pixels
        _log.info("decoded %d images in %.1f s", len(self), time.perf_counter() - start)
        return Images(torch.from_numpy(images), self.labels)

    def _decode(self, position: int) -> np.ndarray:
        return decode(self.items[position], self.items.name(position), self.shape, self.resize)


Samples = Images | Streamed | Texts


def shape_of(items: Packed, size: int | None) -> tuple[int, int, int]:
    """Choose the shape (C, H, W) that images are decoded to: a square of side `size`, or the first image's size.

    There is one channel if all of a spread of images are grey, else three.
    """
    spread = range(0, len(items), max(1, len(items) // 64))
    headers = {items.name(position): _open(items[position], items.name(position)) for position in spread}
    # the mode of grey ones says it, of coloured ones the layout of the file, which images that are read from files have
    deep = {name: image for name, image in headers.items() if ";16" in f"{image.mode} {getattr(image, 'tile', '')}"}
    _check_depth(deep)
    first = next(iter(headers.values()))
    channels = 1 if all(image.mode in ("1", "L", "I") or ";16" in image.mode for image in headers.values()) else 3
    return (channels, size, size) if size else (channels, first.height, first.width)


def _check_depth(images: Mapping[str, Image.Image]) -> None:
    """Raise DataError if the values of all these images of 16 bits fit into 12, which would leave them black."""
    for name, image in images.items():
        if np.asarray(_with_bytes(image, name)).max() >= 16:
            return
    if images:
        raise DataError(
            f"{next(iter(images))} and others have 16 bits a value and none above 4095, where 65535 is white: scale "
            "them to 16 bits, or save them with 8"
        )


def _with_bytes(image: Image.Image, name: str) -> Image.Image:
    """The image with 8 bits a value: of 16 grey ones the high byte, which is what Pillow reads of 16 coloured ones."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise DataError(
            f"{name} has 32 bits a value (mode {image.mode}), and its format does not say which one is white: save it "
            "with 8 or 16 bits"
        )
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    if not image.mode.startswith("I"):
        return image
    from PIL import Image

    (bits,) = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))  # a TIFF may have 12
    return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))


def decode(content: bytes, name: str, shape: Sequence[int], resize: bool) -> np.ndarray:
    """Decode an image to uint8 (C, H, W), grey or RGB, a read-only view."""
    channels, height, width = shape
    image = _open(content, name)
    try:
        if resize:
            image.draft(None, (width, height))  # a JPEG is decoded at a half, a quarter ... where that suffices
        image = _with_bytes(image, name).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            if not resize:
                size = f"{image.width}x{image.height}"
                raise DataError(f"{name} is {size}, others are {width}x{height}: give image_size (--image-size)")
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            image = image.resize((width, height), 2, box=(left, top, left + side, top + side))  # 2: bilinear
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
    except (OSError, SyntaxError, struct.error) as error:
        raise DataError(f"cannot decode {name}: {error}") from error


def _open(content: bytes, name: str) -> Image.Image:
    with needs("decoding images needs Pillow", "cli", DataError):
        from PIL import Image
    try:
        return Image.open(io.BytesIO(content))
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        reason = "it is no image" if "cannot identify" in str(error) else error  # Pillow names the buffer's address
        raise DataError(f"cannot read {name}: {reason}") from error
