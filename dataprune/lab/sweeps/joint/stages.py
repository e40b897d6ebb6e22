"""The stages of joint pruning, each a run with a folder of its own: scoring, training, pruning with fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .... import distributed, network
from ....dynamics import Recorder, forgetting, load_scores, save_scores
from ....errors import CheckpointError, UsageError
from ....modules import inference
from ....selection import fingerprint
from ...data.augment import normalize
from ...data.named import Data
from ...models import build
from ...training import evaluate, run_folder, setup
from ...training.run import Report, fit
from ...training.settings import Settings


@dataclass(frozen=True)
class Pruning:
    """How a trained model is pruned.

    Attributes:
        amount: share of the weights.
        scope: "layer" or "global", as for `network.prune`.
        reinitialize: whether what is left begins again from random weights, those of the fine-tuning run's seed.
        seed: decides between equal magnitudes.
    """

    amount: float
    scope: str = "layer"
    reinitialize: bool = False
    seed: int = 0


def score(
    settings: Settings, out: Path, data: Data, report: Report | None = None
) -> tuple[dict[str, Any], dict[str, Float[Tensor, " n"]]]:
    """Train on all the data, and count the forgetting events of every sample between the ends of epochs.

    After every epoch the model predicts all training samples, in dataset order, not augmented and in evaluation mode.
    Each prediction is recorded under its sample's position. A sample is forgotten where it was right after an epoch and
    is wrong after the next.

    Args:
        settings: of the run.
        out: its folder; the scores are written there as a table.
        data: the settings' data.
        report: called after every epoch.
    Returns:
        The run's record, and two scores: `forgetting`, the count; `forgetting_last`, the same but for samples that were
        never right, which have the number of epochs there.
    Source: Gupta et al., "Drop it like it's hot: network pruning with data selection", Sections 3.2 and 4.1. Differs:
        nothing in the count. Whole batches only are trained, as everywhere in this library; all samples are scored.
    """
    seen = _Predictions(out / "recorder.pt", settings, data)
    look = _both(seen.record, report)
    metrics = fit(settings, out, data=data, report=look, save_model=False, test=False, prepare=seen.hold)
    path = out / ("scores.parquet" if find_spec("pyarrow") else "scores.csv")
    if distributed.rank() == 0 and not path.exists():
        notes = {"settings": settings.as_dict(), "fingerprint": fingerprint(data.train)}
        save_scores(path, seen.scores(), labels=data.train.labels, notes=notes)
        seen.path.unlink()
    distributed.barrier()
    return metrics, load_scores(path).scores


def train(
    settings: Settings, out: Path, data: Data, report: Report | None = None
) -> tuple[dict[str, Any], list[float]]:
    """Train a model, and keep its weights; its record, and its test accuracy after every epoch.

    The accuracy is for the figures, nothing is chosen by it.
    """
    curve = _Curve(out / "curve.json", settings, data)
    metrics = fit(settings, out, data=data, report=_both(curve.record, report), prepare=curve.hold)
    return metrics, curve.read()["accuracy"]


def finetune(
    settings: Settings,
    out: Path,
    data: Data,
    trained: Path,
    pruning: Pruning,
    report: Report | None = None,
    *,
    save_model: bool = False,
) -> dict[str, Any]:
    """Prune a trained model in one shot, and train on with its masks held.

    Args:
        settings: of the run that fine-tunes.
        out: its folder.
        data: the settings' data.
        trained: the folder of the run that the model comes from.
        pruning: how it is pruned.
        report: called after every epoch.
        save_model: whether `model.safetensors` is kept: a plain model, zero where it is pruned.
    Returns:
        `accuracy`, `pruned_accuracy` (before fine-tuning), `curve` (after pruning and after every epoch, on the test
        set), `sparsity` and `layers` (shares of zeros in the final weights), `samples`, and the FLOPs of this stage:
        `flops` as the hardware does them, `flops_sparse` if zeros were free.
    Raises:
        UsageError: if the folder holds a run that was pruned otherwise.
        CheckpointError: if the trained model is missing or damaged.
    """
    _note(pruning, trained, out)
    curve = _Curve(out / "curve.json", settings, data)

    def prepare(model: nn.Module) -> None:
        found = build.build(settings.model, data.shape, len(data.classes), settings.seed)
        _load(found, trained / "model.safetensors")
        masks = network.prune(found, pruning.amount, scope=pruning.scope, seed=pruning.seed)
        network.apply(model, masks)
        if not pruning.reinitialize:
            model.load_state_dict(found.state_dict())
        curve.begin(model)

    metrics = fit(settings, out, data=data, report=_both(curve.record, report), prepare=prepare)
    model = build.build(settings.model, data.shape, len(data.classes), settings.seed)
    _load(model, out / "model.safetensors")
    network.finalize(model)
    zeros, values = network.sparsity(model), curve.read()
    distributed.barrier()  # all have read the model
    if distributed.rank() == 0 and save_model:
        run_folder.write(out / "model.safetensors", save({k: v.contiguous() for k, v in model.state_dict().items()}))
    return {
        "accuracy": metrics["accuracy"],
        "pruned_accuracy": values["before"],
        "sparsity": zeros.overall,
        "layers": zeros.layers,
        "samples": metrics["samples"],
        "flops": flops(model, data, metrics["samples"]),
        "flops_sparse": flops(model, data, metrics["samples"], sparse=True),
        "curve": [values["before"], *values["accuracy"]],
    }


def flops(model: nn.Module, data: Data, samples: float, *, scored: float = 0, sparse: bool = False) -> float:
    """FLOPs of training a model on so many samples of the data, as `network.training_flops`."""
    return network.training_flops(model, torch.zeros(1, *data.shape), samples, scored=scored, sparse=sparse)


class _Watch:
    """Looks at a run's model after every epoch."""

    def __init__(self, path: Path, settings: Settings, data: Data):
        self.path, self.settings, self.data = path, settings, data
        self.device = setup.choose_device(settings.device)
        self.model: nn.Module | None = None

    def hold(self, model: nn.Module) -> None:
        """For `fit`'s `prepare`."""
        self.model = model

    def inputs(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return normalize(pixels, self.data.mean, self.data.std, torch.float32)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16)


