"""Select a coreset from a scoring run, a table of scores or a file of features."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ... import coresets, dynamics, files
from ...coresets import Extracted, Inputs
from ...errors import CheckpointError, DataError, UsageError, suggest
from ...methods import fixed
from ...selection import Selection, fingerprint
from ..data.augment import normalize
from ..data.datasets import Images, Samples
from ..data.named import Data
from ..models.build import build
from . import run_folder
from .build import check, load_data
from .device import choose_device
from .evaluate import batches
from .settings import Settings

EXTRACTED = "extracted.safetensors"


def select(
    name: str,
    path: Path,
    *,
    keep: float,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    data: Data | None = None,
) -> tuple[Selection, dict[str, Any]]:
    """Select a coreset by a static method.

    Args:
        name: one of `coresets.METHODS`.
        path: the folder of a scoring run; or a table of scores (.parquet, .csv); or features (.safetensors with
            `features`, and `logits` and `labels` where the method needs them; `val_` before them for a validation set).
        keep: fraction kept, in (0, 1].
        seed: random seed.
        options: as for `coresets.choose`.
        data: training data of the scoring run, if it is loaded already.
    Returns:
        The coreset, and its metadata for `write`: method, keep, seed, options, seconds (of selection and of the pass
        that extracts features), the settings of the scoring run, `fingerprint` and `labels`.
    Raises:
        UsageError: for an unknown method or option, or one that needs what `path` does not give.
        DataError: if a file is broken.
    """
    needs = coresets.find(name).needs
    given, notes = _inputs(name, Path(path), data)
    if needs in ("features", "logits", "gradients", "validation"):
        given.extracted()  # extraction measures its own time
    elif needs == "model":
        given.model()
    started = time.perf_counter()
    chosen = coresets.choose(name, given, keep=keep, seed=seed, options=options)
    metadata = {
        "method": name,
        "keep": keep,
        "seed": seed,
        "options": dict(options or {}),
        "seconds": time.perf_counter() - started + notes.pop("extract_seconds", 0.0),
        **notes,
        "size": given.size,
        "labels": given.labels,
    }
    return chosen, metadata


def write(path: Path, selection: Selection, metadata: dict[str, Any]) -> None:
    """Save what `select` returned."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: --out names a file")
    notes = dict(metadata)
    dataset, labels = notes.pop("fingerprint", None), notes.pop("labels", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    selection.save(path, notes, dataset=dataset, labels=labels)


def adapted(settings: Settings, *, strategy: str = "E", small_batches: bool = False) -> tuple[Settings, Data | None]:
    """Adapt the epochs and the batch size of a run on a coreset to the coreset's size.

    Args:
        settings: of a run; without a coreset they are returned unchanged.
        strategy: "E" or "P", as for `methods.fixed`.
        small_batches: whether the batch size follows `coresets.small_batch`.
    Returns:
        The settings, and their data if it had to be loaded.
    Raises:
        UsageError: if an option is given without a coreset.
    """
    if strategy not in ("E", "P"):
        raise UsageError(suggest(strategy, ["E", "P"], what="strategy"))
    check(settings)
    if strategy == "E" and not small_batches:
        return settings, None
    if settings.selection is None:
        raise UsageError("--strategy and --small-batches are for training on a coreset: give --selection FILE")
    data = load_data(settings)
    size = len(data.train)
    selection = Selection.load(settings.selection, data.train)
    epochs = fixed(size, selection=selection, epochs=settings.epochs, strategy=strategy).epochs  # type: ignore[arg-type]
    keep = len(selection.index) / size
    batch_size = coresets.small_batch(settings.batch_size, keep) if small_batches else settings.batch_size
    return replace(settings, epochs=epochs, batch_size=batch_size), data


def _inputs(name: str, path: Path, data: Data | None) -> tuple[Inputs, dict[str, Any]]:
    """The inputs of a selector, and metadata about them."""
    if path.is_dir():
        return _of_run(name, path, data)
    if not path.exists():
        raise UsageError(f"there is no {path}: give the folder of `dataprune score`, a table of scores, or features")
    if path.suffix == ".safetensors":
        parts = _read(path)
        first = _extracted(parts, path)
        size = len(first.features)
        given = Inputs(
            size,
            first.labels if "labels" in parts else None,
            lambda column: _refuse(name, path, "scores"),
            lambda: _needed(name, parts, first, path),
            lambda: _extracted(parts, path, "val_"),
            lambda: _refuse(name, path, "the model"),
        )
        return given, {}
    table = dynamics.load_scores(path)
    size = len(next(iter(table.scores.values())))
    given = Inputs(
        size,
        table.labels,
        lambda column: _column(table.scores, column, path),
        lambda: _refuse(name, path, "features"),
        lambda: _refuse(name, path, "features of a validation set"),
        lambda: _refuse(name, path, "the model"),
    )
    return given, {key: table.notes[key] for key in ("fingerprint", "settings") if key in table.notes}


def _of_run(name: str, folder: Path, data: Data | None) -> tuple[Inputs, dict[str, Any]]:
    """The inputs that a scoring run gives; passes over its data are made when first needed, and cached."""
    if not (folder / "config.json").exists():
        raise UsageError(f"{folder} holds no run of `dataprune score`")
    settings = Settings.of(files.read_json(folder / "config.json"))
    record = run_folder.finished(folder, settings)
    if record is None:
        raise UsageError(f"the run in {folder} is not finished: give its `dataprune score` again, it goes on")
    if record.scores is None:
        raise UsageError(f"{folder} holds a run without scores: it must be one of `dataprune score`")
    table = dynamics.load_scores(folder / record.scores)
    notes: dict[str, Any] = {"fingerprint": record.fingerprint, "settings": settings.as_dict()}

    @cache
    def loaded() -> Data:
        dataset = load_data(settings) if data is None else data
        if fingerprint(dataset.train) != record.fingerprint:
            raise DataError(f"the data is no longer what {folder} was scored on: score it again")
        return dataset

    @cache
    def trained() -> nn.Module:
        dataset = loaded()
        model = build(settings.model, dataset.shape, len(dataset.classes), settings.seed)
        weights = folder / "model.safetensors"
        if not weights.exists():
            raise UsageError(f"{folder} has no model.safetensors, which {name} needs: delete it, and score again")
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{weights} is damaged ({error}): delete {folder}, and score again") from error
        return model.to(choose_device(settings.device))

    @cache
    def parts() -> dict[str, Tensor]:
        kept = folder / EXTRACTED
        if not _whole(kept):
            dataset, _ = loaded(), trained()
            started = time.perf_counter()
            sets = {"": dataset.train} if dataset.val is None else {"": dataset.train, "val_": dataset.val}
            tensors = {
                prefix + field: value.contiguous()
                for prefix, part in sets.items()
                for field, value in vars(_extract(trained(), part, dataset, settings.workers)).items()
            }
            seconds = time.perf_counter() - started
            files.write_bytes(kept, save(tensors, metadata={"dataprune": json.dumps({"seconds": seconds})}))
        with safe_open(str(kept), framework="pt") as file:
            notes["extract_seconds"] = json.loads((file.metadata() or {})["dataprune"])["seconds"]
        return _read(kept)

    def validation() -> Extracted:
        if "val_features" not in parts():
            raise UsageError(f"{name} needs a validation split: score with --val-fraction 0.1")
        return _extracted(parts(), folder / EXTRACTED, "val_")

    def model() -> tuple[nn.Module, Tensor]:
        dataset = loaded()
        if not isinstance(dataset.train, Images):
            raise UsageError(f"{name} needs all images in memory, and these are read from disk: take a --train-size")
        return trained(), normalize(dataset.train.images, dataset.mean, dataset.std, torch.float32)

    given = Inputs(
        len(next(iter(table.scores.values()))),
        table.labels,
        lambda column: _column(table.scores, column, folder),
        lambda: _extracted(parts(), folder / EXTRACTED),
        validation,
        model,
    )
    return given, notes


def _whole(path: Path) -> bool:
    try:
        with safe_open(str(path), framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _extract(model: nn.Module, part: Samples, data: Data, workers: int) -> Extracted:
    device = next(model.parameters()).device
    prepared = (
        (normalize(pixels, data.mean, data.std, torch.float32), labels)
        for pixels, labels in batches(part, 512, device, workers)
    )
    return coresets.extract(model, prepared)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is no readable safetensors file ({error})") from error


def _extracted(parts: Mapping[str, Tensor], path: Path, prefix: str = "") -> Extracted:
    features = parts.get(prefix + "features")
    if features is None:
        raise UsageError(f"{path} holds no `{prefix}features` (but {', '.join(parts) or 'nothing'})")
    nothing = torch.empty(0)
    return Extracted(features, parts.get(prefix + "logits", nothing), parts.get(prefix + "labels", nothing))


def _needed(name: str, parts: Mapping[str, Tensor], extracted: Extracted, path: Path) -> Extracted:
    """Refuse features without the logits or labels that a method needs."""
    method = coresets.METHODS[name]
    wanted = {"logits": ["logits"], "gradients": ["logits", "labels"], "validation": ["logits", "labels"]}
    for tensor in wanted.get(method.needs, []):
        if tensor not in parts:
            raise UsageError(f"{name} needs `{tensor}` beside the features: {path} has {', '.join(parts)}")
    return extracted


def _column(scores: Mapping[str, Float[Tensor, " n"]], column: str, path: Path) -> Float[Tensor, " n"]:
    if column not in scores:
        raise UsageError(f"{path}: " + suggest(column, scores, what="score"))
    return scores[column]


def _refuse(name: str, path: Path, what: str) -> Any:
    raise UsageError(f"{name} needs {what}, which {path} does not hold: give the folder of `dataprune score`")
