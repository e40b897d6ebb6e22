"""Two random views of every image, made in batches on the images' device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ..errors import needs
from ..hashing import uniform

Images = UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"]
Box = tuple[Tensor, Tensor, Tensor, Tensor]  # top, left, height and width, each (B, 1) whole numbers as floats

_ATTEMPTS = 10  # boxes drawn until one fits into the image
_DRAWS = 32  # random numbers per view of a sample: two per box, nine more, and a reserve
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Views:
    """Random crop, flip, colour jitter and greyscale, drawn for each view; the defaults are those of the EMP paper.

    Every random number is a hash of (seed, epoch, index, view): a sample has the same views in any batch, on any
    device, worker or rank, and after a resume. torch's random state is neither read nor written. For images of one
    channel `grey` does nothing, and `jitter` changes brightness and contrast only. They need the jitter: with crops and
    flips alone an encoder can distinguish such images by their intensities, and learns little else.

    Args:
        mean: mean of pixels in [0, 1] per channel, to normalise views by it and `std`; None to not normalise.
        crop: smallest and largest share of the image's area that is cropped, then resized to the image's size.
        aspect: smallest and largest width / height of the crop, in pixels.
        flip: probability of a horizontal flip.
        grey: probability of a greyscale image, in all its channels.
        jitter: probability of colour jitter; above 0 it needs kornia.
        strength: strength s of the jitter: brightness, contrast and saturation are multiplied by a number in
            [1 − 0.8·s, 1 + 0.8·s], then the hue is rotated by up to 0.2·s of the circle.
    Example:
        >>> images, index = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)
        >>> x_i, x_j = Views()(images, index, seed=0, epoch=0)
        >>> x_j.shape
        torch.Size([4, 3, 8, 8])

    Source: Xiao et al., arXiv:2408.16031, appendix C.2 (crop, flip, grey with probability 0.8); `simclr`: Chen et al.
        2020, arXiv:2002.05709, appendices A and B.9. Differs: the EMP paper gives no range for the crop, it is
        SimCLR's here; where no box fits in ten attempts, SimCLR's code takes the middle of the image, here the place is
        random too; the order of the colour changes is fixed, not random.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    crop: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    grey: float = 0.8
    jitter: float = 0.0
    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop is a range of shares of the area within (0, 1], got {self.crop}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is a range of width / height above 0, got {self.aspect}")
        for name in ("flip", "grey", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.strength <= 1.25:  # above it a factor would be below 0
            raise ValueError(f"strength must be in [0, 1.25], got {self.strength}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both, or neither")

    @classmethod
    def simclr(
        cls, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, *, strength: float = 0.5
    ) -> Views:
        """Views of SimCLR on CIFAR: crop, flip, colour jitter in four of five views, greyscale in one of five.

        For ImageNet its strength is 1, and it also blurs, which this does not.
        """
        return cls(mean, std, grey=0.2, jitter=0.8, strength=strength)

    def __call__(
        self, images: Images, index: Int[Tensor, " b"], *, seed: int, epoch: int
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Make two views of every image, float32 on the images' device.

        Args:
            images: bytes, or floating-point numbers in [0, 1].
            index: positions of the samples in the dataset.
        Raises:
            TypeError: if the images are neither bytes nor floating point.
            ValueError: if shapes do not fit, or colours of images that are neither grey nor RGB are to change.
            ImportError: for colour jitter without kornia.
        """
        first, second = (self.view(images, index, seed=seed, epoch=epoch, number=number) for number in (0, 1))
        return first, second

    def view(
        self, images: Images, index: Int[Tensor, " b"], *, seed: int, epoch: int, number: int
    ) -> Float[Tensor, "b c h w"]:
        """Make one view of every image: `number` 0 and 1 are the two of a call, higher ones are further views."""
        self._check(images, index)
        device = images.device
        draw = torch.arange(_DRAWS * number, _DRAWS * (number + 1), device=device)
        chance = uniform(seed, epoch, index.to(device, non_blocking=True)[:, None], draw)  # (B, 32)
        boxes, other = chance[:, : 2 * _ATTEMPTS + 2], chance[:, 2 * _ATTEMPTS :]
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        box = _boxes(boxes, images.shape[2:], self.crop, self.aspect)
        made = _cut(scaled, box, other[:, 2] < self.flip)
        if self.jitter:
            changed = _recolour(made, other[:, 3:7], self.strength)
            made = torch.where(_per_image(other[:, 7] < self.jitter), changed, made)
        if self.grey and images.shape[1] == 3:
            luma = (made * _per_channel(_LUMA, device)).sum(dim=1, keepdim=True)
            made = torch.where(_per_image(other[:, 8] < self.grey), luma, made)
        if self.mean is not None and self.std is not None:
            made = (made - _per_channel(self.mean, device)) / _per_channel(self.std, device)
        return made

    def _check(self, images: Tensor, index: Tensor) -> None:
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be bytes, or floating point in [0, 1], got {images.dtype}")
        if images.ndim != 4:
            raise ValueError(f"images must be (B, C, H, W), got {tuple(images.shape)}")
        if index.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images but {len(index)} indices: pass those of the same batch")
        channels = images.shape[1]
        if channels not in (1, 3) and (self.grey or self.jitter):
            raise ValueError(f"{channels} channels are neither grey nor RGB: use grey=0, jitter=0")
        for name, value in (("mean", self.mean), ("std", self.std)):
            if value is not None and len(value) != channels:
                raise ValueError(f"{channels} channels but `{name}` has {len(value)} values")


def _boxes(
    draws: Float[Tensor, "b draws"], size: Sequence[int], crop: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """Draw a box in every image: an area and a ratio per attempt, and a place."""
    height, width = size
    areas, ratios, place = draws.tensor_split((_ATTEMPTS, 2 * _ATTEMPTS), dim=1)
    area = height * width * (crop[0] + (crop[1] - crop[0]) * areas)
    low, high = (torch.tensor(value, dtype=torch.float64).log().item() for value in aspect)
    ratio = torch.exp(low + (high - low) * ratios)
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.byte().argmax(dim=1, keepdim=True)
    # where none fits: the largest box of an allowed aspect
    none = ~fits.any(dim=1, keepdim=True)
    w = w.gather(1, first).masked_fill(none, max(1, min(width, round(height * aspect[1]))))
    h = h.gather(1, first).masked_fill(none, max(1, min(height, round(width / aspect[0]))))
    top = (place[:, :1] * (height - h + 1)).floor()
    left = (place[:, 1:] * (width - w + 1)).floor()
    return top, left, h, w


def _cut(images: Float[Tensor, "b c h w"], box: Box, flip: Tensor) -> Float[Tensor, "b c h w"]:
    """Crop the boxes, resize them to the images' size and flip some, in one bilinear interpolation."""
    top, left, h, w = box
    rows = _centres(images.shape[2], top, h)
    columns = _centres(images.shape[3], left, w)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=3)  # (B, H, W, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _centres(size: int, start: Float[Tensor, "b 1"], length: Float[Tensor, "b 1"]) -> Float[Tensor, "b size"]:
    """Source coordinates, from -1 to 1 in an image of `size`, of `size` pixels resized from [start, start + length)."""
    position = (torch.arange(size, device=start.device) + 0.5) * length / size - 0.5
    # pixels outside the box must not be interpolated at its edge
    position = start + torch.minimum(position.clamp(min=0), length - 1)
    return (2 * position + 1) / size - 1


def _recolour(
    images: Float[Tensor, "b c h w"], draws: Float[Tensor, "b 4"], strength: float
) -> Float[Tensor, "b c h w"]:
    with needs("colour jitter needs kornia", "contrastive"):
        from kornia import enhance
    factors = 1 + 0.8 * strength * (2 * draws[:, :3] - 1)
    angle = 2 * torch.pi * 0.2 * strength * (2 * draws[:, 3] - 1)
    images = enhance.adjust_brightness_accumulative(images, factors[:, 0])
    images = enhance.adjust_contrast_with_mean_subtraction(images, factors[:, 1])
    if images.shape[1] == 1:
        return images
    images = enhance.adjust_saturation_with_gray_subtraction(images, factors[:, 2])
    return enhance.adjust_hue(images, angle)


def _per_channel(values: Sequence[float], device: torch.device) -> Float[Tensor, "c 1 1"]:
    # sent without waiting: a tensor made on a GPU from Python numbers would stop for it
    return torch.tensor(list(values), dtype=torch.float32).to(device, non_blocking=True)[:, None, None]


def _per_image(mask: Tensor) -> Tensor:
    return mask[:, None, None, None]
