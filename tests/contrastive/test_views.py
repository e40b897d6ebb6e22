"""Views against image-by-image references, and their random numbers."""

from __future__ import annotations

import colorsys
import itertools
import math
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dataprune.contrastive import Views
from dataprune.hashing import uniform

STILL = {"crop": (1.0, 1.0), "aspect": (1.0, 1.0), "flip": 0.0, "grey": 0.0}  # nothing changes


def batch(count: int = 12, channels: int = 3, height: int = 9, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def slow_view(image: Tensor, index: int, views: Views, *, seed: int, epoch: int, number: int) -> Tensor:
    """Cut, resize, mirror and grey, one after the other."""
    draws = [uniform(seed, epoch, torch.tensor(index), 32 * number + place).item() for place in range(32)]
    _, height, width = image.shape
    box = None
    for attempt in range(10):
        area = height * width * (views.crop[0] + (views.crop[1] - views.crop[0]) * draws[attempt])
        low, high = math.log(views.aspect[0]), math.log(views.aspect[1])
        ratio = math.exp(low + (high - low) * draws[10 + attempt])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= w <= width and 1 <= h <= height:
            box = h, w
            break
    if box is None:
        box = min(height, round(width / views.aspect[0])), min(width, round(height * views.aspect[1]))
    h, w = box
    top, left = int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1))
    cut = image[:, top : top + h, left : left + w].float() / 255
    result = F.interpolate(cut[None], (height, width), mode="bilinear", align_corners=False)[0]
    if draws[22] < views.flip:
        result = result.flip(2)
    if len(image) == 3 and draws[28] < views.grey:
        result = (0.299 * result[0] + 0.587 * result[1] + 0.114 * result[2]).expand(3, -1, -1)
    if views.mean is not None and views.std is not None:
        result = (result - torch.tensor(views.mean)[:, None, None]) / torch.tensor(views.std)[:, None, None]
    return result


# -- what is done ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 9, 9), {}),
        ((3, 32, 32), {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}),
        ((1, 28, 28), {"mean": [0.3], "std": [0.35]}),
        ((3, 12, 7), {"crop": (0.5, 1.0), "flip": 1.0}),
        ((3, 6, 30), {"crop": (0.9, 1.0)}),  # most boxes do not fit
        ((1, 30, 4), {"crop": (1.0, 1.0)}),  # none does
        ((2, 8, 8), {"grey": 0.0}),
    ],
)
def test_equals_cutting_resizing_mirroring_and_greying_each_image(shape: tuple, options: dict) -> None:
    images, index = batch(24, *shape), torch.arange(100, 124)
    views = Views(**options)
    for number, made in enumerate(views(images, index, seed=5, epoch=3)):
        wanted = [
            slow_view(image, int(i), views, seed=5, epoch=3, number=number)
            for image, i in zip(images, index, strict=True)
        ]
        torch.testing.assert_close(made, torch.stack(wanted), rtol=1e-4, atol=2e-5)


def test_nothing_to_do_leaves_the_image() -> None:
    images = batch()
    for view in Views(**STILL)(images, torch.arange(12), seed=0, epoch=0):
        torch.testing.assert_close(view, images / 255, rtol=0, atol=1e-5)
    mirrored = Views(**STILL | {"flip": 1.0})(images, torch.arange(12), seed=0, epoch=0)[0]
    torch.testing.assert_close(mirrored, images.flip(3) / 255, rtol=0, atol=1e-5)


def test_bytes_and_floating_point_are_alike() -> None:
    images, index = batch(), torch.arange(12)
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(
            Views()((images / 255).to(dtype), index, seed=0, epoch=0), Views()(images, index, seed=0, epoch=0)
        )


