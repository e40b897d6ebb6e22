import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune.hashing import uniform
from dataprune.lab.data.augment import augment, normalize
from dataprune.lab.data.named import Data
from dataprune.lab.training.tasks.images import Classification


def slow_augment(image, index, *, seed, epoch, shift, mode, flip):
    """Pixel by pixel."""
    _, height, width = image.shape
    draws = [uniform(seed, epoch, torch.tensor([index]), draw).item() for draw in range(3)]
    down, right = (int(draw * (2 * shift + 1)) - shift for draw in draws[:2])
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row + down, column + right
            if mode == "reflect":
                y, x = (
                    -at if at < 0 else 2 * (size - 1) - at if at >= size else at
                    for at, size in ((y, height), (x, width))
                )
            if 0 <= y < height and 0 <= x < width:
                result[:, row, column] = image[:, y, x]
    return result.flip(2) if flip and draws[2] < 0.5 else result


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(4, 7), st.integers(4, 7)),
    shift=st.integers(0, 3),
    mode=st.sampled_from(["constant", "reflect"]),
    flip=st.booleans(),
    seed=st.integers(0, 100),
)
def test_augment_is_the_reference(size, shift, mode, flip, seed):
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    index = torch.arange(size[0]) * 11 + 3
    options = dict(seed=seed, epoch=2, shift=shift, mode=mode, flip=flip)
    expected = [slow_augment(image, int(at), **options) for image, at in zip(images, index, strict=True)]
    before = images.clone()
    assert torch.equal(augment(images, index, **options), torch.stack(expected))
    assert torch.equal(images, before)


def test_augment_draws_every_shift_and_flips_half():
    images = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5).expand(4000, 1, 5, 5)
    shifted = augment(images, torch.arange(4000), seed=0, epoch=0, shift=2, mode="reflect")
    assert torch.bincount(shifted[:, 0, 2, 2].long(), minlength=25).min() > 100  # of 160 expected
    flipped = augment(images, torch.arange(4000), seed=0, epoch=0, flip=True)
    assert 1850 < int((flipped[:, 0, 0, 0] == 4).sum()) < 2150


def test_augment_changes_from_epoch_to_epoch_and_leaves_global_state_alone():
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    before = torch.get_rng_state()
    first, again, other = (
        augment(images, torch.arange(16), seed=1, epoch=epoch, shift=2, flip=True) for epoch in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_reflected_shift_is_smaller_than_the_image():
    images, index = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2)
    with pytest.raises(ValueError, match="cannot shift 4x4 images"):
        augment(images, index, seed=0, epoch=0, shift=4, mode="reflect")


def slow_resized_crop(image, index, *, seed, epoch, flip):
    """A box of 8 to 100 % of the area and aspect 3/4 to 4/3, resized pixel by pixel between its four neighbours."""
    channels, height, width = image.shape
    draws = [uniform(seed, epoch, torch.tensor([index]), draw).item() for draw in range(23)]
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    for area, ratio in zip(draws[:10], draws[10:20]):
        pixels, aspect = height * width * (0.08 + 0.92 * area), (3 / 4) ** (1 - 2 * ratio)
        columns, rows = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 1 <= columns <= width and 1 <= rows <= height:
            h, w = rows, columns
            break
    top, left = int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1))
    box = image[:, top : top + h, left : left + w].double() / 255
    result = torch.zeros(channels, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * h / height - 0.5, 0), h - 1)
            x = min(max((column + 0.5) * w / width - 0.5, 0), w - 1)
            for i, share in ((int(y), 1 - y % 1), (min(int(y) + 1, h - 1), y % 1)):
                for j, part in ((int(x), 1 - x % 1), (min(int(x) + 1, w - 1), x % 1)):
                    result[:, row, column] += share * part * box[:, i, j]
    return result.flip(2) if flip and draws[22] < 0.5 else result


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 6)])
@pytest.mark.parametrize("flip", [False, True])
def test_resized_crops_are_the_reference(shape, flip):
    images = torch.randint(0, 256, (12, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    index = torch.arange(12) * 7
    data = Data("crops", None, None, None, list("ab"), shape, (0.4,) * shape[0], (0.3,) * shape[0])  # type: ignore[arg-type]
    chosen = tiny.settings(shift=0, resized_crop=True, flip=flip, seed=3)
    (made,) = Classification(chosen, data).inputs(images, index, 5)
    slow = [slow_resized_crop(image, int(at), seed=3, epoch=5, flip=flip) for image, at in zip(images, index)]
    torch.testing.assert_close(made, ((torch.stack(slow) - 0.4) / 0.3).float(), rtol=0, atol=1e-4)
    assert not torch.equal(made, Classification(chosen, data).inputs(images, index, 6)[0])


def test_normalize_is_the_reference():
    images = torch.randint(0, 256, (3, 2, 4, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.5), (0.2, 0.3)
    expected = torch.stack(
        [(images[:, channel].double() / 255 - mean[channel]) / std[channel] for channel in (0, 1)], dim=1
    )
    torch.testing.assert_close(normalize(images, mean, std), expected.float())


@pytest.mark.gpu
def test_a_gpu_augments_alike():
    images, index = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8), torch.arange(64) * 10**9
    for mode in ("constant", "reflect"):
        here, there = (
            augment(images.to(device), index, seed=5, epoch=1, shift=4, mode=mode, flip=True).cpu()
            for device in ("cpu", "cuda")
        )
        assert torch.equal(here, there)
