"""Scores from one pass of a trained model over parquet files that need not fit in memory, here or on a Ray cluster."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ...dynamics import STATISTICS, save_scores
from ...dynamics.batch import Batch
from ...errors import DataError, UsageError, suggest
from ...modules import device_of, evaluation, logits_of
from ...selection import fingerprint
from ..data.datasets import Streamed
from ..data.folders import class_names, columns_of, encode, occurring, parquet_files, split_files
from . import ray_cluster, run_folder
from .evaluate import last_layer_inputs
from .settings import require
from .trained import Trained, load

SNAPSHOTS = [name for name, make in STATISTICS.items() if make().snapshot]
_BATCH = 512  # samples read and scored at a time

Columns = dict[str, np.ndarray]


class Piece(NamedTuple):
    """A row group of a file, and where its rows are in the dataset."""

    path: str
    group: int
    first: int
    rows: int


# yields columns index, label, worker (its process) and one for each statistic, of some samples in any order
Spread = Callable[[Sequence[Piece], Trained, Sequence[str]], Iterator[Columns]]


def score(
    folder: str,
    names: Sequence[str],
    run: Path,
    out: Path,
    *,
    device: str | None = None,
    model: str | None = None,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Score every sample of a folder of parquet files by one pass of a trained model, in evaluation mode.

    A position in the dataset is that of a row in the training files, sorted by name. Besides the model and a few
    batches, a label and the scores of every sample are in memory.

    Args:
        folder: of the parquet files.
        names: statistics from `SNAPSHOTS`; none: those that read no features.
        run, device, model: as for `trained.load`.
        out: folder that `scores.parquet` is written to.
        spread: carries the pass out; in this process by default.
    Returns:
        `scores`, the table; `samples`, `statistics`, `workers` (how many processes scored), `seconds`.
    """
    names = list(names) or [name for name in SNAPSHOTS if not STATISTICS[name]().features]
    for name in names:
        require(name in STATISTICS, suggest(name, STATISTICS, what="statistic"))
        require(
            name in SNAPSHOTS,
            f"{name} follows samples through training, which one pass of a trained model does not show: score "
            f"without --init, or take of {', '.join(SNAPSHOTS)}",
        )
    trained = load(run, device, model)
    pieces = find(Path(folder).expanduser())
    started = time.perf_counter()
    size = sum(piece.rows for piece in pieces)
    labels = np.full(size, -1)
    scores = {name: np.full(size, np.nan, dtype=np.float32) for name in names}
    workers: set[int] = set()
    for rows in (in_this_process if spread is None else spread)(pieces, trained, names):
        labels[rows["index"]] = rows["label"]
        workers.update(rows["worker"].tolist())
        for name in names:
            scores[name][rows["index"]] = rows[name]
    missing = int((labels < 0).sum())
    if missing:
        raise RuntimeError(f"{missing} of {size} samples came back without scores")
    ids = torch.from_numpy(labels)
    if (known := occurring(ids, class_names(Path(pieces[-1].path)))) is not None:
        ids = torch.searchsorted(known, ids)  # as training numbers them
    dataset = _Rows(pieces, trained, ids)
    notes = {
        "settings": {**trained.settings.as_dict(), "data": folder},
        "fingerprint": fingerprint(dataset),
        "model": str(run),
    }
    run_folder.folder(out)
    path = out / "scores.parquet"
    columns = {name: torch.from_numpy(column) for name, column in scores.items()}
    save_scores(path, columns, labels=dataset.labels, notes=notes)
    seconds = time.perf_counter() - started
    return {"scores": str(path), "samples": size, "statistics": names, "workers": len(workers), "seconds": seconds}


def find(folder: Path) -> list[Piece]:
    """The row groups of a folder's training files, in the dataset's order."""
    files = parquet_files(folder)
    if not files:
        raise UsageError(f"one pass of a model scores a folder of parquet files, and there are none in {folder}")
    paths = split_files(files).get("train")
    if not paths:
        raise DataError(f"no training split in {folder}: name its files train-*.parquet")
    import pyarrow.parquet as parquet

    pieces, first = [], 0
    for path in paths:
        columns_of(path)  # raises for what cannot be read, or has no images
        about = parquet.read_metadata(path)
        for group in range(about.num_row_groups):
            rows = about.row_group(group).num_rows
            if rows:
                pieces.append(Piece(str(path.resolve()), group, first, rows))
                first += rows
    if not pieces:
        raise DataError(f"the training files in {folder} have no rows")
    return pieces


