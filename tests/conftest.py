"""What every test may use: the folders of real data, and the rule for tests that need a GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from pool import Pool

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts it

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # of processes that tests start: tensors are tiny, and workers share cores
torch.set_num_threads(1)
hypothesis.settings.register_profile("dataprune", deadline=None)  # a loaded machine is no failure
hypothesis.settings.load_profile("dataprune")


def needs_data(folder: Path, remedy: str) -> Path:
    """Returns the folder, or skips the test; under DATAPRUNE_REQUIRE_DATA=1, where nothing may skip, fails it."""
    if folder.is_dir():
        return folder
    missing = f"no folder {folder}: {remedy}"
    if os.environ.get("DATAPRUNE_REQUIRE_DATA") == "1":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with mnist/, cifar100/ and glue/ in the Hugging Face parquet layout."""
    return needs_data(
        Path(os.environ.get("DATAPRUNE_DATA") or "$DATAPRUNE_DATA"), "set DATAPRUNE_DATA to the data sets"
    )


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """The folder with Fashion-MNIST's four gzipped idx files."""
    return needs_data(FASHION_MNIST, "install the Debian package dataset-fashion-mnist")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker a core for the whole suite; tests that are named run in this process, which starts sooner."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return 0 if named else min(os.cpu_count() or 1, 4)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Three processes for distributed tests; `pool.run(function, world_size=2)` uses the first two."""
    with Pool(3) as running:
        yield running


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a BERT with two layers of 16 units and random weights, dropout and all."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip(
        "transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'"
    )
    folder = tmp_path_factory.mktemp("encoder")
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "and", "is", "not", "good", "bad"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *".bcdefghijklmnopqrstuvwxyz"]
    tokens = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **size))
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return str(folder)
