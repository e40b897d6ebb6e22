"""What a run learns: classes, or which views are of one image. A task makes the model, its inputs and its losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...contrastive import SimCLR, Views, knn_accuracy, linear_probe, nt_xent
from ...errors import DataError, UsageError
from ...modules import last_layer
from ..data.augment import augment, normalize
from ..data.named import Data, Images, Streamed, Texts
from ..models import build
from . import run_folder
from .evaluate import accuracy, outputs
from .settings import Settings

_BANK = 5000  # training samples that validation compares with: the same in every epoch and run


class Task(Protocol):
    """What `fit` asks of a task."""

    counts: bool  # whether a sample is right or wrong

    def model(self) -> nn.Module:
        """The model to train, on the CPU."""
        ...

    def inputs(self, samples: Tensor, index: Tensor, epoch: int, /) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """What the model is called with."""
        ...

    def losses(self, output: Any, labels: Int[Tensor, " b"]) -> tuple[Tensor, Any, Tensor | None]:
        """One loss per sample, what a criterion reads, and how many samples are right, where that can be said."""
        ...

    def validate(self, model: nn.Module, part: Images | Streamed | Texts, device: torch.device) -> float:
        """Accuracy on a part of the data, as in every epoch."""
        ...

    def test(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """What the record says of the test set; `accuracy` among it."""
        ...

    def save(self, model: nn.Module, out: Path) -> None:
        """Leave the weights in the run's folder."""
        ...


def of(settings: Settings, data: Data) -> Task:
    """The settings' task."""
    if settings.glue:
        from .language import Language

        return Language(settings, data)
    return Contrastive(settings, data) if settings.task == "contrastive" else Classification(settings, data)


