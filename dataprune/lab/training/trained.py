"""A trained classifier, read from the folder of a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import CheckpointError, UsageError
from ..data.augment import normalize
from ..models.build import build
from . import run_folder
from .device import choose_device
from .run_folder import InputFormat
from .settings import Settings


class Trained(NamedTuple):
    """A trained model, as plain values that travel to other machines."""

    settings: Settings
    weights: dict[str, Tensor]
    input: InputFormat

    def model(self) -> nn.Module:
        """Build the model on the settings' device; CheckpointError if the weights are another's."""
        settings = self.settings
        model = build(settings.model, self.input.shape, self.input.classes, settings.seed)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(f"the weights are not those of {settings.model} ({error}): train again") from error
        return model.to(choose_device(settings.device))

    def prepare(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise pixels as in training."""
        return normalize(pixels, self.input.mean, self.input.std)


def load(run: Path, device: str | None, model: str | None = None) -> Trained:
    """Load the model that a run left in its folder.

    A folder may come from elsewhere: a "module:function" in it, which would be imported, is not believed unless the
    caller names the same as `model`.

    Raises:
        UsageError: if there is none, it is no classifier, or its model is not `model`.
        CheckpointError: if its files are damaged.
    """
    settings, record = run_folder.read(run)
    weights = run / "model.safetensors"
    if ":" in settings.model and model is None:
        raise UsageError(
            f"{run} names the model {settings.model}, code that would be imported: if you trust it, give --model "
            f"{settings.model}"
        )
    if model not in (None, settings.model):
        raise UsageError(f"--model {model}: the run in {run} trained {settings.model}")
    if settings.task != "classification":
        raise UsageError(f"{run} was trained without labels: give a classifier of `dataprune train` or `score`")
    if record is None or record.input is None or not weights.exists():
        raise UsageError(f"{run} holds no finished run with its model.safetensors: train it first")
    try:
        return Trained(replace(settings, device=device), load_file(weights), record.input)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} is damaged ({error}): delete {run}, and train again") from error