class _Predictions(_Watch):
    """Forgetting events, counted from what the model predicts after every epoch.

    The recorder is written after every epoch, before the run's own checkpoint: a run that goes on from an earlier epoch
    trains the same way again, and what is recorded already is passed over.
    """

    def __init__(self, path: Path, settings: Settings, data: Data):
        super().__init__(path, settings, data)
        counted = {"forgetting": forgetting(never="zero"), "forgetting_last": forgetting(never="last")}
        self.recorder = Recorder(len(data.train), counted)
        if path.exists():
            state = run_folder.read_checkpoint(path)
            state.pop("schema")
            self.recorder.load_state_dict(state["recorder"])

    def record(self, line: dict[str, Any]) -> None:
        if line["epoch"] < self.recorder.epoch:
            return
        assert self.model is not None
        if distributed.rank() == 0:  # the others record nothing, and join what this one did
            done = 0
            with inference(self.model), self.autocast():
                parts = evaluate.batches(self.data.train, 512, self.device, self.settings.workers)
                for pixels, labels in parts:
                    index = torch.arange(done, done + len(labels), device=labels.device)
                    self.recorder.update(index, self.model(self.inputs(pixels)).float(), labels)
                    done += len(labels)
        self.recorder.end_epoch()
        if distributed.rank() == 0:
            run_folder.write_checkpoint(self.path, {"recorder": self.recorder.state_dict()})

    def scores(self) -> dict[str, Float[Tensor, " n"]]:
        if self.recorder.epoch != self.settings.epochs:
            raise CheckpointError(
                f"{self.path} holds {self.recorder.epoch} of {self.settings.epochs} epochs: delete {self.path.parent} "
                "to score again"
            )
        return self.recorder.scores()


class _Curve(_Watch):
    """Test accuracy, after every epoch; written as it grows, as the recorder of `_Predictions`."""

    def begin(self, model: nn.Module) -> None:
        """Hold the model, and note its accuracy as it is."""
        self.hold(model.to(self.device))
        if distributed.rank() == 0 and not self.path.exists():
            run_folder.write_json(self.path, {"before": self._accuracy(), "accuracy": []})

    def record(self, line: dict[str, Any]) -> None:
        if distributed.rank() != 0:
            return
        found = run_folder.read_json(self.path) if self.path.exists() else {"accuracy": []}
        if line["epoch"] == len(found["accuracy"]):
            run_folder.write_json(self.path, {**found, "accuracy": [*found["accuracy"], self._accuracy()]})

    def read(self) -> dict[str, Any]:
        found = run_folder.read_json(self.path) if self.path.exists() else {"accuracy": []}
        if len(found["accuracy"]) != self.settings.epochs:
            raise CheckpointError(f"{self.path} is not whole: delete {self.path.parent} to make this run again")
        return found

    def _accuracy(self) -> float:
        assert self.model is not None
        with self.autocast():
            return evaluate.accuracy(
                self.model, self.data.test, self.inputs, self.device, workers=self.settings.workers
            )


def _note(pruning: Pruning, trained: Path, out: Path) -> None:
    """Write down how the run is pruned, which its settings do not say, or compare it with what was written."""
    wanted, path = {**asdict(pruning), "trained": trained.name}, out / "pruning.json"
    if path.exists() and run_folder.read_json(path) != wanted:
        raise UsageError(f"{out} holds a model that was pruned otherwise: choose another --out, or delete it")
    distributed.barrier()
    if distributed.rank() == 0:
        run_folder.folder(out)
        run_folder.write_json(path, wanted)


def _load(model: nn.Module, path: Path) -> None:
    """Load weights, and the masks on them where there are any."""
    try:
        state = load_file(path)
        network.apply(model, network.Masks.of(state))
        model.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged ({error}): delete {path.parent} to train it again"
        ) from error


def _both(one: Report, other: Report | None) -> Callable[[dict[str, Any]], None]:
    def report(line: dict[str, Any]) -> None:
        one(line)
        if other is not None:
            other(line)

    return report
