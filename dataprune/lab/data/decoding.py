"""One encoded image to pixels; Pillow is imported only where there is one."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np

from ...errors import DataError

if TYPE_CHECKING:
    from PIL import Image


def header(content: bytes, name: str) -> tuple[str, int, int]:
    """What an image says of itself, without decoding it.

    Args:
        content: the encoded image.
        name: what to call it in an error.
    Returns:
        Pillow's mode, width, height.
    Raises:
        DataError: if it is no image.
    """
    image = _open(content, name)
    return image.mode, image.width, image.height


def decode(content: bytes, name: str, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """Pixels of one image.

    Args:
        content: the encoded image.
        name: what to call it in an error.
        shape: (C, H, W) of the result; one channel is grey, three are RGB.
        resize: bring it to that shape by its shorter side and a centre crop.
    Returns:
        uint8 (C, H, W), a view that cannot be written.
    Raises:
        DataError: if it cannot be decoded, or has another size and is not to be resized.
    """
    channels, height, width = shape
    image = _open(content, name)
    try:
        if resize:
            image.draft(None, (width, height))  # a JPEG is decoded at a half, a quarter ... where that suffices
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            if not resize:
                found = f"{image.width}x{image.height}"
                raise DataError(f"{name} is {found}, others are {width}x{height}: give image_size (--image-size)")
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            image = image.resize((width, height), 2, box=(left, top, left + side, top + side))  # 2: bilinear
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
    except (OSError, SyntaxError, struct.error) as error:
        raise DataError(f"cannot decode {name}: {error}") from error


def _open(content: bytes, name: str) -> Image.Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("decoding images needs Pillow: pip install -c constraints.txt -e '.[cli]'") from error
    try:
        return Image.open(io.BytesIO(content))
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        reason = "it is no image" if "cannot identify" in str(error) else error  # Pillow names the buffer's address
        raise DataError(f"cannot read {name}: {reason}") from error
