"""The GLUE tasks: their sentences as tokens, and their metrics."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, UsageError
from ..training.settings import Settings
from .datasets import Texts
from .named import Data, choose, hold_out, noisy

_HUB = "nyu-mll/glue"


class Glue(NamedTuple):
    """A task: columns of its sentences, its metrics, the first of which is compared, and the split that is tested on.

    Labels of GLUE's own test split are not public; as everywhere, the validation split takes its place.
    """

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


def load(settings: Settings) -> Data:
    """A GLUE task as tokens of the settings' model.

    It is read from `--data-folder`, from glue/TASK under $DATAPRUNE_DATA, or from the hub.

    Raises:
        UsageError: if the model has no tokenizer, or a subset is out of range.
        DataError: if the data is missing or has other columns.
    """
    name = settings.glue
    task, splits = GLUE[name], _splits(name, settings.data_folder)
    train, test = _columns(splits, "train", task), _columns(splits, task.test, task)
    names = _class_names(splits["train"])
    index = choose(len(train[-1]), settings.train_size, f"training samples of {settings.task}")
    rest = choose(len(test[-1]), settings.test_size, f"test samples of {settings.task}")
    index, val = hold_out(index, settings.val_fraction, settings.task)

    def held(columns: list[Any], at: Tensor) -> Texts:
        rows = at.tolist()
        *sentences, labels = ([column[row] for row in rows] for column in columns)
        kind = torch.int64 if names else torch.float32
        return Texts(_tokens(settings, sentences), torch.tensor(labels, dtype=kind))

    training = held(train, index)
    if names:
        training.labels = noisy(training.labels, settings.label_noise, len(names))
    return Data(
        settings.task,
        training,
        None if val is None else held(train, val),
        held(test, rest),
        names,
        tuple(training.tokens.shape[1:]),
        (),
        (),
        f"{settings.task}: tested on the split {task.test}, as the labels of its test split are not public",
    )


def metrics(name: str, outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """All metrics of a task.

    Args:
        name: of the task.
        outputs: logits (N, C), or predictions (N,) of a regression.
        labels: (N,).
    Returns:
        By name; "f1" is that of class 1. A correlation with constant predictions is 0.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import f1_score, matthews_corrcoef

    made, wanted = outputs.float().cpu().numpy(), labels.cpu().numpy()
    if made.ndim == 2:
        made = made.argmax(axis=1)
    constant = bool((made == made[0]).all())
    known: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: (made == wanted).mean(),
        "matthews": lambda: matthews_corrcoef(wanted, made),
        "f1": lambda: f1_score(wanted, made, zero_division=0.0),  # type: ignore[arg-type]
        "pearson": lambda: 0.0 if constant else pearsonr(made, wanted)[0],
        "spearman": lambda: 0.0 if constant else spearmanr(made, wanted)[0],
    }
    return {metric: float(known[metric]()) for metric in GLUE[name].metrics}


@cache
def tokenizer(model: str) -> Any:
    """The tokenizer of a model, padding on the right.

    Raises:
        UsageError: if there is none.
    """
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise unknown_model(model, error) from error
    found.padding_side = "right"
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def unknown_model(model: str, error: Exception) -> UsageError:
    """What to say of a model that transformers does not load."""
    return UsageError(
        f"--model {model} is no folder of a model, and none of that name can be had from the hub ({_first_line(error)})"
    )


def _tokens(settings: Settings, sentences: list[list[str]]) -> Tensor:
    """(N, 3, S) int32: token ids, 1 where there is a token, and which sentence it is of."""
    make, length = tokenizer(settings.model), settings.max_length
    made = make(*sentences, truncation=True, max_length=length, padding="longest", return_tensors="np")
    ids = made["input_ids"]
    return torch.from_numpy(
        np.stack([ids, made["attention_mask"], made.get("token_type_ids", np.zeros_like(ids))], axis=1).astype(np.int32)
    )


def _splits(name: str, folder: str | None) -> dict[str, Any]:
    """Tables by split."""
    own = os.environ.get("DATAPRUNE_DATA")
    place = Path(folder).expanduser() if folder else Path(own) / "glue" / name if own else None
    if place is not None and (folder or place.is_dir()):
        files = sorted(place.glob("*.parquet"))
        if not files:
            raise DataError(f"no parquet files in {place}")
        import pyarrow as pa
        import pyarrow.parquet as pq

        splits = dict.fromkeys(file.stem.split("-")[0] for file in files)
        try:
            return {
                split: pa.concat_tables([pq.read_table(file) for file in files if file.stem.split("-")[0] == split])
                for split in splits
            }
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{place} cannot be read: {_first_line(error)}") from error
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"no glue/{name} here: give its folder with --data-folder, or set DATAPRUNE_DATA to the folder that holds "
            "glue/, or pip install -c constraints.txt -e '.[hf]' to fetch it"
        )
    from datasets import load_dataset

    try:
        found = load_dataset(_HUB, name)
    except Exception as error:  # whatever the hub, its cache or the network raise
        raise DataError(
            f"cannot fetch glue/{name} ({_first_line(error)}): give its folder with --data-folder, or set "
            "DATAPRUNE_DATA to the folder that holds glue/"
        ) from error
    return {str(split): one.data.table for split, one in found.items()}


def _columns(splits: dict[str, Any], split: str, task: Glue) -> list[Any]:
    """The sentences' columns, and the labels."""
    if split not in splits:
        raise DataError(f"there is no split {split}, only {', '.join(splits)}")
    columns = (*task.columns, "label")
    missing = [name for name in columns if name not in splits[split].column_names]
    if missing:
        raise DataError(f"the split {split} has no column {missing[0]}, only {', '.join(splits[split].column_names)}")
    found = [splits[split][name].to_pylist() for name in columns]
    for name, values in zip(columns, found):
        kind, wanted = (str, "text") if name != "label" else ((int, float), "a number: class ids from 0, or scores")
        row = next((row for row, value in enumerate(values) if not isinstance(value, kind)), None)
        if row is not None:
            raise DataError(f"the split {split} has {values[row]!r} as {name} in row {row}: it must be {wanted}")
    if not found[-1] or (isinstance(found[-1][0], int) and min(found[-1]) < 0):
        raise DataError(f"the split {split} has no labels (-1 stands for none): give one that has")
    return found


def _class_names(table: Any) -> list[str]:
    """The classes, as the table's features name them; none for a regression."""
    import json

    import pyarrow as pa

    if pa.types.is_floating(table.schema.field("label").type):
        return []
    notes = (table.schema.metadata or {}).get(b"huggingface")
    names = notes and json.loads(notes)["info"]["features"]["label"].get("names")
    return names or [str(one) for one in range(1 + max(table["label"].to_pylist()))]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
