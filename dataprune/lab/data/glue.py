"""GLUE tasks: sentences as tokens, and metrics."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, UsageError
from .datasets import Texts
from .folders import features_of, first_line, load_from_hub, read_table
from .named import Data, choose, hold_out, noisy

_HUB = "nyu-mll/glue"


class Glue(NamedTuple):
    """A task: its text columns, its metrics (the first is compared), and the split to test on, which has labels."""

    columns: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    test: str = "validation"


# Source: Wang et al. 2019, arXiv:1804.07461, Table 1
GLUE = {
    "cola": Glue(("sentence",), ("matthews",)),
    "sst2": Glue(("sentence",)),
    "mrpc": Glue(("sentence1", "sentence2"), ("accuracy", "f1")),
    "stsb": Glue(("sentence1", "sentence2"), ("pearson", "spearman")),
    "qqp": Glue(("question1", "question2"), ("accuracy", "f1")),
    "mnli": Glue(("premise", "hypothesis"), test="validation_matched"),
    "qnli": Glue(("question", "sentence")),
    "rte": Glue(("sentence1", "sentence2")),
    "wnli": Glue(("sentence1", "sentence2")),
}


def load(
    name: str,
    model: str,
    *,
    folder: str | None = None,
    max_length: int = 128,
    train_size: int | None = None,
    test_size: int | None = None,
    val_fraction: float = 0.0,
    label_noise: float = 0.0,
) -> Data:
    """Load one of the tasks `GLUE` as the tokens of a model, a folder or hub name; arguments as for `named.load`.

    The folder holds the task's parquet files; by default it is glue/NAME under $DATAPRUNE_DATA, else the hub is asked.
    """
    title = f"glue/{name}"
    task, splits = GLUE[name], _splits(name, folder)
    train, test = _columns(splits, "train", task), _columns(splits, task.test, task)
    names = _class_names(splits["train"])
    index = choose(len(train[-1]), train_size, f"training samples of {title}")
    test_index = choose(len(test[-1]), test_size, f"test samples of {title}")
    index, val_index = hold_out(index, val_fraction, title)

    def texts(columns: list[Any], index: Tensor) -> Texts:
        rows = index.tolist()
        *sentences, labels = ([column[row] for row in rows] for column in columns)
        kind = torch.int64 if names else torch.float32
        return Texts(_tokens(model, max_length, sentences), torch.tensor(labels, dtype=kind))

    training = texts(train, index)
    if names:
        training.labels = noisy(training.labels, label_noise, len(names))
    return Data(
        title,
        training,
        None if val_index is None else texts(train, val_index),
        texts(test, test_index),
        names,
        tuple(training.samples.shape[1:]),
        (),
        (),
        f"{title}: tested on the split {task.test}, as the labels of its test split are not public",
    )


def metrics(name: str, outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute all metrics of a task from logits (N, C), or predictions (N,) of a regression, and labels (N,).

    "f1" is that of class 1. A correlation with constant predictions is 0.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import f1_score, matthews_corrcoef

    predicted, target = outputs.float().cpu().numpy(), labels.cpu().numpy()
    if predicted.ndim == 2:
        predicted = predicted.argmax(axis=1)
    constant = bool((predicted == predicted[0]).all())
    known: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: (predicted == target).mean(),
        "matthews": lambda: matthews_corrcoef(target, predicted),
        "f1": lambda: f1_score(target, predicted, zero_division=0.0),  # type: ignore[arg-type]
        "pearson": lambda: 0.0 if constant else pearsonr(predicted, target)[0],
        "spearman": lambda: 0.0 if constant else spearmanr(predicted, target)[0],
    }
    return {metric: float(known[metric]()) for metric in GLUE[name].metrics}


@cache
def tokenizer(model: str) -> Any:
    """Load the tokenizer of a model, padding on the right; UsageError if there is none."""
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise unknown_model(model, error) from error
    loaded.padding_side = "right"
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token
    return loaded


def unknown_model(model: str, error: Exception) -> UsageError:
    """The error for a model that transformers cannot load."""
    return UsageError(f"--model {model} is neither a model folder nor available from the hub ({first_line(error)})")


def _tokens(model: str, max_length: int, sentences: list[list[str]]) -> Tensor:
    """(N, 3, S) int32: token ids, attention mask, and token type ids."""
    encoded = tokenizer(model)(
        *sentences, truncation=True, max_length=max_length, padding="longest", return_tensors="np"
    )
    ids = encoded["input_ids"]
    types = encoded.get("token_type_ids", np.zeros_like(ids))
    return torch.from_numpy(np.stack([ids, encoded["attention_mask"], types], axis=1).astype(np.int32))


def _splits(name: str, folder: str | None) -> dict[str, Any]:
    """Arrow tables by split, from the given folder, the one under $DATAPRUNE_DATA, or the hub."""
    root = os.environ.get("DATAPRUNE_DATA")
    place = Path(folder).expanduser() if folder else Path(root) / "glue" / name if root else None
    if place is not None and (folder or place.is_dir()):
        paths = sorted(place.glob("*.parquet"))
        if not paths:
            raise DataError(f"no parquet files in {place}")
        by_split = groupby(paths, key=lambda path: path.stem.split("-")[0])
        return {split: read_table(list(shards)) for split, shards in by_split}
    remedy = "give its folder with --data-folder, or set DATAPRUNE_DATA to the folder that holds glue/"
    try:
        return {split: part.data.table for split, part in load_from_hub(_HUB, name).items()}
    except DataError as error:
        raise DataError(f"cannot fetch glue/{name} ({error}): {remedy}") from error


def _columns(splits: dict[str, Any], split: str, task: Glue) -> list[Any]:
    """The text columns, and the labels."""
    if split not in splits:
        raise DataError(f"there is no split {split}, only {', '.join(splits)}")
    columns = (*task.columns, "label")
    missing = [name for name in columns if name not in splits[split].column_names]
    if missing:
        raise DataError(f"the split {split} has no column {missing[0]}, only {', '.join(splits[split].column_names)}")
    lists = [splits[split][name].to_pylist() for name in columns]
    for name, values in zip(columns, lists):
        kind, expected = (str, "text") if name != "label" else ((int, float), "a number: class ids from 0, or scores")
        row = next((row for row, value in enumerate(values) if not isinstance(value, kind)), None)
        if row is not None:
            raise DataError(f"the split {split} has {values[row]!r} as {name} in row {row}: it must be {expected}")
    labels = lists[-1]
    if not labels or (isinstance(labels[0], int) and min(labels) < 0):
        raise DataError(f"the split {split} has no labels (-1 marks a missing one): give a split with labels")
    return lists


def _class_names(table: Any) -> list[str]:
    """Class names from the table's features; none for a regression."""
    import pyarrow as pa

    if pa.types.is_floating(table.schema.field("label").type):
        return []
    names = features_of(table.schema).get("label", {}).get("names")
    return names or [str(label) for label in range(1 + max(table["label"].to_pylist()))]
