"""Select a coreset from a scoring run, a table of scores or a file of features."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ... import coresets, dynamics, files
from ...coresets import Extracted, Inputs
from ...errors import DataError, UsageError, suggest
from ...methods import fixed
from ...modules import device_of, logits_of
from ...selection import Selection, fingerprint
from ..data.datasets import Images
from ..data.named import Data
from . import run_folder
from .build import check, load_data
from .evaluate import batches
from .settings import Settings
from .trained import Trained, load

_BESIDE_FEATURES = {"logits": ("logits",), "gradients": ("logits", "labels"), "validation": ("logits", "labels")}


def select(
    name: str,
    path: Path | None,
    *,
    keep: float,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    data: Data | None = None,
    model: str | None = None,
    others: Sequence[Path] = (),
) -> tuple[Selection, dict[str, Any]]:
    """Select a coreset by a static method.

    Args:
        name, keep, seed, options: as for `coresets.choose`.
        path: the folder of a scoring run; or a table of scores (.parquet, .csv); or features (.safetensors with
            `features`, and `logits` and `labels` where the method needs them; `val_` before them for a validation set);
            None, with `data`, for a method that needs none of these.
        data: training data of the scoring run, if it is loaded already.
        model: the scoring run's, needed where that is a "module:function", see `trained.load`.
        others: folders of more scoring runs of the same data, over which scores are averaged.
    Returns:
        The coreset, and its metadata for `write`: method, keep, seed, options, seconds (of selection and of the pass
        that extracts features), forwarded_samples (by that pass, and by a method that reads the model), by_batch, the
        settings of the scoring run, `fingerprint` and `labels`.
    """
    needs = coresets.find(name).needs
    inputs, notes = _inputs(name, path, data, model, others)
    passes: AbstractContextManager[list[int]] = nullcontext([])
    if needs in ("features", "logits", "gradients", "validation"):
        inputs.extracted()  # extraction measures its own time
    elif needs == "model":
        passes = _passes(inputs.model()[0])
    started = time.perf_counter()
    with passes as passed:
        selection = coresets.choose(name, inputs, keep=keep, seed=seed, options=options)
    seconds = time.perf_counter() - started + notes.pop("extract_seconds", 0.0)
    metadata = {"method": name, "keep": keep, "seed": seed, "options": dict(options or {}), "seconds": seconds}
    metadata |= {"by_batch": selection.by_batch, "forwarded_samples": notes.pop("extract_samples", 0) + sum(passed)}
    return selection, {**metadata, **notes, "size": inputs.size, "labels": inputs.labels}


def write(path: Path, selection: Selection, metadata: dict[str, Any]) -> None:
    """Save what `select` returned."""
    notes = dict(metadata)
    dataset, labels = notes.pop("fingerprint", None), notes.pop("labels", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    selection.save(path, notes, dataset=dataset, labels=labels)


def adapted(settings: Settings, *, strategy: str, small_batches: bool) -> tuple[Settings, Data]:
    """Adapt the epochs (`strategy`, as for `methods.fixed`) and the batch size of a run on a coreset to its size."""
    if strategy not in ("E", "P"):
        raise UsageError(suggest(strategy, ["E", "P"], what="strategy"))
    check(settings)
    if settings.selection is None:
        raise UsageError("--strategy and --small-batches are for training on a coreset: give --selection FILE")
    data = load_data(settings)
    size = len(data.train)
    selection = Selection.load(settings.selection, data.train)
    epochs = fixed(size, selection=selection, epochs=settings.epochs, strategy=strategy).epochs  # type: ignore[arg-type]
    if small_batches:
        settings = replace(settings, batch_size=coresets.small_batch(settings.batch_size, len(selection) / size))
    return replace(settings, epochs=epochs), data


@contextmanager
def _passes(model: nn.Module) -> Iterator[list[int]]:
    """Count the samples that pass forward through a model, or back to its input, which costs about as much."""
    passed: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        logits = logits_of(output)
        passed.append(len(logits))
        if logits.requires_grad:
            logits.register_hook(lambda gradient: passed.append(len(gradient)))

    handle = model.register_forward_hook(count)
    try:
        yield passed
    finally:
        handle.remove()


def _inputs(
    name: str, path: Path | None, data: Data | None, model_name: str | None, others: Sequence[Path] = ()
) -> tuple[Inputs, dict[str, Any]]:
    """The inputs of a selector, and metadata about them."""
    if path is None:
        assert data is not None
        lacks = [_lacks(name, Path(data.name), "a scoring run") for _ in range(4)]
        return Inputs(len(data.train), data.train.labels, *lacks), {"fingerprint": fingerprint(data.train)}
    if path.is_dir():
        run = _ScoringRun(name, path, data, model_name)
        tables = [run.table, *(_ScoringRun(name, other, data, model_name).table for other in others)]
        scores, size = _columns(replace(run.table, scores=dynamics.average([each.scores for each in tables])), path)
        return Inputs(size, run.table.labels, scores, run.extracted, run.validation, run.model_and_samples), run.notes
    if model_name is not None:
        raise UsageError(f"--model is for the folder of a scoring run, and {path} is a file: leave it out")
    if not path.exists():
        raise UsageError(f"there is no {path}: give the folder of `dataprune score`, a table of scores, or features")
    model = _lacks(name, path, "the model")
    if path.suffix == ".safetensors":
        parts = _read(path)
        features = _extracted(parts, path)

        def extracted() -> Extracted:
            for part in _BESIDE_FEATURES.get(coresets.METHODS[name].needs, ()):
                if part not in parts:
                    raise UsageError(f"{name} needs `{part}` beside the features: {path} has {', '.join(parts)}")
            return features

        scores, size = _lacks(name, path, "scores"), len(features.features)
        return Inputs(size, parts.get("labels"), scores, extracted, lambda: _extracted(parts, path, "val_"), model), {}
    table = dynamics.load_scores(path)
    scores, size = _columns(table, path)
    features, validation = _lacks(name, path, "features"), _lacks(name, path, "features of a validation set")
    notes = {key: table.notes[key] for key in ("fingerprint", "settings") if key in table.notes}
    return Inputs(size, table.labels, scores, features, validation, model), notes


class _ScoringRun:
    """The inputs that a scoring run gives; passes over its data are made when first needed, and kept in its folder."""

    def __init__(self, name: str, folder: Path, data: Data | None, model_name: str | None):
        self.name, self.folder, self._data, self._model_name = name, folder, data, model_name
        self.settings, record = run_folder.read(folder)
        if record is None:
            raise UsageError(f"the run in {folder} is not finished: repeat its `dataprune score`, which resumes it")
        if record.scores is None:
            raise UsageError(f"{folder} holds a run without scores: it must be one of `dataprune score`")
        self.table = dynamics.load_scores(folder / record.scores)
        self.notes: dict[str, Any] = {"fingerprint": record.fingerprint, "settings": self.settings.as_dict()}
        self.extracted_file = folder / "extracted.safetensors"

    @cached_property
    def data(self) -> Data:
        data = load_data(self.settings) if self._data is None else self._data
        if fingerprint(data.train) != self.notes["fingerprint"]:
            raise DataError(f"the data is no longer what {self.folder} was scored on: score it again")
        return data

    @cached_property
    def trained(self) -> Trained:
        return load(self.folder, self.settings.device, self._model_name)

    @cached_property
    def model(self) -> nn.Module:
        return self.trained.model()

    @cached_property
    def parts(self) -> dict[str, Tensor]:
        """Features, logits and labels of the training set, and of the validation split with `val_` before them."""
        try:
            file = safe_open(str(self.extracted_file), framework="pt")
        except (SafetensorError, OSError):
            self._extract()
            file = safe_open(str(self.extracted_file), framework="pt")
        with file:
            self.notes["extract_seconds"] = json.loads(file.metadata()["dataprune"])["seconds"]
        parts = _read(self.extracted_file)
        self.notes["extract_samples"] = sum(len(parts[name]) for name in ("features", "val_features") if name in parts)
        return parts

    def _extract(self) -> None:
        """Write the features of the training set and the validation split."""
        data, model = self.data, self.model
        started, tensors = time.perf_counter(), {}
        for prefix, part in (("", data.train), ("val_", data.val)):
            if part is not None:
                samples = batches(part, device_of(model), self.trained.prepare, workers=self.settings.workers)
                for field, value in vars(coresets.extract(model, samples)).items():
                    tensors[prefix + field] = torch.as_tensor(value).contiguous()
        notes = json.dumps({"seconds": time.perf_counter() - started})
        files.write_bytes(self.extracted_file, save(tensors, metadata={"dataprune": notes}))

    def extracted(self) -> Extracted:
        return _extracted(self.parts, self.extracted_file)

    def validation(self) -> Extracted:
        if "val_features" not in self.parts:
            remedy = "score with --val-fraction 0.1, or select with --option validation=train"
            raise UsageError(f"{self.name} needs a validation split: {remedy}")
        return _extracted(self.parts, self.extracted_file, "val_")

    def model_and_samples(self) -> tuple[nn.Module, Tensor]:
        train = self.data.train
        if not isinstance(train, Images):
            raise UsageError(
                f"{self.name} needs all images in memory, and these are read from disk: take a --train-size"
            )
        return self.model, self.trained.prepare(train.images)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is no readable safetensors file ({error})") from error


def _extracted(parts: Mapping[str, Tensor], path: Path, prefix: str = "") -> Extracted:
    features = parts.get(prefix + "features")
    if features is None:
        raise UsageError(f"{path} holds no `{prefix}features` (but {', '.join(parts) or 'nothing'})")
    nothing, bias = torch.empty(0), bool(parts.get("bias", True))
    return Extracted(features, parts.get(prefix + "logits", nothing), parts.get(prefix + "labels", nothing), bias)


def _columns(table: dynamics.Scores, path: Path) -> tuple[Callable[[str], Tensor], int]:
    """A function from the name of a score to its column, and the columns' length."""

    def column(name: str) -> Tensor:
        if name not in table.scores:
            raise UsageError(f"{path}: " + suggest(name, table.scores, what="score"))
        return table.scores[name]

    return column, len(next(iter(table.scores.values())))


def _lacks(name: str, path: Path, what: str) -> Callable[..., Any]:
    """A function that refuses what a path does not give."""

    def refuse(*_: Any) -> Any:
        raise UsageError(f"{name} needs {what}, which {path} does not hold: give the folder of `dataprune score`")

    return refuse
