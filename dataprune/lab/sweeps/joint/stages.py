"""What the jobs of joint pruning do besides training: count forgetting, follow accuracy, prune before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

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


def prune(model: nn.Module, weights: Path, pruning: Pruning, settings: Settings, data: Data, out: Path) -> None:
    """Prune trained weights in one shot; put them on a new model, or their masks alone if it is reinitialized.

    The folder of the run notes how its model is pruned, which its settings do not say.
    """
    if distributed.rank() == 0:
        run_folder.folder(out)
        files.write_json(out / "pruning.json", asdict(pruning))
    trained = load(weights, settings, data)
    network.apply(model, network.prune(trained, pruning.amount, scope=pruning.scope, seed=pruning.seed))
    if not pruning.reinitialize:
        model.load_state_dict(trained.state_dict())


def check_pruning(pruning: Pruning, out: Path) -> None:
    """Raise UsageError if the folder holds a model that was pruned otherwise."""
    path = out / "pruning.json"
    if path.exists() and files.read_json(path) != asdict(pruning):
        raise UsageError(f"{out} holds a model that was pruned otherwise: choose another --out, or delete it")


def load(weights: Path, settings: Settings, data: Data) -> nn.Module:
    """The settings' model with weights, and masks where there are, from a file; CheckpointError if it is damaged."""
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


# -- measuring after every epoch -------------------------------------------------------------------------------------

Watched = Literal["forgetting", "accuracy"]


def watch(
    watched: Watched | None, model: nn.Module, settings: Settings, out: Path, data: Data
) -> Callable[[int], None]:
    """Begin to measure a model in the folder of its run; the function returned is called after every epoch.

    Both measurements write their files before the run's own checkpoint: a run that resumes from an earlier epoch trains
    the same way again, and epochs that are recorded already are skipped. They touch their files only while the run's
    folder is claimed: another process may train in it first.
    """
    if watched is None:
        return lambda epoch: None
    device, task = choose_device(settings.device), tasks.of(settings, data)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.bf16)
    model.to(device)
    if watched == "accuracy":

        def accuracy() -> float:
            with autocast:
                return task.validate(model, data.test, device)

        return _watch_accuracy(accuracy, out / "curve.json")
    opened = cache(partial(_recorder, out, data))

    def record(epoch: int) -> None:
        """Count what was forgotten since the epoch before, in `recorder.pt`.

        The model predicts all training samples, in dataset order, not augmented and in evaluation mode. A sample is
        forgotten where it was right after an epoch and is wrong after the next.

        Source: Gupta et al., "Drop it like it's hot: network pruning with data selection", Sections 3.2 and 4.1.
            Differs: nothing in the count. Only whole batches are trained; all samples are scored.
        """
        recorder = opened()
        if epoch < recorder.epoch:
            return
        if distributed.rank() == 0:  # the other ranks record nothing, and receive the union
            start = 0
            with inference(model), autocast:
                for inputs, labels in evaluate.batches(data.train, device, task.prepare, workers=settings.workers):
                    index = torch.arange(start, start + len(labels), device=labels.device)
                    recorder.update(index, model(inputs).float(), labels)
                    start += len(labels)
        recorder.end_epoch()
        if distributed.rank() == 0:
            run_folder.write_checkpoint(out / "recorder.pt", {"recorder": recorder.state_dict()})

    return record


def _watch_accuracy(accuracy: Callable[[], float], path: Path) -> Callable[[int], None]:
    """Write the test accuracy before training and after every epoch, see `read_curve`; nothing is chosen by it."""

    def record(epoch: int) -> None:
        if distributed.rank() == 0:
            curve = files.read_json(path) if path.exists() else {"before": before, "accuracy": []}
            if epoch == len(curve["accuracy"]):
                files.write_json(path, {**curve, "accuracy": [*curve["accuracy"], accuracy()]})

    before = accuracy() if distributed.rank() == 0 and not path.exists() else None
    return record


def read_curve(out: Path, epochs: int) -> dict[str, Any]:
    """Test accuracy `before` training, and as a list after every epoch, of a finished run that watched "accuracy"."""
    path = out / "curve.json"
    curve = files.read_json(path) if path.exists() else {}
    if len(curve.get("accuracy", ())) != epochs:
        raise CheckpointError(f"{path} is incomplete: delete {out} to repeat this run")
    return curve


def _recorder(out: Path, data: Data) -> Recorder:
    """The folder's record of forgetting so far."""
    statistics = {"forgetting": forgetting(never="zero"), "forgetting_last": forgetting(never="last")}
    recorder, path = Recorder(len(data.train), statistics), out / "recorder.pt"
    if path.exists():
        recorder.load_state_dict(run_folder.read_checkpoint(path)["recorder"])
    return recorder


def forgotten(settings: Settings, out: Path, data: Data) -> dict[str, Float[Tensor, " n"]]:
    """Forgetting counts of every sample, from the folder of a finished run that watched "forgetting".

    `forgetting` is how often each sample was forgotten, 0 where it was never right; `forgetting_last` the same, but the
    number of epochs where it was never right. They are also written into the folder as a table of scores.
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
