"""What the jobs of joint pruning do besides training: count forgetting, follow accuracy, prune before training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .... import distributed, files, network
from ....dynamics import Recorder, forgetting, load_scores, save_scores
from ....errors import CheckpointError, UsageError
from ....modules import inference
from ....selection import fingerprint
from ...data.augment import normalize
from ...data.datasets import Samples
from ...data.named import Data
from ...models import build
from ...training import evaluate, run_folder
from ...training.device import choose_device
from ...training.settings import Settings

Watched = Literal["forgetting", "accuracy"]


@dataclass(frozen=True)
class Pruning:
    """How a trained model is pruned.

    Attributes:
        amount: share of the weights.
        scope: "layer" or "global", as for `network.prune`.
        reinitialize: restart the remaining weights from random values, those of the fine-tuning run's seed.
        seed: decides between equal magnitudes.
    """

    amount: float
    scope: str = "layer"
    reinitialize: bool = False
    seed: int = 0


def prune(model: nn.Module, weights: Path, pruning: Pruning, settings: Settings, data: Data) -> None:
    """Prune trained weights in one shot and put them, or their masks alone, on a new model.

    Args:
        model: new model; gets the masks, and the trained weights unless `pruning.reinitialize`.
        weights: model.safetensors of the training run.
        pruning: how they are pruned.
        settings: of the run that fine-tunes.
        data: of that run.
    Raises:
        CheckpointError: if the weights are missing or damaged.
    """
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
    """Write into a run's folder how its model is pruned, which its settings do not say.

    Raises:
        UsageError: if the folder holds a model that was pruned otherwise.
    """
    check_pruning(pruning, out)
    distributed.barrier()
    if distributed.rank() == 0:
        run_folder.folder(out)
        files.write_json(out / "pruning.json", asdict(pruning))


def check_pruning(pruning: Pruning, out: Path) -> None:
    """Raise UsageError if the folder holds a model that was pruned otherwise."""
    path = out / "pruning.json"
    if path.exists() and files.read_json(path) != asdict(pruning):
        raise UsageError(f"{out} holds a model that was pruned otherwise: choose another --out, or delete it")


class Watch:
    """Looks at a run's model after every epoch; this one measures nothing."""

    def __init__(self, path: Path, settings: Settings, data: Data):
        self.path, self.settings, self.data = path, settings, data
        self.device = choose_device(settings.device)
        self.model: nn.Module | None = None

    @staticmethod
    def of(watched: Watched | None, settings: Settings, out: Path, data: Data) -> Watch:
        """What measures "forgetting" or test "accuracy" in a run's folder."""
        match watched:
            case "forgetting":
                return Forgetting(out / "recorder.pt", settings, data)
            case "accuracy":
                return Accuracy(out / "curve.json", settings, data)
        return Watch(out, settings, data)

    def begin(self, model: nn.Module) -> None:
        """Take the model, before training begins or goes on."""
        self.model = model

    def record(self, line: dict[str, Any]) -> None:
        """Measure after an epoch, whose line of the history is given."""

    def _batches(self, part: Samples) -> Iterator[tuple[Tensor, Tensor]]:
        def prepare(pixels: Tensor) -> Tensor:
            return normalize(pixels, self.data.mean, self.data.std)

        return evaluate.batches(part, self.device, prepare, workers=self.settings.workers)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16)