class Classification:
    """Cross-entropy of the classes.

    Args:
        settings: of the run.
        data: of the run.
    """

    counts = True

    def __init__(self, settings: Settings, data: Data):
        self.settings, self.data = settings, data

    def model(self) -> nn.Module:
        """The settings' model, its weights new or those of `--init`."""
        model = build.build(self.settings.model, self.data.shape, len(self.data.classes), self.settings.seed)
        if self.settings.init is not None:
            initialize(model, Path(self.settings.init), self.data)
        return model

    def inputs(self, pixels: Tensor, index: Tensor, epoch: int) -> tuple[Tensor]:
        """Augmented and normalised."""
        chosen = self.settings
        mode = cast(Any, chosen.shift_mode)
        made = augment(pixels, index, seed=chosen.seed, epoch=epoch, shift=chosen.shift, mode=mode, flip=chosen.flip)
        return (prepare(made, self.data, self.settings),)

    def losses(self, output: Any, labels: Int[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropies, logits, and how many are right."""
        logits = output.float()
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.settings.label_smoothing)
        return losses, logits, (logits.detach().argmax(dim=1) == labels).sum()

    def validate(self, model: nn.Module, part: Images | Streamed | Texts, device: torch.device) -> float:
        """Share of samples whose highest logit is the label's."""
        workers = self.settings.workers
        return accuracy(model, part, lambda pixels: prepare(pixels, self.data, self.settings), device, workers=workers)

    def test(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The accuracy on the test set."""
        return {"accuracy": self.validate(model, self.data.test, device)}

    def save(self, model: nn.Module, out: Path) -> None:
        """As model.safetensors."""
        save_weights(model, out)


class Contrastive:
    """SimCLR: NT-Xent of two views of every image. What the features are worth is told by their neighbours and a probe.

    Args:
        settings: of the run.
        data: of the run.
    """

    counts = False

    def __init__(self, settings: Settings, data: Data):
        self.settings, self.data = settings, data
        make = Views if settings.views == "paper" else Views.simclr
        self.views = make(mean=data.mean, std=data.std)

    def model(self) -> nn.Module:
        """SimCLR around the settings' model without its last layer."""
        settings = self.settings
        encoder = build.build(settings.model, self.data.shape, len(self.data.classes), settings.seed)
        encoder, width = headless(encoder, self.data)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed + 1)
            return SimCLR(encoder, settings.dim, features=width)

    def inputs(self, pixels: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Two views."""
        pair = self.views(pixels, index, seed=self.settings.seed, epoch=epoch)
        form = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return pair[0].contiguous(memory_format=form), pair[1].contiguous(memory_format=form)

    def losses(self, output: Any, labels: Int[Tensor, " b"]) -> tuple[Tensor, Any, None]:
        """NT-Xent, and the pair that the score's distance is taken of."""
        features, projections = output
        chosen = self.settings
        z_i, z_j = projections
        losses = nt_xent(z_i, z_j, chosen.temperature, "none", gather=chosen.gather)
        pair = features if chosen.score_on == "features" else projections
        return losses, (pair[0].detach(), pair[1].detach()), None

    def validate(self, model: nn.Module, part: Images | Streamed | Texts, device: torch.device) -> float:
        """Accuracy of the nearest neighbours among the first training samples."""
        bank = self.data.train
        bank = bank.subset(torch.arange(min(_BANK, len(bank))))
        return self._neighbours(self._features(model, bank, device), self._features(model, part, device))

    def test(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """`accuracy` of a linear probe on all training samples' features, `knn_accuracy` of their neighbours."""
        train = self._features(model, self.data.train, device)
        test = self._features(model, self.data.test, device)
        return {"accuracy": linear_probe(*train, *test), "knn_accuracy": self._neighbours(train, test)}

    def save(self, model: nn.Module, out: Path) -> None:
        """As model.safetensors, the projection too."""
        save_weights(model, out)

    def _neighbours(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
        return knn_accuracy(*train, *test, k=min(20, len(train[1])))

    def _features(
        self, model: nn.Module, part: Images | Streamed | Texts, device: torch.device
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        workers = self.settings.workers
        encoder = cast(SimCLR, model).encoder
        return outputs(encoder, part, lambda pixels: prepare(pixels, self.data, self.settings), device, workers=workers)


def prepare(pixels: Tensor, data: Data, settings: Settings) -> Float[Tensor, "b c h w"]:
    """Normalised, in the model's memory format."""
    inputs = normalize(pixels, data.mean, data.std, torch.float32)
    return inputs.contiguous(memory_format=torch.channels_last) if settings.channels_last else inputs


def save_weights(model: nn.Module, out: Path) -> None:
    """The model's weights and buffers as model.safetensors in a run's folder."""
    weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
    run_folder.write(out / "model.safetensors", save(weights))


def headless(model: nn.Module, data: Data) -> tuple[nn.Module, int]:
    """A classifier without its last linear layer, and how many features that layer read.

    Raises:
        UsageError: if no linear layer makes its logits.
    """
    name, layer = _last(model, data)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.Identity())
    return model, cast(int, layer.in_features)


def initialize(model: nn.Module, path: Path, data: Data) -> None:
    """Load the weights that a run left, all but those of the last layer, whose classes may be others.

    Args:
        model: new.
        path: the folder of a run, of `dataprune pretrain` or any other, or its model.safetensors.
        data: of the run to come.
    Raises:
        UsageError: if there is no such file.
        DataError: if the weights are not this model's.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise UsageError(f"--init {path}: there is no {file}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"--init {file} cannot be read ({error})") from error
    if any(name.startswith("encoder.") for name in weights):
        weights = {name.removeprefix("encoder."): one for name, one in weights.items() if name.startswith("encoder.")}
    head = _last(model, data)[0]
    own = {name: one for name, one in model.state_dict().items() if not name.startswith(head + ".")}
    given = {name: one for name, one in weights.items() if not name.startswith(head + ".")}
    wrong = [name for name in own.keys() | given.keys() if name not in own or name not in given]
    wrong += [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    if wrong:
        raise DataError(
            f"--init {file} holds another model's weights ({_first(wrong)} fit): give "
            "the same --model and images of the same shape"
        )
    model.load_state_dict(given, strict=False)


def _first(wrong: list[str]) -> str:
    more = len(wrong) - 1
    return f"{min(wrong)} and {more} more do not" if more else f"{wrong[0]} does not"


def _last(model: nn.Module, data: Data) -> tuple[str, nn.Module]:
    """Name and module of the layer that makes the logits."""
    try:
        layer = last_layer(model, torch.zeros(2, *data.shape))
    except ValueError as error:
        raise UsageError(
            "the model has no linear layer that makes its logits from (B, D) features: pre-training and --init need one"
        ) from error
    return next((name, module) for name, module in model.named_modules() if module is layer)