def read(piece: Piece, trained: Trained) -> Iterator[Columns]:
    """Read a row group: columns index, label, column (its place in the outputs) and image of a batch at a time."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    first, columns = piece.first, list(columns_of(Path(piece.path)))
    shape, resize = trained.input.shape, trained.settings.image_size is not None
    with parquet.ParquetFile(piece.path) as file:
        for rows in file.iter_batches(_BATCH, row_groups=[piece.group], columns=columns):
            source = f"{piece.path} (rows from {first - piece.first} of row group {piece.group})"
            encoded, names = encode(arrow.Table.from_batches([rows]), source)
            column = trained.columns(encoded.labels, names, source).numpy()
            index = np.arange(len(encoded.labels))
            images = Streamed(encoded.items, torch.from_numpy(index), encoded.labels, shape, resize).decoded()
            labels = {"label": images.labels.numpy(), "column": column}
            yield {"index": first + index, **labels, "image": images.images.numpy()}
            first += len(index)


class Scorer:
    """Scores batches, as `read` yields them, by statistics from `SNAPSHOTS`."""

    def __init__(self, trained: Trained, names: Sequence[str]):
        self.prepare, self.model = trained.prepare, trained.model()
        self.device = device_of(self.model)
        self.statistics = {name: STATISTICS[name]() for name in names}
        self.features = last_layer_inputs(self.model, trained.input.shape, self.statistics)

    def __call__(self, batch: Columns) -> Columns:
        size = len(batch["index"])
        parts = [self._scores(batch, slice(start, start + _BATCH)) for start in range(0, size, _BATCH)]
        scores = {name: np.concatenate([part[name] for part in parts]) for name in self.statistics}
        return {"index": batch["index"], "label": batch["label"], "worker": np.full(size, os.getpid()), **scores}

    def _scores(self, batch: Columns, rows: slice) -> Columns:
        pixels, labels = (torch.tensor(batch[name][rows], device=self.device) for name in ("image", "column"))
        with evaluation(self.model), torch.inference_mode():
            outputs = logits_of(self.model(self.prepare(pixels))).float()
            recorded = Batch(outputs, labels, self.features.pop() if self.features else None)
            return {name: each.observe(recorded).float().cpu().numpy() for name, each in self.statistics.items()}


def in_this_process(pieces: Sequence[Piece], trained: Trained, names: Sequence[str]) -> Iterator[Columns]:
    """The pass in this process."""
    scorer = Scorer(trained, names)
    for piece in pieces:
        yield from map(scorer, read(piece, trained))


def on_ray(address: str | None = None, jobs: int | None = None) -> Spread:
    """Read and decode row groups in tasks of Ray Data, and score them in actors that hold the model.

    The files must have the same path on all machines; the model is sent from here. A row group is the unit of work.
    There are `jobs` actors; by default one for each GPU of the cluster, or for each core where it has none.
    """

    def spread(pieces: Sequence[Piece], trained: Trained, names: Sequence[str]) -> Iterator[Columns]:
        with ray_cluster.connected(address) as ray:
            data: Any = importlib.import_module("ray.data")
            for handler in logging.getLogger("ray.data").handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.setLevel(logging.CRITICAL)  # errors are raised anyway
            data.DataContext.get_current().enable_progress_bars = False
            gpus = ray_cluster.gpus_of(ray, trained.settings.device)
            actors = min(jobs or gpus or max(1, int(ray.cluster_resources().get("CPU", 1))), len(pieces))
            # half a core each: actors that wait for images leave cores to the tasks that read them
            share: dict[str, Any] = {"num_gpus": ray_cluster.gpu_share(gpus, actors)} if gpus else {"num_cpus": 0.5}
            rows = data.from_items([piece._asdict() for piece in pieces], override_num_blocks=len(pieces))
            model = ray.put(trained)
            images = rows.map_batches(_decoded, batch_size=1, fn_kwargs={"model": [model]}, num_cpus=0.5)
            scored = images.map_batches(
                _Actor,
                batch_size=None,  # blocks as they were read: waiting for full batches would leave actors idle
                fn_constructor_kwargs={"model": [model], "names": list(names)},
                compute=data.ActorPoolStrategy(size=actors),
                **share,
            )
            try:
                yield from scored.iter_batches(batch_size=None, batch_format="numpy")
            except ray.exceptions.RayError as error:
                raise ray_cluster.cause(error) from error

    return spread


def _decoded(batch: Columns, model: list[Any]) -> Iterator[Columns]:
    """In a task of Ray: decode the samples of row groups, a few at a time."""
    import ray

    trained: Any = ray.get(model[0])
    for path, group, first, rows in zip(*(batch[name] for name in Piece._fields)):
        yield from read(Piece(str(path), int(group), int(first), int(rows)), trained)


class _Actor(Scorer):
    """In an actor of Ray: scores with one copy of the model."""

    def __init__(self, model: list[Any], names: list[str]):
        import ray

        trained: Any = ray.get(model[0])
        super().__init__(trained, names)


class _Rows:
    """The files as a dataset, for their fingerprint: a few samples are read."""

    def __init__(self, pieces: Sequence[Piece], trained: Trained, labels: Int[Tensor, " n"]):
        self.pieces, self.trained, self.labels = pieces, trained, labels
        self.firsts = np.array([piece.first for piece in pieces])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        piece = self.pieces[int(np.searchsorted(self.firsts, position, side="right")) - 1]
        for batch in read(piece, self.trained):
            at = position - int(batch["index"][0])
            if at < len(batch["index"]):
                return torch.from_numpy(batch["image"][at]), int(self.labels[position])
        raise IndexError(position)
