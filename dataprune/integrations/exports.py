"""Scores for the tools that look at data: cleanlab's label quality, a folder for FiftyOne, Hugging Face's columns.

    scores = dynamics.load_scores("scores.parquet")
    quality = exports.label_quality(scores, "aum")
    suspects = exports.label_issues(scores, "aum", count=100)
    exports.fiftyone("look", scores, paths)
    scored = exports.with_scores(train_set, scores)  # a datasets.Dataset

None of these packages is imported.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from .. import files
from ..dynamics import STATISTICS, Scores
from ..errors import suggest

Table = Scores | Mapping[str, Float[Tensor, " n"]]  # what `load_scores` or `Recorder.scores` gives

# fields that samples of FiftyOne have, and the label's
_RESERVED = {"filepath", "ground_truth", "id", "tags", "metadata", "media_type", "media_reference"}
_RESERVED |= {"created_at", "last_modified_at"}
_FIELDS = "fiftyone.core.fields."


def label_quality(scores: Table, statistic: str) -> Float64[np.ndarray, " n"]:
    """How far each label can be trusted, in cleanlab's convention: in [0, 1], lowest is the likeliest label error.

        forgetting, grand: 1 / (1 + s)      el2n: 1 − s / √2      loss: exp(−s), the label's probability
        aum: 1/2 + m / (2 · (1 + |m|)), m = −s the mean margin, so that below 1/2 another class led

    A column that is none of the library's statistics is read as `aum` is, highest being the most suspicious.

    Args:
        statistic: a column of the scores.
    Returns:
        (N,) float64 in the dataset's order, falling in the score. NaN where the score is.
    Raises:
        ValueError: if there is no such column, it is a statistic that a wrong label does not raise, or a score is
            negative where none can be.
    Example:
        >>> import torch
        >>> label_quality({"aum": torch.tensor([-3.0, 0.0, 3.0])}, "aum")  # margins 3, 0 and −3
        array([0.875, 0.5  , 0.125])

    Source: the self-confidence of Northcutt et al. 2021, arXiv:1911.00068, is exp(−loss) of held-out samples. Differs:
        these are scores of samples that were trained on; the other maps are ours, and any that falls ranks alike.
    """
    columns = _columns(scores)
    if statistic not in columns:
        raise ValueError(suggest(statistic, columns, what="column of scores"))
    values = columns[statistic].detach().cpu().numpy().astype(np.float64)
    if statistic in STATISTICS and statistic not in _QUALITY:
        raise ValueError(
            f"a high {statistic} does not mean that the label is wrong: it looks at the prediction alone, or at how "
            f"much that changes; take {', '.join(_QUALITY)}"
        )
    if statistic in _QUALITY and statistic != "aum" and (values < 0).any():
        raise ValueError(f"{statistic} is never negative, the lowest here is {np.nanmin(values)}: is it another score?")
    return _QUALITY.get(statistic, _by_margin)(values)


def _by_margin(score: np.ndarray) -> np.ndarray:
    return 0.5 - 0.5 * np.sign(score) * (1 - 1 / (1 + np.abs(score)))  # defined at infinity, too


_QUALITY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "aum": _by_margin,
    "forgetting": lambda score: 1 / (1 + score),
    "loss": lambda score: np.exp(-score),
    "el2n": lambda score: np.clip(1 - score / math.sqrt(2), 0, 1),  # a rounded norm may be above √2
    "grand": lambda score: 1 / (1 + score),
    "difficulty": lambda score: np.clip(1 - score, 0, 1),
}


def label_issues(
    scores: Table, statistic: str, *, count: int | None = None, seed: int = 0
) -> Int64[np.ndarray, " count"]:
    """Positions of the samples whose labels are the most suspicious, the worst first.

    Args:
        statistic: as for `label_quality`.
        count: how many; all that have a score by default.
        seed: equal scores, of which `forgetting` has many, come in a random order, which this decides.
    Raises:
        TypeError: if `count` is no whole number.
        ValueError: as for `label_quality`, or if fewer samples than `count` have a score.
    Example:
        >>> import torch
        >>> label_issues({"loss": torch.tensor([0.1, 4.0, 0.2, 2.0])}, "loss", count=2)
        array([1, 3])
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, Integral)):
        raise TypeError(f"count is a number of samples, got {count!r}")
    quality = label_quality(scores, statistic)
    order = np.random.default_rng(seed).permutation(len(quality))
    order = order[np.argsort(quality[order], kind="stable")]  # NaN last
    known = int(np.isfinite(quality).sum())
    if count is not None and not 0 <= count <= known:
        raise ValueError(f"{known} samples have a score of {statistic}, count must be from 0 to that, got {count}")
    return order[: known if count is None else count]