class Forgetting(Watch):
    """Counts forgetting events between the ends of epochs, in `recorder.pt`.

    After every epoch the model predicts all training samples, in dataset order, not augmented and in evaluation mode.
    A sample is forgotten where it was right after an epoch and is wrong after the next.

    The recorder is written before the run's own checkpoint: a run that resumes from an earlier epoch trains the same
    way again, and epochs that are recorded already are skipped.

    Source: Gupta et al., "Drop it like it's hot: network pruning with data selection", Sections 3.2 and 4.1. Differs:
        nothing in the count. Only whole batches are trained, as everywhere in this library; all samples are scored.
    """

    def __init__(self, path: Path, settings: Settings, data: Data):
        super().__init__(path, settings, data)
        statistics = {"forgetting": forgetting(never="zero"), "forgetting_last": forgetting(never="last")}
        self.recorder = Recorder(len(data.train), statistics)
        if path.exists():
            self.recorder.load_state_dict(run_folder.read_checkpoint(path)["recorder"])

    def record(self, line: dict[str, Any]) -> None:
        if line["epoch"] < self.recorder.epoch:
            return
        assert self.model is not None
        if distributed.rank() == 0:  # the other ranks record nothing, and receive the union
            start = 0
            with inference(self.model), self.autocast():
                for pixels, labels in self._batches(self.data.train):
                    index = torch.arange(start, start + len(labels), device=labels.device)
                    self.recorder.update(index, self.model(pixels).float(), labels)
                    start += len(labels)
        self.recorder.end_epoch()
        if distributed.rank() == 0:
            run_folder.write_checkpoint(self.path, {"recorder": self.recorder.state_dict()})

    def scores(self) -> dict[str, Float[Tensor, " n"]]:
        """The counts after all epochs.

        Raises:
            CheckpointError: if an epoch is missing.
        """
        if self.recorder.epoch != self.settings.epochs:
            raise CheckpointError(
                f"{self.path} holds {self.recorder.epoch} of {self.settings.epochs} epochs: delete {self.path.parent} "
                "to score again"
            )
        return self.recorder.scores()


class Accuracy(Watch):
    """Writes the test accuracy before training and after every epoch into `curve.json`.

    It is for figures; nothing is chosen by it.
    """

    def begin(self, model: nn.Module) -> None:
        super().begin(model.to(self.device))
        if distributed.rank() == 0 and not self.path.exists():
            run_folder.folder(self.path.parent)
            files.write_json(self.path, {"before": self._accuracy(), "accuracy": []})

    def record(self, line: dict[str, Any]) -> None:
        if distributed.rank() != 0:
            return
        curve = files.read_json(self.path)
        if line["epoch"] == len(curve["accuracy"]):
            files.write_json(self.path, {**curve, "accuracy": [*curve["accuracy"], self._accuracy()]})

    def _accuracy(self) -> float:
        assert self.model is not None
        with self.autocast():
            return evaluate.accuracy(self.model, self._batches(self.data.test))


def forgotten(settings: Settings, out: Path, data: Data) -> dict[str, Float[Tensor, " n"]]:
    """Forgetting counts of every sample, from the folder of a finished run that watched "forgetting".

    Returns:
        `forgetting`: how often each sample was forgotten, 0 where it was never right; `forgetting_last`: the same, but
        the number of epochs where it was never right. They are also written into the folder as a table of scores.
    Raises:
        CheckpointError: if an epoch was not recorded.
    """
    path = out / ("scores.parquet" if find_spec("pyarrow") else "scores.csv")
    if distributed.rank() == 0 and not path.exists():
        watch = Forgetting(out / "recorder.pt", settings, data)
        notes = {"settings": settings.as_dict(), "fingerprint": fingerprint(data.train)}
        save_scores(path, watch.scores(), labels=data.train.labels, notes=notes)
        watch.path.unlink()
    distributed.barrier()
    return load_scores(path).scores


@dataclass(frozen=True)
class Curve:
    """Test accuracy before training and after every epoch."""

    before: float
    accuracy: list[float]

    @classmethod
    def read(cls, out: Path, epochs: int) -> Curve:
        """From the folder of a finished run that watched "accuracy".

        Raises:
            CheckpointError: if an epoch is missing.
        """
        path = out / "curve.json"
        content = files.read_json(path) if path.exists() else {}
        if len(content.get("accuracy", ())) != epochs:
            raise CheckpointError(f"{path} is incomplete: delete {out} to repeat this run")
        return cls(content["before"], content["accuracy"])
