"""Image datasets by name or folder, as splits ready to train on."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ...errors import DataError, UsageError, needs, suggest
from ...hashing import bits
from .datasets import Encoded, Images, Splits, Streamed, Texts, shape_of
from .folders import read_folder, read_hub

__all__ = ["KNOWN", "Data", "Images", "Streamed", "Texts", "load"]

# name: (where it is on the hub, folder of its Debian package)
_SOURCES: dict[str, tuple[str, str | None]] = {
    "fashion-mnist": ("zalando-datasets/fashion_mnist", "/usr/share/datasets/fashion-mnist"),
    "mnist": ("ylecun/mnist", None),
    "cifar10": ("uoft-cs/cifar10", None),
    "cifar100": ("uoft-cs/cifar100", None),
}
KNOWN = ("digits", *_SOURCES)
_DIGITS_TEST = 500  # test samples of digits, which come without a split
_CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_CIFAR100 = (0.5074, 0.4867, 0.4411), (0.2011, 0.1987, 0.2025)
_SUBSET, _VALIDATION, _NOISY, _NOISE, _HELD, _MEASURED = range(6)  # draws of the hash, one for each purpose


class Data(NamedTuple):
    """A data set. Pixels are bytes; `mean` and `std` are of pixels in [0, 1], per channel; texts have none."""

    name: str
    train: Images | Streamed | Texts
    val: Images | Streamed | Texts | None
    test: Images | Streamed | Texts
    classes: list[str]
    shape: tuple[int, ...]  # of a sample: C, H, W
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""  # about the splits, shown beside results


def load(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    val_fraction: float = 0.0,
    label_noise: float = 0.0,
    split_seed: int = 0,
    image_size: int | None = None,
    max_bytes: int = 2 << 30,
) -> Data:
    """Load image data; only requested samples are decoded.

    Args:
        name: one of `KNOWN`, a folder (parquet files in the Hugging Face layout, idx files, or train/CLASS/*.png with
            test/ or val/), or a name on the hub. Named data is looked for in `folder`, in the folder of its name under
            $DATAPRUNE_DATA, in its Debian package, on the hub.
        folder: where the named data is.
        train_size, test_size: samples of fixed random subsets. Digits have 500 test samples, or more if requested.
        val_fraction: share of these training samples that is split off for choices, in [0, 1).
        label_noise: share of the labels that are left to train on, replaced by classes drawn uniformly, the true one
            among them; validation and test labels stay as they are.
        split_seed: of subset, split and noise; not a run's seed, so that all runs of a comparison see the same data.
        image_size: bring images to squares of this side, by the shorter side and a centre crop.
        max_bytes: data that decodes to more than this is `Streamed`.
    """
    name, (train, test, classes) = _find(name, folder, test_size)
    train_index, note = torch.arange(len(train.labels)), ""
    if test is None:
        order = _permutation(len(train_index), split_seed, _HELD)
        train_index, test_index = _part(order, max(1, round(0.2 * len(order))), name)
        test = train
        note = f"{name} has no test split: a fixed random fifth of it, {len(test_index)} samples, is the test set"
    else:
        test_index = torch.arange(len(test.labels))
    train_index = train_index[choose(len(train_index), train_size, f"training samples of {name}", split_seed)]
    test_index = test_index[choose(len(test_index), test_size, f"test samples of {name}", split_seed)]
    train_index, val_index = hold_out(train_index, val_fraction, name, split_seed)
    shape = shape_of(train.items, image_size) if isinstance(train, Encoded) else _square(train, image_size)
    total = (len(train_index) + len(test_index) + (0 if val_index is None else len(val_index))) * math.prod(shape)

    def take(split: Encoded | Images, index: Int[Tensor, " k"]) -> Images | Streamed:
        if isinstance(split, Images):
            return _resize(split.subset(index), shape)
        streamed = Streamed(split.items, index, split.labels[index], shape, image_size is not None)
        return streamed.decoded() if total <= max_bytes else streamed

    training = take(train, train_index)
    mean, std = _CIFAR100 if (name, shape, len(classes)) == ("cifar100", (3, 32, 32), 100) else _moments(training)
    training.labels = noisy(training.labels, label_noise, len(classes), split_seed)
    val = None if val_index is None else take(train, val_index)
    return Data(name, training, val, take(test, test_index), classes, shape, mean, std, note)


def _find(name: str, folder: str | os.PathLike[str] | None, test_size: int | None) -> tuple[str, Splits]:
    """The name for results, and the splits."""
    if folder is not None:
        return name, _with_names(name, read_folder(Path(folder).expanduser()))
    if name == "digits":
        return name, _digits(max(_DIGITS_TEST, test_size or 0))
    if name in _SOURCES:
        hub, debian = _SOURCES[name]
        root = os.environ.get("DATAPRUNE_DATA")
        for place in (root and Path(root) / name, debian and Path(debian)):
            if place and place.is_dir():
                return name, _with_names(name, read_folder(place))
        elsewhere = f"no {name} here: give its folder, or set DATAPRUNE_DATA to the folder that holds {name}/"
        elsewhere += ", or install the Debian package dataset-fashion-mnist" if debian else ""
        try:
            return name, _with_names(name, read_hub(hub))
        except DataError as error:
            raise DataError(f"{error}; {elsewhere}") from error
    path = Path(name).expanduser()
    if path.is_file():
        raise UsageError(f"{name} is a file: give the folder that holds CLASS/*.png, parquet or idx files")
    if path.is_dir() or path.is_absolute() or name.startswith((".", "~")):
        return path.resolve().name, read_folder(path)
    message = suggest(name, KNOWN, what="data") + "; no folder of that name either"
    if name.count("/") != 1:  # a name on the hub is owner/name
        raise UsageError(message)
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(f"{message}; for a name on the hub: pip install -c constraints.txt -e '.[hf]'")
    return name, read_hub(name)


def _with_names(name: str, splits: Splits) -> Splits:
    return splits._replace(classes=_CLOTHES) if (name, len(splits.classes)) == ("fashion-mnist", 10) else splits


def _digits(test_size: int) -> Splits:
    with needs("digits come with scikit-learn", "cli", DataError):
        from sklearn.datasets import load_digits
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    samples = Images(images, torch.from_numpy(labels).long())
    # seed 0 whatever `split_seed` says: the test set is always the same, and a larger one contains it
    train, test = _part(_permutation(len(samples), 0, _HELD), test_size, "digits")
    return Splits(samples.subset(train), samples.subset(test), [str(number) for number in range(10)])


def _permutation(size: int, seed: int, draw: int) -> Int[Tensor, " n"]:
    """A fixed permutation from the hash: torch's may change between versions and devices."""
    return bits(seed, 0, torch.arange(size), draw).argsort(stable=True)


def _part(order: Int[Tensor, " n"], count: int, name: str) -> tuple[Int[Tensor, " m"], Int[Tensor, " k"]]:
    """All but the first `count` of an order, and the first `count`, each ascending."""
    if not 0 < count < len(order):
        raise DataError(f"{name}: {len(order)} samples are too few to split {count} of them off")
    return order[count:].sort().values, order[:count].sort().values


def choose(size: int, count: int | None, what: str, seed: int = 0) -> Int[Tensor, " k"]:
    """Draw a fixed random subset of `count` of `size` samples, all if None; ascending."""
    if count is None:
        return torch.arange(size)
    if count > size:
        raise DataError(f"there are only {size} {what}, {count} were requested: request fewer, or all")
    return _permutation(size, seed, _SUBSET)[:count].sort().values


def hold_out(
    index: Int[Tensor, " n"], share: float, name: str, seed: int = 0
) -> tuple[Int[Tensor, " m"], Int[Tensor, " v"] | None]:
    """Split a fixed random share off for validation; None where the share is 0."""
    if not share:
        return index, None
    order = index[_permutation(len(index), seed, _VALIDATION)]
    return _part(order, max(1, round(share * len(order))), name)


def noisy(labels: Int[Tensor, " n"], share: float, classes: int, seed: int = 0) -> Int[Tensor, " n"]:
    """Replace a fixed random share of the labels by classes drawn uniformly."""
    which = _permutation(len(labels), seed, _NOISY)[: round(share * len(labels))]
    return labels.index_put((which,), bits(seed, 0, which, _NOISE) % classes)


def _square(images: Images, size: int | None) -> tuple[int, int, int]:
    channels, height, width = images.images.shape[1:]
    return (channels, size or height, size or width)


def _resize(images: Images, shape: tuple[int, int, int]) -> Images:
    height, width = images.images.shape[2:]
    if (height, width) == shape[1:]:
        return images
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = images.images[:, :, top : top + side, left : left + side]
    return Images(torch.nn.functional.interpolate(cut, shape[1:], mode="bilinear", antialias=True), images.labels)


def _moments(samples: Images | Streamed) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of up to 10,000 samples, 1,000 if they must be decoded."""
    limit = 10_000 if isinstance(samples, Images) else 1_000
    sample = samples.subset(_permutation(len(samples), 0, _MEASURED)[:limit])
    images = sample.images if isinstance(sample, Images) else sample.decoded().images
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):  # counts are exact, a sum of floats would depend on the machine's threads
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float((share @ (values - mean[-1]) ** 2).sqrt()) or 1.0)  # or: one colour only
    return tuple(mean), tuple(std)
