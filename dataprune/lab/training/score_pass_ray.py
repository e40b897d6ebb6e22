"""One pass of a trained model over parquet files, read, decoded and scored by the workers of a Ray cluster."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .ray_cluster import cause, connected, gpu_share, gpus_of
from .score_pass import Piece, Rows, Scorer, Spread, Trained, read

_BATCH = 512  # samples scored at a time


def on_ray(address: str | None = None, jobs: int | None = None) -> Spread:
    """Read and decode row groups in tasks of Ray Data, and score them in actors that hold the model.

    The files must have the same path on all machines; the model is sent from here. A row group is the unit of work.

    Args:
        address: as for `engine_ray.on_ray`.
        jobs: actors; by default one for each GPU of the cluster, or for each core where it has none.
    """

    def spread(pieces: Sequence[Piece], trained: Trained, names: Sequence[str]) -> Iterator[Rows]:
        with connected(address) as ray:
            data: Any = importlib.import_module("ray.data")
            for handler in logging.getLogger("ray.data").handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.setLevel(logging.CRITICAL)  # errors are raised anyway
            data.DataContext.get_current().enable_progress_bars = False
            gpus = gpus_of(ray, trained.settings.device)
            actors = min(jobs or gpus or max(1, int(ray.cluster_resources().get("CPU", 1))), len(pieces))
            # half a core each: actors that wait for images leave cores to the tasks that read them
            share: dict[str, Any] = {"num_gpus": gpu_share(gpus, actors)} if gpus else {"num_cpus": 0.5}
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
                raise cause(error) from error

    return spread


def _decoded(batch: dict[str, np.ndarray], model: list[Any]) -> Iterator[dict[str, np.ndarray]]:
    """Decode the samples of row groups, a few at a time."""
    import ray

    trained: Any = ray.get(model[0])
    for path, group, first, rows in zip(*(batch[name] for name in Piece._fields)):
        for index, pixels, labels in read(Piece(str(path), int(group), int(first), int(rows)), trained):
            yield {"index": index.numpy(), "label": labels.numpy(), "image": pixels.numpy()}


class _Actor:
    """Scores batches with one copy of the model."""

    def __init__(self, model: list[Any], names: list[str]):
        import ray

        self.scorer = Scorer(ray.get(model[0]), names)

    def __call__(self, batch: Rows) -> Rows:
        parts = []
        for start in range(0, len(batch["index"]), _BATCH):
            images, labels = (batch[name][start : start + _BATCH] for name in ("image", "label"))
            parts.append(self.scorer(torch.from_numpy(images.copy()), torch.from_numpy(labels.copy())))
        scores = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        worker = np.full(len(batch["index"]), os.getpid())
        return {"index": batch["index"], "label": batch["label"], "worker": worker, **scores}
