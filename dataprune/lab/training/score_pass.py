"""Scores from one pass of a trained model over parquet files that need not fit in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ... import files
from ...dynamics import STATISTICS, save_scores
from ...dynamics.batch import Batch
from ...errors import CheckpointError, DataError, UsageError
from ...modules import evaluation, last_layer, logits_of
from ...selection import fingerprint
from ..data.augment import normalize
from ..data.datasets import Streamed
from ..data.folders import describe, encode, split_files
from ..models.build import build
from . import run_folder
from .build import build_statistics
from .device import choose_device
from .settings import Settings

SNAPSHOTS = [name for name, make in STATISTICS.items() if make().snapshot]
_BATCH = 512

Rows = dict[str, np.ndarray]  # columns index, label, worker (its process) and one for each statistic; in any order


class Trained(NamedTuple):
    """A trained model, as plain values that travel to other machines."""

    settings: Settings
    weights: dict[str, Tensor]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int


class Piece(NamedTuple):
    """A row group of a file, and where its rows are in the dataset."""

    path: str
    group: int
    first: int
    rows: int


Spread = Callable[[Sequence[Piece], Trained, Sequence[str]], Iterator[Rows]]


def score(settings: Settings, run: Path, out: Path, *, spread: Spread | None = None) -> dict[str, Any]:
    """Score every sample of a folder of parquet files by one pass of a trained model, in evaluation mode.

    A position in the dataset is that of a row in the training files, sorted by name. Besides the model and a few
    batches, a label and the scores of every sample are in memory.

    Args:
        settings: say `data`, `statistics` and `device`; nothing else of them counts.
        run: folder of `dataprune train` or `score`.
        out: folder that `scores.parquet` is written to.
        spread: carries the pass out; here and now by default.
    Returns:
        `scores`, the table; `samples`, `statistics`, `workers` (how many processes scored), `seconds`.
    Raises:
        UsageError: for statistics that one pass does not have, settings that would have no effect, or data that is no
            folder of parquet files.
        DataError: if the files are broken.
    """
    names = _names(settings)
    trained = load(run, settings.device)
    pieces = find(Path(settings.data).expanduser())
    started = time.perf_counter()
    size = sum(piece.rows for piece in pieces)
    labels = np.full(size, -1)
    scores = {name: np.full(size, np.nan, dtype=np.float32) for name in names}
    workers: set[int] = set()
    for rows in (here if spread is None else spread)(pieces, trained, names):
        labels[rows["index"]] = rows["label"]
        workers.update(rows["worker"].tolist())
        for name in names:
            scores[name][rows["index"]] = rows[name]
    missing = int((labels < 0).sum())
    if missing:
        raise RuntimeError(f"{missing} of {size} samples came back without scores")
    dataset = _Rows(pieces, trained, torch.from_numpy(labels))
    notes = {"settings": {**trained.settings.as_dict(), "data": settings.data}, "fingerprint": fingerprint(dataset)}
    run_folder.folder(out)
    columns = {name: torch.from_numpy(column) for name, column in scores.items()}
    save_scores(out / "scores.parquet", columns, labels=dataset.labels, notes={**notes, "model": str(run)})
    return {
        "scores": str(out / "scores.parquet"),
        "samples": size,
        "statistics": list(names),
        "workers": len(workers),
        "seconds": time.perf_counter() - started,
    }


def load(run: Path, device: str | None) -> Trained:
    """The model that a run left.

    Raises:
        UsageError: if there is none, or it is no classifier.
        CheckpointError: if its files are damaged.
    """
    if not (run / "config.json").exists():
        raise UsageError(f"--init {run} holds no run of `dataprune train`")
    settings = replace(Settings.of(files.read_json(run / "config.json")), device=device)
    record = files.read_json(run / "metrics.json") if (run / "metrics.json").exists() else {}
    if settings.task != "classification":
        raise UsageError(f"--init {run} was trained without labels: these scores are a classifier's")
    if "input" not in record or not (run / "model.safetensors").exists():
        raise UsageError(f"--init {run} holds no finished run of `dataprune train` with its model: train it first")
    given = record["input"]
    try:
        weights = load_file(run / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{run / 'model.safetensors'} cannot be read ({error}): train again") from error
    channels, height, width = given["shape"]
    mean, std = tuple(given["mean"]), tuple(given["std"])
    return Trained(settings, weights, (channels, height, width), mean, std, given["classes"])


def find(folder: Path) -> list[Piece]:
    """The row groups of a folder's training files, in the dataset's order.

    Raises:
        UsageError: if there are no parquet files.
        DataError: if one of them cannot be read.
    """
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    if not files:
        raise UsageError(f"one pass of a model scores a folder of parquet files, and there are none in {folder}")
    paths = split_files(files).get("train")
    if not paths:
        raise DataError(f"no training split in {folder}: name its files train-*.parquet")
    import pyarrow.parquet as parquet

    pieces, first = [], 0
    for path in paths:
        describe(path)  # raises for what cannot be read, or has no images
        about = parquet.read_metadata(path)
        for group in range(about.num_row_groups):
            rows = about.row_group(group).num_rows
            if rows:
                pieces.append(Piece(str(path.resolve()), group, first, rows))
                first += rows
    if not pieces:
        raise DataError(f"the training files in {folder} have no rows")
    return pieces


def read(
    piece: Piece, trained: Trained
) -> Iterator[tuple[Int[Tensor, " b"], UInt8[Tensor, "b c h w"], Int[Tensor, " b"]]]:
    """Positions, decoded images and labels of a row group, a batch at a time."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    features, columns = describe(Path(piece.path))
    first = piece.first
    with parquet.ParquetFile(piece.path) as file:
        for rows in file.iter_batches(_BATCH, row_groups=[piece.group], columns=list(columns)):
            source = f"{piece.path} (rows from {first - piece.first} of row group {piece.group})"
            encoded, _ = encode(arrow.Table.from_batches([rows]), features, source)
            _check_labels(source, encoded.labels, trained.classes)
            resize = trained.settings.image_size is not None
            at = torch.arange(len(encoded.labels))
            images = Streamed(encoded.items, at, encoded.labels, trained.shape, resize=resize).decoded()
            yield first + at, images.images, images.labels
            first += len(at)


