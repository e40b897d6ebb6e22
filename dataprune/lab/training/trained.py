"""A trained classifier, read from the folder of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import CheckpointError, DataError, UsageError
from ..data.augment import normalize
from ..data.folders import check_labels
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

    def columns(self, labels: Int[Tensor, " b"], names: Sequence[str], source: str) -> Int[Tensor, " b"]:
        """The model's output for each label: by the name of its class where both data sets have names, else by its id.

        Args:
            labels: class ids in the data.
            names: of the data's classes, in the order of their ids; empty where it has none.
            source: of the labels, in errors.
        Raises:
            DataError: if the model does not know a class.
        """
        numbers = [str(number) for number in range(self.input.classes)]
        known = list(self.input.names or numbers)
        named = bool(names) and _numbered(names) == _numbered(known)
        if named:
            check_labels(source, labels, len(names))
        elif known == numbers or not _numbered(known):  # else the model's classes are the ids that occurred
            check_labels(source, labels, len(known), "the model knows")
            return labels
        ids, place = labels.unique(return_inverse=True)
        own = [str(names[int(number)] if named else int(number)) for number in ids]
        exact, loose = ({key(name): at for at, name in enumerate(known)} for key in (str, _plain))
        columns = [exact.get(name, loose.get(_plain(name), -1)) for name in own]
        if -1 in columns:
            listed = ", ".join(known[:5]) + (" ..." if len(known) > 5 else "")
            raise DataError(
                f"{source} has the class {own[columns.index(-1)]!r}, and the model knows {listed}: score with a model "
                "that was trained on these classes"
            )
        return torch.tensor(columns)[place]


def _numbered(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _plain(name: str) -> str:
    """Without spaces and capitals, in which copies of a data set differ."""
    return "".join(name.split()).casefold()


def load(run: Path, device: str | None, model: str | None = None) -> Trained:
    """Load the model that a run left in its folder.

    A folder may come from elsewhere: a "module:function" in it, which would be imported, is not believed unless the
    caller names the same as `model`.
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
