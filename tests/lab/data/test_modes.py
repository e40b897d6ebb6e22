"""Images of every mode: read by what their format says of its values, in folders and parquet alike, or refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install -c constraints.txt -e '.[cli]'")
pytest.importorskip("PIL", reason="images need Pillow: pip install -c constraints.txt -e '.[cli]'")

import pyarrow as arrow
import pyarrow.parquet as parquet
from PIL import Image

from dataprune.errors import DataError
from dataprune.lab.data.named import Images, load

SIDE = 8


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def mode(name: str, kind: str = "PNG", **options: Any) -> Callable[[np.ndarray], bytes]:
    return lambda grey: saved(Image.fromarray(grey).convert("RGB").convert(name), kind, **options)


def deep(dtype: str, kind: str, factor: float = 257, **options: Any) -> Callable[[np.ndarray], bytes]:
    return lambda grey: saved(Image.fromarray((grey.astype(float) * factor).astype(dtype)), kind, **options)


def big_endian(grey: np.ndarray) -> bytes:
    return saved(Image.frombytes("I;16B", grey.shape[::-1], (grey.astype(int) * 257).astype(">u2").tobytes()), "TIFF")


def portable(white: int) -> Callable[[np.ndarray], bytes]:
    """A PGM, which says what white is."""
    return lambda grey: f"P5 {SIDE} {SIDE} {white}\n".encode() + (grey * (white / 255)).round().astype(">u2").tobytes()


def coloured(factor: int) -> Callable[[np.ndarray], bytes]:
    """A PNG of three colours of 16 bits, which Pillow reads and does not write."""

    def encode(grey: np.ndarray) -> bytes:
        rows = np.repeat((grey.astype(np.uint16) * factor).astype(">u2")[..., None], 3, axis=2)
        lines = b"".join(b"\0" + row.tobytes() for row in rows)
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines))]
        parts = [
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
            for name, content in [*chunks, (b"IEND", b"")]
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    return encode


def twelve_bits(grey: np.ndarray) -> bytes:
    """A TIFF that says that its values have 12 bits: two of them in three bytes."""
    values = (grey.astype(int) * 16 + grey // 16).ravel()
    pixels = b"".join((int(a) << 12 | int(b)).to_bytes(3, "big") for a, b in zip(values[::2], values[1::2]))
    tags = {256: SIDE, 257: SIDE, 258: 12, 259: 1, 262: 1, 277: 1, 278: SIDE, 279: len(pixels)}
    start = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = sorted([*tags.items(), (273, start)])
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHIHH", tag, 3, 1, v, 0) for tag, v in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + pixels


READ = {  # the channels that they are read with
    "1": (mode("1"), 1), "L": (mode("L"), 1), "LA": (mode("LA"), 3), "P": (mode("P"), 3), "RGB": (mode("RGB"), 3),
    "P transparent": (mode("P", transparency=bytes(range(256))), 3), "RGBA": (mode("RGBA"), 3),
    "CMYK": (mode("CMYK", "TIFF"), 3), "I;16 png": (deep("u2", "PNG"), 1), "I;16 tiff": (deep("u2", "TIFF"), 1),
    "I;16 lzw": (deep("u2", "TIFF", compression="tiff_lzw"), 1), "I;16B": (big_endian, 1),
    "16 of pgm": (portable(65535), 1), "12 of pgm": (portable(4095), 1), "12 of tiff": (twelve_bits, 1),
    "RGB;16": (coloured(257), 3),
}  # fmt: skip
REFUSED = {
    "12 in 16 png": (deep("u2", "PNG", 16), "none above 4095, where 65535 is white"),
    "12 in 16 tiff": (deep("u2", "TIFF", 16), "none above 4095, where 65535 is white"),
    "12 in 16 colours": (coloured(16), "none above 4095, where 65535 is white"),
    "int32": (deep("i4", "TIFF"), r"32 bits a value \(mode I\)"),
    "float of 1": (deep("f4", "TIFF", 1 / 255), r"32 bits a value \(mode F\)"),
    "float of 255": (deep("f4", "TIFF", 1), r"32 bits a value \(mode F\)"),
}


def pictures() -> np.ndarray:
    """Of two classes, the dark and the bright; (N, H, W)."""
    dice = np.random.default_rng(0)
    grey = dice.integers(0, 100, (20, SIDE, SIDE)) + 150 * (np.arange(20) % 2)[:, None, None]
    return grey.astype(np.uint8)


def folder(encode: Callable[[np.ndarray], bytes], root: Path) -> Path:
    for number, grey in enumerate(pictures()):
        path = root / "train" / f"class{number % 2}" / f"{number:02}.png"  # Pillow goes by the content
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(grey))
    return root


def table(encode: Callable[[np.ndarray], bytes], root: Path) -> Path:
    images = [{"bytes": encode(grey), "path": None} for grey in pictures()]
    rows = {"image": images, "label": [number % 2 for number in range(len(images))]}
    parquet.write_table(arrow.table(rows), root / "train-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("place", [folder, table])
@pytest.mark.parametrize("name", READ)
def test_values_are_those_of_eight_bits(name: str, place: Any, tmp_path: Path) -> None:
    encode, channels = READ[name]
    data = load(str(place(encode, tmp_path)))
    assert isinstance(data.train, Images) and data.shape == (channels, SIDE, SIDE)
    expected = {grey.tobytes(): label for label, grey in zip(np.arange(20) % 2, pictures())}
    exact = name not in ("1", "P", "P transparent")  # of 2 or 216 colours
    for image, label in data.train:
        assert not exact or expected[image[0].numpy().tobytes()] == label
        assert (float(image.float().mean()) > 110) == label


@pytest.mark.parametrize("place", [folder, table])
@pytest.mark.parametrize("name", REFUSED)
def test_values_without_a_known_white_are_refused(name: str, place: Any, tmp_path: Path) -> None:
    encode, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        load(str(place(encode, tmp_path)))