def test_the_papers_probabilities() -> None:
    images, index = batch(4000, 3, 4, 4), torch.arange(4000)
    view = Views(crop=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)(images, index, seed=0, epoch=0)[0]
    grey = ((view[:, 0] == view[:, 1]) & (view[:, 1] == view[:, 2])).flatten(1).all(1).float().mean()
    assert abs(float(grey) - 0.8) < 0.025
    still = Views(**STILL | {"flip": 0.5})(images, index, seed=0, epoch=0)[0]
    mirrored = (still - images.flip(3) / 255).abs().flatten(1).amax(1) < 1e-4
    assert abs(float(mirrored.float().mean()) - 0.5) < 0.03


def test_a_view_lies_within_its_image() -> None:
    images = batch(200, 3, 16, 16) // 2 + 64
    low, high = (images / 255).flatten(1).aminmax(dim=1)
    for view in Views(grey=0.0)(images, torch.arange(200), seed=0, epoch=0):
        assert (view.flatten(1).amin(1) >= low - 1e-5).all()
        assert (view.flatten(1).amax(1) <= high + 1e-5).all()


def test_images_of_one_channel_cannot_become_greyer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)  # not even asked for
    images, index = batch(channels=1), torch.arange(12)
    plain = Views(grey=0.0)(images, index, seed=0, epoch=0)
    for views in (Views(), Views(grey=1.0)):
        assert all(torch.equal(view, other) for view, other in zip(views(images, index, seed=0, epoch=0), plain))


# -- random numbers --------------------------------------------------------------------------------------------------


def test_a_sample_has_the_same_views_in_any_batch() -> None:
    images, index = batch(), torch.arange(50, 62)
    whole = Views()(images, index, seed=1, epoch=2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for rows in (*order.split(5), torch.tensor([3])):
        for view, other in zip(Views()(images[rows], index[rows], seed=1, epoch=2), whole, strict=True):
            torch.testing.assert_close(view, other[rows], rtol=0, atol=1e-6)
    again = Views()(images, index.int(), seed=1, epoch=2)
    assert all(torch.equal(view, other) for view, other in zip(again, whole, strict=True))


def test_views_differ_in_everything_they_depend_on() -> None:
    # large enough for no box to be drawn twice
    images, index = batch(1, 3, 96, 96).expand(12, -1, -1, -1), torch.arange(12)
    made = [*Views()(images, index, seed=0, epoch=0)]
    made += [*Views()(images, index, seed=1, epoch=0), *Views()(images, index, seed=0, epoch=1)]
    made += [Views().view(images, index, seed=0, epoch=0, number=2)]
    flat = torch.cat(made).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat) == 84


