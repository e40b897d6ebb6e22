"""Augmentation in batches, on the device where the images are.

Every random number is a hash of (seed, epoch, index, draw): a sample is augmented alike in any batch, on any device,
worker or rank, and after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ...hashing import uniform

_DRAWS = 3  # per sample: rows, columns, flip


def augment(
    images: UInt8[Tensor, "b c h w"],
    index: Int[Tensor, " b"],
    *,
    seed: int,
    epoch: int,
    shift: int = 0,
    mode: Literal["constant", "reflect"] = "constant",
    flip: bool = False,
) -> UInt8[Tensor, "b c h w"]:
    """Shift each image at random and mirror half of them: the random crop of a padded image, and the flip.

    Args:
        images: a batch; returned itself if there is nothing to do.
        index: the samples' positions in the dataset.
        seed, epoch: what the random numbers depend on, with the position.
        shift: largest offset in pixels, of rows and columns apart.
        mode: values beyond the border: "constant" is zero, "reflect" mirrors at the border pixel.
        flip: mirror left and right with probability one half.
    """
    batch, _, height, width = images.shape
    if mode == "reflect" and shift >= min(height, width):
        raise ValueError(f"cannot shift {height}x{width} images by {shift} pixels: use fewer")
    if not shift and not flip:
        return images
    device = images.device
    index = index.to(device, non_blocking=True)
    chance = uniform(seed, epoch, index[:, None], torch.arange(_DRAWS, device=device))  # (B, 3)
    offset = (chance[:, :2] * (2 * shift + 1)).long() - shift
    rows = torch.arange(height, device=device) + offset[:, :1]  # (B, H): the row that each output row is taken from
    columns = torch.arange(width, device=device).expand(batch, width)
    if flip:  # of the shifted image: output column c is what column w - 1 - c would be
        columns = torch.where(chance[:, 2:] < 0.5, columns.flip(1), columns)
    columns = columns + offset[:, 1:2]
    if mode == "reflect":
        source = images.flatten(2)
        position = _reflect(rows, height)[:, :, None] * width + _reflect(columns, width)[:, None]
    else:
        # a gather from the padded image costs less than a mask over the result
        padded = images.new_zeros(*images.shape[:2], height + 2 * shift, width + 2 * shift)
        padded[:, :, shift : shift + height, shift : shift + width] = images  # thrice as fast as torch's pad on bytes
        source = padded.flatten(2)
        position = (rows + shift)[:, :, None] * (width + 2 * shift) + (columns + shift)[:, None]
    return source.gather(2, position.view(batch, 1, -1).expand(-1, images.shape[1], -1)).view(images.shape)


def normalize(
    images: UInt8[Tensor, "b c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b c h w"]:
    """Normalise pixels in float32, per channel: (pixel / 255 - mean) / std."""
    values = images.to(torch.float32)
    # as Python's numbers, which travel with an operation: a tensor of them would be copied to the device in every step
    for channel, (middle, spread) in enumerate(zip(mean, std, strict=True)):
        values[:, channel].mul_(1 / (255 * spread)).add_(-middle / spread)
    return values


def _reflect(position: Int[Tensor, "b n"], size: int) -> Int[Tensor, "b n"]:
    return (size - 1) - ((size - 1) - position.abs()).abs()
