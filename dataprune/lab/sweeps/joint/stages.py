"""What the jobs of joint pruning do besides training: count forgetting, follow accuracy, prune before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .... import distributed, files, network
from ....dynamics import Recorder, forgetting, load_scores
from ....errors import CheckpointError, UsageError
from ....modules import inference
from ....selection import fingerprint
from ...data.named import Data
from ...models import build
from ...training import evaluate, run_folder, tasks
from ...training.device import choose_device
from ...training.settings import Settings

# -- pruning before training -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pruning:
    """How a trained model is pruned."""

    amount: float  # share of the weights
    scope: str = "layer"  # or "global", as for `network.prune`
    reinitialize: bool = False  # restart the remaining weights from random values, those of the fine-tuning run's seed
    seed: int = 0  # decides between equal magnitudes


def prune(model: nn.Module, weights: Path, pruning: Pruning, settings: Settings, data: Data) -> None:
    """Prune trained weights in one shot; put them on a new model, or their masks alone if it is reinitialized."""
    trained = load(weights, settings, data)
    network.apply(model, network.prune(trained, pruning.amount, scope=pruning.scope, seed=pruning.seed))
    if not pruning.reinitialize:
        model.load_state_dict(trained.state_dict())


def load(weights: Path, settings: Settings, data: Data) -> nn.Module:
    """The settings' model with weights from a file, and with masks where the file has them.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    model = build.build(settings.model, data.shape, len(data.classes), settings.seed)
    try:
        state = load_file(weights)
        network.apply(model, network.Masks.of(state))
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{weights} is missing or damaged ({error}): delete {weights.parent} to train it again"
        ) from error
    return model


def flops(model: nn.Module, data: Data, samples: float, *, scored: float = 0, sparse: bool = False) -> float:
    """FLOPs of training a model on so many samples of the data, as `network.training_flops`."""
    return network.training_flops(model, torch.zeros(1, *data.shape), samples, scored=scored, sparse=sparse)


def note_pruning(pruning: Pruning, out: Path) -> None:
    """Write into a run's folder how its model is pruned, which its settings do not say."""
    if distributed.rank() == 0:
        run_folder.folder(out)
        files.write_json(out / "pruning.json", asdict(pruning))


def check_pruning(pruning: Pruning, out: Path) -> None:
    """Raise UsageError if the folder holds a model that was pruned otherwise."""
    path = out / "pruning.json"
    if path.exists() and files.read_json(path) != asdict(pruning):
        raise UsageError(f"{out} holds a model that was pruned otherwise: choose another --out, or delete it")


# -- measuring after every epoch -------------------------------------------------------------------------------------

Watched = Literal["forgetting", "accuracy"]


def watch(
    watched: Watched | None, model: nn.Module, settings: Settings, out: Path, data: Data
) -> Callable[[int], None]:
    """Begin to measure a model in the folder of its run; the function returned is called after every epoch.

    Both measurements write their files before the run's own checkpoint: a run that resumes from an earlier epoch trains
    the same way again, and epochs that are recorded already are skipped.
    """
    match watched:
        case "forgetting":
            return _watch_forgetting(model, settings, out, data)
        case "accuracy":
            return _watch_accuracy(model, settings, out, data)
    return lambda epoch: None


