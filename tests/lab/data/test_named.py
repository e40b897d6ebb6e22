import gzip
import io
import json
import pickle
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from dataprune.errors import DataError, UsageError
from dataprune.lab.data.folders import read_idx
from dataprune.lab.data.named import Images, Streamed, load

RANDOM = np.random.default_rng(0)


def png(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pictures(count, height=6, width=6, channels=3):
    shape = (count, height, width, channels) if channels > 1 else (count, height, width)
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def write_parquet(path, images, labels, names=None, column="label"):
    """`images`: arrays to encode, or bytes as they are."""
    cells = [{"bytes": cell if isinstance(cell, bytes) else png(cell), "path": None} for cell in images]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(cells, kind), column: pyarrow.array(labels, pyarrow.int64())})
    if names:
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def write_images(root, images, labels, kind="PNG"):
    for at, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{at:03}.{kind.lower()}").write_bytes(png(pixels, kind))


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_idx(folder, train=7, test=4, pack=bytes, suffix=""):
    for word, count in (("train", train), ("t10k", test)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        (folder / f"{word}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(pictures(count, channels=1))))
        (folder / f"{word}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))


# -- the named sets -----------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_with_a_fixed_test_set():
    from sklearn.datasets import load_digits

    data, other = load("digits"), load("digits", split_seed=1, train_size=100)
    assert (len(data.train), len(data.test), data.val, data.shape) == (1297, 500, None, (1, 8, 8))
    assert torch.equal(data.test.images, other.test.images) and torch.equal(data.test.labels, other.test.labels)
    assert data.classes == [str(number) for number in range(10)] and data.train.labels.dtype == torch.int64
    pixels, labels = load_digits(return_X_y=True)
    expected = sorted((int(y), *np.round(x * 255 / 16).astype(int)) for x, y in zip(pixels, labels, strict=True))
    rows = [
        (int(y), *x.flatten().tolist()) for part in (data.train, data.test) for x, y in zip(part.images, part.labels)
    ]
    assert sorted(rows) == expected
    images = data.train.images.double() / 255
    assert data.mean[0] == pytest.approx(float(images.mean()))
    assert data.std[0] == pytest.approx(float(images.std(unbiased=False)))


def test_digits_can_have_a_larger_test_set() -> None:
    default, larger = load("digits"), load("digits", test_size=1000)
    assert (len(larger.train), len(larger.test)) == (797, 1000)
    rows = {part: {bytes(image.flatten().tolist()) for image in part_images.images} for part, part_images in
            (("test", default.test), ("larger", larger.test))}  # fmt: skip
    assert rows["test"] <= rows["larger"]


def test_fashion_mnist(fashion_mnist_folder):
    data = load("fashion-mnist", train_size=20_000, val_fraction=0.1, label_noise=0.2)
    assert (len(data.train), len(data.val), len(data.test), data.shape) == (18_000, 2_000, 10_000, (1, 28, 28))
    assert data.classes[9] == "Ankle boot"
    raw = gzip.decompress((fashion_mnist_folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert np.array_equal(data.test.images[:, 0].numpy(), np.frombuffer(raw, np.uint8)[16:].reshape(-1, 28, 28))
    raw = gzip.decompress((fashion_mnist_folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert data.test.labels.tolist() == list(raw[8:])


def test_real_parquet_sets(data_folder, monkeypatch):
    monkeypatch.setenv("DATAPRUNE_DATA", str(data_folder))
    data = load("cifar100", train_size=300, test_size=50, val_fraction=0.5)
    assert (len(data.train), len(data.val), len(data.test), data.shape) == (150, 150, 50, (3, 32, 32))
    assert data.classes[:2] == ["apple", "aquarium_fish"] and len(data.classes) == 100
    assert (data.mean, data.std) == ((0.5074, 0.4867, 0.4411), (0.2011, 0.1987, 0.2025))
    data = load("mnist", train_size=200, test_size=50)
    assert (len(data.train), len(data.test), data.shape) == (200, 50, (1, 28, 28))
    assert data.mean[0] == pytest.approx(0.1307, abs=0.02) and data.std[0] == pytest.approx(0.3081, abs=0.03)
    same = load(str(data_folder / "mnist"), train_size=200, test_size=50)
    assert same.name == "mnist" and torch.equal(same.train.images, data.train.images)


# -- subsets, validation, noise -----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(size=st.integers(20, 1297), fraction=st.sampled_from([0.05, 0.25, 0.5]))
def test_a_split_takes_every_sample_of_the_subset_once(size, fraction):
    whole = load("digits", train_size=size)
    data = load("digits", train_size=size, val_fraction=fraction)
    assert len(data.val) == round(fraction * size) and len(data.train) + len(data.val) == size
    both = torch.cat([data.train.images, data.val.images]).flatten(1)
    assert sorted(both.tolist()) == sorted(whole.train.images.flatten(1).tolist())


def test_every_load_sees_the_same_subset_and_leaves_global_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    options = dict(train_size=300, val_fraction=0.2, label_noise=0.3)
    first, again, other = load("digits", **options), load("digits", **options), load("digits", **options, split_seed=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    for split in ("train", "val"):
        part, repeated, reseeded = (getattr(data, split) for data in (first, again, other))
        assert torch.equal(part.images, repeated.images) and torch.equal(part.labels, repeated.labels)
        assert not torch.equal(part.images, reseeded.images)


def test_noise_replaces_its_share_of_the_training_labels_alone():
    clean, noisy = (load("digits", val_fraction=0.1, label_noise=share) for share in (0.0, 0.4))
    assert torch.equal(clean.train.images, noisy.train.images)
    changed = (clean.train.labels != noisy.train.labels).double().mean()
    assert changed == pytest.approx(0.4 * 0.9, abs=0.05)  # a tenth of the draws hits the true class
    assert torch.equal(clean.val.labels, noisy.val.labels) and torch.equal(clean.test.labels, noisy.test.labels)
    drawn = load("digits", label_noise=1.0).train.labels
    assert torch.bincount(drawn, minlength=10).min() > 90  # of 130 expected
    assert (drawn == load("digits").train.labels).double().mean() == pytest.approx(0.1, abs=0.03)


# -- idx ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz")])
def test_idx_files_plain_and_packed(tmp_path, pack, suffix):
    write_idx(tmp_path, pack=pack, suffix=suffix)
    data = load("mnist", folder=tmp_path)
    assert (len(data.train), len(data.test), data.shape, data.classes) == (7, 4, (1, 6, 6), ["0", "1", "2"])
    raw = (tmp_path / f"train-images-idx3-ubyte{suffix}").read_bytes()
    raw = gzip.decompress(raw) if suffix else raw
    assert np.array_equal(data.train.images.flatten().numpy(), np.frombuffer(raw, np.uint8)[16:])
    assert load(str(tmp_path), image_size=4).shape == (1, 4, 4)


def test_broken_idx_files_are_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    for content, message in {
        b"": "begins with nothing",
        b"\x89PNG": "begins with 89 50 4e 47",
        b"\0\0\x0d\x01\0\0\0\0": "begins with 00 00 0d 01",  # floats
        idx(pictures(3, channels=1))[:-1]: "has 123 bytes where 124 belong",
        idx(pictures(3, channels=1)) + b"\0": "has 125 bytes where 124 belong",
        gzip.compress(idx(pictures(3, channels=1)))[:-9]: "ended before",
    }.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_idx(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(6, np.uint8)))
    with pytest.raises(DataError, match="7 images but 6 labels"):
        load(str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros((7, 1), np.uint8)))
    with pytest.raises(DataError, match="2 dimensions where labels have 1"):
        load(str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no train-labels-idx1-ubyte"):
        load(str(tmp_path))


# -- parquet ------------------------------------------------------------------------------------------------------


def test_parquet_in_parts_with_and_without_class_names(tmp_path):
    images, labels = pictures(9), [0, 1, 2] * 3
    write_parquet(tmp_path / "a/data/train-00000-of-00002.parquet", images[:4], labels[:4], ["cat", "dog", "owl"])
    write_parquet(tmp_path / "a/data/train-00001-of-00002.parquet", images[4:], labels[4:], ["cat", "dog", "owl"])
    write_parquet(tmp_path / "a/data/test-00000-of-00001.parquet", images[:2], labels[:2], ["cat", "dog", "owl"])
    data = load(str(tmp_path / "a"))
    assert (data.name, data.classes, data.shape, data.note) == ("a", ["cat", "dog", "owl"], (3, 6, 6), "")
    assert np.array_equal(data.train.images.numpy(), images.transpose(0, 3, 1, 2))
    assert data.train.labels.tolist() == labels and data.test.labels.tolist() == [0, 1]
    image, label = data.train[5]
    assert torch.equal(image, data.train.images[5]) and label == 2 and isinstance(label, int)
    expected = images.reshape(-1, 3).astype(float) / 255
    assert data.mean == pytest.approx(expected.mean(0)) and data.std == pytest.approx(expected.std(0))
    write_parquet(tmp_path / "b/train.parquet", images, labels, column="fine_label")
    write_parquet(tmp_path / "b/validation.parquet", images[:1], labels[:1], column="fine_label")
    assert load(str(tmp_path / "b")).classes == ["0", "1", "2"]
    (tmp_path / "a/data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="lacks some of the 2 parts of train"):
        load(str(tmp_path / "a"))


def test_only_the_chosen_samples_are_decoded(tmp_path):
    images = list(pictures(20))
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 10)
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 10)
    subset = load(str(tmp_path), train_size=12).train.images
    kept = {tuple(image.flatten().tolist()) for image in subset}
    broken = [
        png(cell) if tuple(cell.transpose(2, 0, 1).flatten().tolist()) in kept else png(cell)[:60] for cell in images
    ]
    write_parquet(tmp_path / "train.parquet", broken, [0, 1] * 10)
    assert torch.equal(load(str(tmp_path), train_size=12).train.images, subset)
    with pytest.raises(DataError, match=r"cannot decode image \d+ of"):
        load(str(tmp_path))


def test_withheld_labels_and_missing_test_sets(tmp_path):
    images = pictures(10)
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 5)
    data = load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (8, 2) and "no test split" in data.note and "2 samples" in data.note
    assert torch.equal(data.test.images, load(str(tmp_path), label_noise=1.0).test.images)
    write_parquet(tmp_path / "test.parquet", images[:3], [-1] * 3)
    write_parquet(tmp_path / "validation.parquet", images[:4], [1] * 4)
    data = load(str(tmp_path))
    assert (len(data.train), data.test.labels.tolist(), data.note) == (10, [1] * 4, "")


def test_broken_parquet_files_are_named(tmp_path):
    path = tmp_path / "train-0.parquet"
    write_parquet(path, pictures(4), [0, 1, 2, 7], ["a", "b", "c"])
    with pytest.raises(DataError, match="labels from 0 to 7, but there are 3 classes"):
        load(str(tmp_path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot read .*train-0\.parquet"):
        load(str(tmp_path))
    write_parquet(path, [], [])
    with pytest.raises(DataError, match="without rows"):
        load(str(tmp_path))
    for table, message in (
        ({"text": ["a"], "label": [0]}, "no image column among text, label"),
        ({"image": [b"x"], "y": [0]}, "no label column among image, y"),
        ({"image": [b"x"], "label": ["cat"]}, "must hold class ids, not string"),
        ({"image": ["x"], "label": [0]}, "must hold encoded images"),
        ({"image": [b"x", None], "label": [0, 1]}, "lacks its image or label"),
        ({"image": [b"x"] * 9, "label": [0] * 9}, "cannot read image 0 of .*: it is no image"),
    ):
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        with pytest.raises(DataError, match=message):
            load(str(tmp_path))
    path.rename(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"name its files train-\*\.parquet"):
        load(str(tmp_path))


# -- image folders, streaming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folders_with_and_without_splits(tmp_path, channels):
    images, labels = pictures(12, 5, 7, channels), [0] * 7 + [1] * 5  # in the order in which a folder is read
    write_images(tmp_path / "a/train", images, labels)
    write_images(tmp_path / "a/val", images[:3], labels[:3])
    data = load(str(tmp_path / "a"))
    assert (data.classes, data.shape, len(data.test)) == (["class0", "class1"], (channels, 5, 7), 3)
    assert np.array_equal(data.train.images.numpy(), images.reshape(12, 5, 7, channels).transpose(0, 3, 1, 2))
    assert data.train.labels.tolist() == labels
    write_images(tmp_path / "b", images, labels)
    data = load(str(tmp_path / "b"), train_size=6)
    assert (len(data.train), len(data.test)) == (6, 2) and "no test split" in data.note


def test_grey_among_colour_is_colour(tmp_path):
    write_images(tmp_path, [*pictures(9), pictures(1, channels=1)[0]], [0] * 10)
    assert load(str(tmp_path)).shape == (3, 6, 6)


def test_streamed_is_what_would_be_in_memory(tmp_path):
    images, labels = pictures(10, 6, 6), [0, 1] * 5
    write_images(tmp_path / "train", images, labels)
    write_images(tmp_path / "test", images[:2], labels[:2])
    memory, stream = load(str(tmp_path), train_size=8), load(str(tmp_path), train_size=8, max_bytes=0)
    assert isinstance(memory.train, Images) and isinstance(stream.train, Streamed) and isinstance(stream.test, Streamed)
    assert (memory.mean, memory.shape) == (stream.mean, stream.shape)
    order = torch.tensor([5, 0, 3])
    for held, streamed in ((memory.train, stream.train), (memory.train.subset(order), stream.train.subset(order))):
        streamed = pickle.loads(pickle.dumps(streamed))
        assert len(held) == len(streamed) and torch.equal(held.labels, streamed.labels)
        assert all(
            torch.equal(held[at][0], streamed[at][0]) and held[at][1] == streamed[at][1] for at in range(len(held))
        )


def test_streamed_through_a_spawned_worker(tmp_path):
    write_parquet(tmp_path / "train.parquet", pictures(10), [0, 1] * 5)
    train = load(str(tmp_path), max_bytes=0).train
    loader = DataLoader(train, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert images.dtype == torch.uint8 and torch.equal(images, train.decoded().images)
    assert torch.equal(labels, train.labels)


def test_images_of_unequal_size_need_one_to_be_given(tmp_path):
    images = [*pictures(9, 12, 18), *pictures(1, 20, 8)]
    write_images(tmp_path / "train", images, [0] * 10)
    write_images(tmp_path / "test", images[:1], [0])
    with pytest.raises(DataError, match="is 8x20, others are 18x12: give image_size"):
        load(str(tmp_path))
    stream = load(str(tmp_path), image_size=6, max_bytes=0)
    data = load(str(tmp_path), image_size=6)
    assert data.shape == (3, 6, 6) and isinstance(data.train, Images)
    for at, pixels in enumerate(images):
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = Image.fromarray(pixels[top : top + side, left : left + side])
        expected = np.asarray(square.resize((6, 6), Image.Resampling.BILINEAR)).transpose(2, 0, 1).astype(int)
        # cut and resized at once, the filter sees pixels across the cut
        inner = np.s_[:, 1:-1, 1:-1]
        assert abs(data.train.images[at].numpy()[inner] - expected[inner]).max() <= 1
        assert torch.equal(stream.train[at][0], data.train.images[at])


def test_a_jpeg_is_decoded_small_but_alike(tmp_path):
    smooth = np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8)[..., None].repeat(3, 2)
    write_images(tmp_path, [smooth] * 5, [0] * 5, "JPEG")
    expected = np.asarray(Image.fromarray(smooth).resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    image = load(str(tmp_path), image_size=16).train.images[0].numpy()
    assert abs(image.astype(int) - expected).max() <= 6


def test_broken_images_are_named(tmp_path):
    write_images(tmp_path, pictures(10), [0] * 5 + [1] * 5)
    path = tmp_path / "class0/003.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cannot decode .*003\.png"):
        load(str(tmp_path))
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*003\.png: it is no image"):
        load(str(tmp_path))
    path.unlink()
    stream = load(str(tmp_path), max_bytes=0).train
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="No such file"):
        stream[0]
    with pytest.raises(DataError, match="no images in"):
        load(str(tmp_path))


def test_classes_that_are_not_trained_on(tmp_path):
    write_images(tmp_path / "train", pictures(2), [0, 1])
    write_images(tmp_path / "test", pictures(2), [1, 2])
    with pytest.raises(DataError, match="classes that the training split lacks: class2"):
        load(str(tmp_path))


# -- names and options --------------------------------------------------------------------------------------------


def test_images_move_and_check_their_lengths():
    images = Images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3))
    moved = images.to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta" and images.images.device.type == "cpu"
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        Images(images.images, torch.arange(2))


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setenv("DATAPRUNE_DATA", str(tmp_path))
    (tmp_path / "table.csv").write_text("a,b\n")
    for name, error, message in (
        ("digitz", UsageError, "unknown data 'digitz'; did you mean 'digits'"),
        ("Fashion_MNIST", UsageError, "did you mean 'fashion-mnist'"),
        ("owner/name", UsageError, r"for a name on the hub: pip install -c constraints.txt -e '\.\[hf\]'"),
        ("cifar100", DataError, r"pip install -c constraints.txt -e '\.\[hf\]'; no cifar100 here: .*DATAPRUNE_DATA"),
        ("./absent", DataError, "no folder absent"),
        (str(tmp_path / "table.csv"), UsageError, "is a file: give the folder that holds"),
        (str(tmp_path), DataError, "nothing to train on in"),
    ):
        with pytest.raises(error, match=message) as caught:
            load(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no folder"):
        load("mnist", folder=tmp_path / "absent")


def test_a_known_name_missing_on_the_hub(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

    def refuse(name):
        raise ConnectionError(f"no way to {name}")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setenv("DATAPRUNE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"no way to uoft-cs/cifar100.*; no cifar100 here: .*set DATAPRUNE_DATA"):
        load("cifar100")


def test_a_name_on_the_hub_goes_through_datasets(tmp_path, monkeypatch):
    images, labels = pictures(6), [0, 1] * 3
    write_parquet(tmp_path / "train.parquet", images, labels, ["cat", "dog"])
    table = pyarrow.parquet.read_table(tmp_path / "train.parquet")

    class Split:
        def with_format(self, kind):
            return {"arrow": self}[kind]

        def __getitem__(self, rows):
            assert rows == slice(None)
            return table

    class Hub:
        @staticmethod
        def load_dataset(name):
            if name != "owner/pets":
                raise RuntimeError(f"{name} does not exist\nand a second line")
            return {"train": Split(), "valid": Split()}

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "datasets", Hub)
    data = load("owner/pets", test_size=3)
    assert (data.name, data.classes, len(data.test)) == ("owner/pets", ["cat", "dog"], 3)
    assert np.array_equal(data.train.images.numpy(), images.transpose(0, 3, 1, 2))
    with pytest.raises(DataError, match=r"from the hub: owner/cars does not exist$"):
        load("owner/cars")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 1298}, "only 1297 training samples of digits, 1298 were requested"),
        ({"test_size": 1797}, "digits: 1797 samples are too few to split 1797 of them off"),
        ({"train_size": 1, "val_fraction": 0.5}, "too few to split"),
    ],
)
def test_subsets_that_are_larger_than_the_data(options, message):
    with pytest.raises(DataError, match=message):
        load("digits", **options)