def test_global_random_state_is_neither_read_nor_written() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]
    first = Views()(batch(), torch.arange(12), seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert random.getstate() == before[2]
    torch.manual_seed(1)
    second = Views()(batch(), torch.arange(12), seed=0, epoch=0)
    assert all(torch.equal(view, other) for view, other in zip(first, second, strict=True))


def test_the_images_given_stay_as_they_are() -> None:
    images = (batch() / 255).clone()
    before = images.clone()
    Views(mean=[0.5] * 3, std=[0.5] * 3)(images, torch.arange(12), seed=0, epoch=0)
    assert torch.equal(images, before)


# -- colours, with kornia --------------------------------------------------------------------------------------------


def test_colours_change_as_image_by_image() -> None:
    pytest.importorskip("kornia")
    images, index = batch(), torch.arange(12)
    views = Views(**STILL | {"jitter": 0.5, "strength": 0.5})
    made = views.view(images, index, seed=0, epoch=0, number=0)
    gates = 0
    for sample in range(12):
        draws = [uniform(0, 0, index[sample], place).item() for place in range(32)]
        wanted = images[sample : sample + 1] / 255
        if draws[27] < 0.5:
            gates += 1
            wanted = (wanted * (1 + 0.4 * (2 * draws[23] - 1))).clamp(0, 1)
            luma = 0.299 * wanted[:, 0] + 0.587 * wanted[:, 1] + 0.114 * wanted[:, 2]
            factor = 1 + 0.4 * (2 * draws[24] - 1)
            wanted = (factor * wanted + (1 - factor) * luma.mean()).clamp(0, 1)
            luma = 0.299 * wanted[:, 0] + 0.587 * wanted[:, 1] + 0.114 * wanted[:, 2]
            factor = 1 + 0.4 * (2 * draws[25] - 1)
            wanted = (factor * wanted + (1 - factor) * luma[:, None]).clamp(0, 1)
            wanted = turned(wanted[0], 0.1 * (2 * draws[26] - 1))[None]
        torch.testing.assert_close(made[sample], wanted[0], rtol=0, atol=1e-4)
    assert 0 < gates < 12


def test_images_of_one_channel_change_in_brightness_and_contrast() -> None:
    pytest.importorskip("kornia")
    images, index = batch(channels=1), torch.arange(12)
    made = Views(**STILL | {"jitter": 1.0, "strength": 0.5}).view(images, index, seed=0, epoch=0, number=0)
    for sample in range(12):
        draws = [uniform(0, 0, index[sample], place).item() for place in range(32)]
        wanted = (images[sample] / 255 * (1 + 0.4 * (2 * draws[23] - 1))).clamp(0, 1)
        factor = 1 + 0.4 * (2 * draws[24] - 1)
        wanted = (factor * wanted + (1 - factor) * wanted.mean()).clamp(0, 1)
        torch.testing.assert_close(made[sample], wanted, rtol=0, atol=1e-5)


def turned(image: Tensor, circle: float) -> Tensor:
    """The hue of every pixel turned by a share of the circle."""
    result = image.clone()
    for row, column in itertools.product(range(image.shape[1]), range(image.shape[2])):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
        result[:, row, column] = torch.tensor(colorsys.hsv_to_rgb((hue + circle) % 1, saturation, value))
    return result


def test_simclrs_set_is_repeatable_and_within_range() -> None:
    pytest.importorskip("kornia")
    images, index = batch(64), torch.arange(64)
    state = torch.get_rng_state()
    pair, other = (Views.simclr()(images, index, seed=0, epoch=0) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first, second) for first, second in zip(pair, other, strict=True))
    assert all(view.min() >= 0 and view.max() <= 1 for view in pair)
    part = Views.simclr()(images[10:20], index[10:20], seed=0, epoch=0)[1]
    torch.testing.assert_close(part, pair[1][10:20], rtol=0, atol=1e-5)


def test_missing_kornia_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ImportError, match=r"pip install -c constraints.txt -e '\.\[contrastive\]'"):
        Views.simclr()(batch(), torch.arange(12), seed=0, epoch=0)
    Views()(batch(), torch.arange(12), seed=0, epoch=0)  # the paper's set does without


# -- wrong calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0.0, 1.0)}, "crop"),
        ({"crop": (0.5, 0.2)}, "crop"),
        ({"crop": (0.5, 1.2)}, "crop"),
        ({"aspect": (0.0, 1.0)}, "aspect"),
        ({"flip": 1.5}, "flip"),
        ({"grey": -0.1}, "grey"),
        ({"jitter": 2}, "jitter"),
        ({"strength": 2.0}, "strength"),
        ({"mean": [0.5]}, "give both"),
    ],
)
def test_wrong_options_raise(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(**options)


def test_wrong_batches_raise() -> None:
    with pytest.raises(ValueError, match="12 images but 11 indices"):
        Views()(batch(), torch.arange(11), seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        Views()(batch()[0], torch.arange(3), seed=0, epoch=0)
    with pytest.raises(TypeError, match="int64"):
        Views()(batch().long(), torch.arange(12), seed=0, epoch=0)
    with pytest.raises(ValueError, match="neither grey nor RGB"):
        Views()(batch(channels=4), torch.arange(12), seed=0, epoch=0)
    with pytest.raises(ValueError, match="`mean` has 3"):
        Views(mean=[0.5] * 3, std=[0.5] * 3)(batch(channels=1), torch.arange(12), seed=0, epoch=0)