def _watch_forgetting(model: nn.Module, settings: Settings, out: Path, data: Data) -> Callable[[int], None]:
    """Count forgetting events between the ends of epochs, in `recorder.pt`.

    After every epoch the model predicts all training samples, in dataset order, not augmented and in evaluation mode.
    A sample is forgotten where it was right after an epoch and is wrong after the next.

    Source: Gupta et al., "Drop it like it's hot: network pruning with data selection", Sections 3.2 and 4.1. Differs:
        nothing in the count. Only whole batches are trained, as everywhere in this library; all samples are scored.
    """
    recorder, device, task = _recorder(out, data), choose_device(settings.device), tasks.of(settings, data)

    def record(epoch: int) -> None:
        if epoch < recorder.epoch:
            return
        if distributed.rank() == 0:  # the other ranks record nothing, and receive the union
            start = 0
            with inference(model), _autocast(settings):
                for inputs, labels in evaluate.batches(data.train, device, task.prepare, workers=settings.workers):
                    index = torch.arange(start, start + len(labels), device=labels.device)
                    recorder.update(index, model(inputs).float(), labels)
                    start += len(labels)
        recorder.end_epoch()
        if distributed.rank() == 0:
            run_folder.write_checkpoint(out / "recorder.pt", {"recorder": recorder.state_dict()})

    return record


def _recorder(out: Path, data: Data) -> Recorder:
    """The folder's record of forgetting so far."""
    statistics = {"forgetting": forgetting(never="zero"), "forgetting_last": forgetting(never="last")}
    recorder, path = Recorder(len(data.train), statistics), out / "recorder.pt"
    if path.exists():
        recorder.load_state_dict(run_folder.read_checkpoint(path)["recorder"])
    return recorder


def forgotten(settings: Settings, out: Path, data: Data) -> dict[str, Float[Tensor, " n"]]:
    """Forgetting counts of every sample, from the folder of a finished run that watched "forgetting".

    Returns:
        `forgetting`: how often each sample was forgotten, 0 where it was never right; `forgetting_last`: the same, but
        the number of epochs where it was never right. They are also written into the folder as a table of scores.
    Raises:
        CheckpointError: if an epoch was not recorded.
    """
    paths = [out / "scores.parquet", out / "scores.csv"]
    if distributed.rank() == 0 and not any(path.exists() for path in paths):
        recorder, recorded = _recorder(out, data), out / "recorder.pt"
        if recorder.epoch != settings.epochs:
            raise CheckpointError(
                f"{recorded} holds {recorder.epoch} of {settings.epochs} epochs: delete {out} to score again"
            )
        notes = {"settings": settings.as_dict(), "fingerprint": fingerprint(data.train)}
        run_folder.write_scores(out, recorder.scores(), data.train.labels, notes)
        recorded.unlink()
    distributed.barrier()
    return load_scores(next(path for path in paths if path.exists())).scores


@dataclass(frozen=True)
class Curve:
    """Test accuracy before training and after every epoch, in `curve.json`; nothing is chosen by it."""

    before: float
    accuracy: list[float]

    @classmethod
    def read(cls, out: Path, epochs: int) -> Curve:
        """From the folder of a finished run that watched "accuracy".

        Raises:
            CheckpointError: if an epoch is missing.
        """
        path = out / "curve.json"
        curve = cls(**files.read_json(path)) if path.exists() else None
        if curve is None or len(curve.accuracy) != epochs:
            raise CheckpointError(f"{path} is incomplete: delete {out} to repeat this run")
        return curve


def _watch_accuracy(model: nn.Module, settings: Settings, out: Path, data: Data) -> Callable[[int], None]:
    """Write the test accuracy before training, and after every epoch, as a `Curve`."""
    device, path, task = choose_device(settings.device), out / "curve.json", tasks.of(settings, data)

    def accuracy() -> float:
        with _autocast(settings):
            return task.validate(model, data.test, device)

    def record(epoch: int) -> None:
        if distributed.rank() == 0:
            curve = Curve(**files.read_json(path))
            if epoch == len(curve.accuracy):
                files.write_json(path, asdict(replace(curve, accuracy=[*curve.accuracy, accuracy()])))

    model.to(device)
    if distributed.rank() == 0 and not path.exists():
        run_folder.folder(out)
        files.write_json(path, asdict(Curve(accuracy(), [])))
    return record


def _autocast(settings: Settings) -> torch.autocast:
    return torch.autocast(choose_device(settings.device).type, dtype=torch.bfloat16, enabled=settings.bf16)