class Scorer:
    """A model in evaluation mode, on its device.

    Args:
        trained: the model.
        names: names from `SNAPSHOTS`.
    """

    def __init__(self, trained: Trained, names: Sequence[str]):
        self.trained = trained
        self.statistics = {name: STATISTICS[name]() for name in names}
        settings = trained.settings
        self.device = choose_device(settings.device)
        self.model = build(settings.model, trained.shape, trained.classes, settings.seed)
        try:
            self.model.load_state_dict(trained.weights)
        except RuntimeError as error:
            raise CheckpointError(f"the weights are not those of {settings.model} ({error}): train again") from error
        self.model.to(self.device)
        self.features: list[Tensor] = []
        if any(statistic.features for statistic in self.statistics.values()):
            layer = last_layer(self.model, torch.zeros(2, *trained.shape, device=self.device))
            layer.register_forward_pre_hook(lambda _, inputs: self.features.append(inputs[0]))

    def __call__(self, pixels: UInt8[Tensor, "b c h w"], labels: Int[Tensor, " b"]) -> dict[str, np.ndarray]:
        """Scores of a batch, (b,) float32 each."""
        inputs = normalize(pixels.to(self.device), self.trained.mean, self.trained.std, torch.float32)
        with evaluation(self.model), torch.inference_mode():
            outputs = logits_of(self.model(inputs)).float()
            batch = Batch(outputs, labels.to(self.device), self.features.pop() if self.features else None)
            return {name: statistic.observe(batch).float().cpu().numpy() for name, statistic in self.statistics.items()}


def here(pieces: Sequence[Piece], trained: Trained, names: Sequence[str]) -> Iterator[Rows]:
    """The pass in this process."""
    scorer = Scorer(trained, names)
    for piece in pieces:
        for index, pixels, labels in read(piece, trained):
            worker = np.full(len(index), os.getpid())
            yield {"index": index.numpy(), "label": labels.numpy(), "worker": worker, **scorer(pixels, labels)}


class _Rows:
    """The files as a dataset, for their fingerprint: a few samples are read."""

    def __init__(self, pieces: Sequence[Piece], trained: Trained, labels: Int[Tensor, " n"]):
        self.pieces, self.trained, self.labels = pieces, trained, labels
        self.firsts = np.array([piece.first for piece in pieces])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        piece = self.pieces[int(np.searchsorted(self.firsts, position, side="right")) - 1]
        for index, pixels, labels in read(piece, self.trained):
            if position <= int(index[-1]):
                at = position - int(index[0])
                return pixels[at], int(labels[at])
        raise IndexError(position)


def _names(settings: Settings) -> list[str]:
    """The statistics that are asked for."""
    names = [name.strip() for name in settings.statistics.split(",") if name.strip()] or [
        name for name in SNAPSHOTS if not STATISTICS[name]().features
    ]
    build_statistics(replace(settings, statistics=",".join(names), epochs=1 << 30))
    for name in names:
        if name not in SNAPSHOTS:
            raise UsageError(
                f"{name} follows samples through training, which one pass of a trained model does not show: score "
                f"without --init, or take of {', '.join(SNAPSHOTS)}"
            )
    usual = Settings(method=settings.method)
    for name in usual.as_dict():
        counts = name in ("data", "statistics", "device")
        if not counts and getattr(settings, name) != getattr(usual, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for training, and --init scores with a model as it was trained: leave "
                "it out"
            )
    return names


def _check_labels(source: str, labels: Int[Tensor, " b"], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{source} has labels from {low} to {high}, but the model knows {classes} classes")