def fiftyone(
    folder: str | os.PathLike[str],
    scores: Table,
    filepaths: Sequence[str | os.PathLike[str]],
    *,
    labels: Int[Tensor | np.ndarray, " n"] | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write a folder that FiftyOne opens as `fo.Dataset.from_dir(folder, fo.types.FiftyOneDataset)`.

    It holds `samples.json` and, so that a field of which only some samples have a value keeps its type,
    `metadata.json`; media stay where they are. Every score is a field of floats, the label a Classification in
    `ground_truth`.

    Args:
        folder: created where it does not exist; files of these two names in it are replaced.
        scores: a table of scores; NaN and infinite values are left empty.
        filepaths: each sample's image, in the dataset's order. Relative ones are resolved from the working directory.
        labels: class ids or names; by default those of the table.
        classes: name of each class id; by default the id as text.
    Raises:
        ValueError: if lengths differ, a label has no name, or a score's name cannot be that of a field.
    Source: the JSON that FiftyOne up to version 0.7 wrote, and that later versions read where `metadata.json` names no
        version: unlike today's it does not depend on FiftyOne's database.
    """
    columns = _columns(scores)
    if labels is None and isinstance(scores, Scores):
        labels = scores.labels
    names = None if labels is None else _names(labels, classes)
    sizes = {len(column) for column in [*columns.values(), filepaths, *([] if names is None else [names])]}
    if len(sizes) != 1:
        raise ValueError(f"scores, filepaths and labels must be as many as the samples, got lengths {sorted(sizes)}")
    for name in columns:
        if not name.isidentifier() or name.startswith("_") or name in _RESERVED:
            raise ValueError(f"{name!r} cannot be a field of FiftyOne: give the score another name, such as score_1")
    fields = {"filepath": f"{_FIELDS}StringField", "tags": f"{_FIELDS}ListField({_FIELDS}StringField)"}
    samples: list[dict[str, object]] = [{"filepath": os.path.abspath(path), "tags": []} for path in filepaths]
    if names is not None:
        fields["ground_truth"] = f"{_FIELDS}EmbeddedDocumentField(fiftyone.core.labels.Classification)"
        for sample, label in zip(samples, names, strict=True):
            sample["ground_truth"] = {"_cls": "Classification", "label": label}
    for name, column in columns.items():
        fields[name] = f"{_FIELDS}FloatField"
        for sample, value in zip(samples, column.detach().cpu().double().tolist(), strict=True):
            sample[name] = value if math.isfinite(value) else None
    contents = {"samples": {"samples": samples}, "metadata": {"media_type": "image", "sample_fields": fields}}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        files.write_text(Path(folder) / f"{name}.json", json.dumps(content, allow_nan=False))


def with_scores(dataset: Any, scores: Table) -> Any:
    """A Hugging Face dataset with a column for every score, for its own `sort`, `filter` and `map`.

    Rows are matched by position: the dataset must be the one that was scored, in the same order.

    Args:
        dataset: a `datasets.Dataset`, which is not changed.
    Raises:
        TypeError: if it is no `datasets.Dataset`, but a DatasetDict or a stream.
        ValueError: if lengths differ, or the dataset has a column of a score's name already.
    """
    columns = _columns(scores)
    if not (hasattr(dataset, "add_column") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"scores become columns of a datasets.Dataset, got a {type(dataset).__name__}: of a DatasetDict give the "
            'split that was scored, as in splits["train"]; what is streamed has no positions'
        )
    existing = [name for name in columns if name in dataset.column_names]
    if existing:
        raise ValueError(
            f"the dataset already has {', '.join(existing)}: dataset.remove_columns({existing}) takes them out"
        )
    for name, column in columns.items():
        if len(column) != len(dataset):
            raise ValueError(f"there are {len(column)} scores of {name}, but {len(dataset)} samples in the dataset")
        dataset = dataset.add_column(name, column.detach().cpu().numpy())
    return dataset


def _columns(scores: Table) -> Mapping[str, Tensor]:
    if isinstance(scores, Scores):
        return scores.scores
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"scores must be a table or tensors by name, got a {type(scores).__name__}: dynamics.load_scores(path) "
            "reads a file"
        )
    return scores


def _names(labels: Tensor | np.ndarray | Sequence[str], classes: Sequence[str] | None) -> list[str]:
    plain: list[str | int] = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if classes is None:
        return [str(label) for label in plain]
    wrong = next((label for label in plain if not isinstance(label, int) or not 0 <= label < len(classes)), None)
    if wrong is not None:
        raise ValueError(f"classes names {len(classes)} classes, and {wrong!r} is the id of none of them")
    return [classes[int(label)] for label in plain]
