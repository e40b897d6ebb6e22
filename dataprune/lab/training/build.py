"""From settings to the parts of a run: data, pruner, statistics, optimizer and learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from importlib.util import find_spec

from jaxtyping import Int
from torch import Tensor

from ... import coresets, distributed, learning_rate
from ...dynamics import STATISTICS, Statistic
from ...errors import DataError, UsageError, suggest
from ...methods import METHODS, fixed, reads
from ...pruner import Pruner
from ...selection import Selection
from ..data import named
from ..data.named import Data
from ..models import build as models
from . import choosing
from .settings import ONLINE, Settings, flag, require

_AUGMENTATION = ("shift", "resized_crop", "flip")
_NOT_FOR_CONTRASTIVE = ("label_noise", "label_smoothing", *_AUGMENTATION, "recalibrate_bn", "statistics", "init")
_NOT_FOR_LANGUAGE = (*_AUGMENTATION, "image_size", "recalibrate_bn", "statistics", "channels_last")


def check(settings: Settings) -> None:
    """Refuse unknown names of methods, models and statistics, and settings that the task does not have."""
    if settings.selection is None:
        _check_method(settings.method, settings.task)
    if settings.glue:
        _check_language(settings)
        return
    if settings.task == "contrastive":
        _refuse(settings, _NOT_FOR_CONTRASTIVE, "is not for contrastive learning: leave it out")
        require(
            settings.views != "simclr" or find_spec("kornia") is not None,
            "--views simclr changes colours with kornia: pip install -c constraints.txt -e '.[contrastive]'",
        )
    require(
        ":" in settings.model or settings.model in models.MODELS,
        suggest(settings.model, models.MODELS, what="model") + ", or module:function of your own",
    )
    what, known = ("statistic", STATISTICS) if settings.statistics else ("method", METHODS)
    for owner, options in settings.options().items():
        require(
            owner in ("", *METHODS, *coresets.METHODS, *STATISTICS, *choosing.NAMES),
            f"--option {owner}.{next(iter(options))}: {suggest(owner, known, what=what)}",
        )
    build_statistics(settings)


def _check_method(method: str, task: str) -> None:
    """Check that there is such a dynamic method, and that the task has what it reads."""
    if method.startswith(ONLINE):
        choosing.check(method, task)
        return
    require(
        method not in coresets.METHODS,
        f"{method} is a static method: `dataprune select` chooses by it, and train --selection FILE trains on the "
        "result; compare takes it by name",
    )
    require(method in METHODS, suggest(method, METHODS, what="method"))
    contrastive = task == "contrastive"
    alternative = "emp_contrastive, loss, rs2 ..." if contrastive else "emp"
    require(
        reads(method) not in (("probabilities", "classes") if contrastive else ("features",)),
        f"{method} is not for the task {task}: take {alternative}",
    )


def _check_language(settings: Settings) -> None:
    task = settings.task
    _refuse(settings, _NOT_FOR_LANGUAGE, f"is not for {task}: leave it out")
    _refuse(settings, ["init"], f"is not for {task}: give --model FOLDER to start from other weights")
    encoder = f"{task} needs a pretrained encoder: --model FOLDER, or its name on the hub"
    require(settings.model != Settings.model, encoder)
    installed = find_spec("transformers") is not None
    require(installed, f"{task} needs transformers: pip install -c constraints.txt -e '.[hf]'")
    if settings.glue == "stsb":
        require(
            settings.method not in ("memory", "learnability", "information") and reads(settings.method) != "classes",
            f"{settings.method} reads classes, and glue/stsb predicts a score: take loss",
        )
        _refuse(settings, ("label_noise", "label_smoothing"), "is for classes, and glue/stsb has scores: leave it out")


def _refuse(settings: Settings, names: Iterable[str], reason: str) -> None:
    for name in names:
        require(not getattr(settings, name), f"{flag(name)} {reason}")


def load_data(settings: Settings) -> Data:
    """Load the data that the settings name."""
    names = ("train_size", "test_size", "val_fraction", "label_noise")
    shared = {"folder": settings.data_folder, **{name: getattr(settings, name) for name in names}}
    if settings.glue:
        from ..data import glue

        return glue.load(settings.glue, settings.model, max_length=settings.max_length, **shared)
    return named.load(settings.data, image_size=settings.image_size, **shared)


def build_statistics(settings: Settings) -> dict[str, Statistic]:
    """Build the statistics that a scoring run records; UsageError for those undefined after so few epochs."""
    statistics: dict[str, Statistic] = {}
    for name in settings.statistic_names:
        require(name in STATISTICS, suggest(name, STATISTICS, what="statistic"))
        require(name not in statistics, f"statistic {name} is named twice")
        options = settings.options().get(name, {})
        known = inspect.signature(STATISTICS[name]).parameters
        _check_options(options, known, f"option of the statistic {name}")
        try:
            statistics[name] = STATISTICS[name](**options)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{name}: {error}") from error
        window, epochs = statistics[name].window, settings.epochs
        smaller = f", or give --option {name}.window={max(3, epochs // 2)}" if epochs > 2 else ""
        require(
            window <= epochs,
            f"{name} reads windows of {window} epochs, this run has {epochs}: raise the epochs{smaller}",
        )
    return statistics


def recordable(settings: Settings) -> list[str]:
    """Names of the statistics that are defined after the settings' epochs."""
    options = settings.options()
    windows = {name: options.get(name, {}).get("window", make().window) for name, make in STATISTICS.items()}
    return [name for name, window in windows.items() if window <= settings.epochs]


def build_pruner(
    settings: Settings, size: int, labels: Int[Tensor, " n"] | None = None, selection: Selection | None = None
) -> Pruner:
    """Build the pruner of the settings' method, or of their coreset, over `size` samples.

    The option `balance=true` needs the samples' labels; `selection` is the coreset, where it is loaded already.
    """
    if settings.selection is None:
        pruner = _dynamic(settings, size, labels)
        what, remedy = "a pruned epoch", "raise --keep" if settings.budget is None else "raise --budget"
    else:
        selection = Selection.load(settings.selection) if selection is None else selection
        try:
            pruner = fixed(size, selection=selection, epochs=settings.epochs, seed=settings.seed)
        except ValueError as error:
            raise DataError(f"{settings.selection}: {error}") from error
        what, remedy = "the coreset", "select more"
    what, batch = ("the training set", "super-batch") if settings.online else (what, "batch")
    smallest = -(-min(pruner.counts) // distributed.world_size())
    require(
        smallest >= settings.rows_read,
        f"{what} keeps {smallest} of {size} samples per rank, fewer than one {batch} of {settings.rows_read}: "
        f"{remedy} or lower --batch-size",
    )
    return pruner


def _check_options(options: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in options:
        require(name in known, suggest(name, known, what=what))


def _dynamic(settings: Settings, size: int, labels: Int[Tensor, " n"] | None) -> Pruner:
    if settings.online:
        choosing.build(settings)
        return METHODS["full"](size, epochs=settings.epochs, seed=settings.seed)
    recipe, arguments = METHODS[settings.method], settings.recipe_arguments()
    known = [name for name in inspect.signature(recipe).parameters if name not in ("size", "epochs", "seed")]
    _check_options(arguments, known, f"option of {settings.method}")
    balance = arguments.get("balance", False)
    require(
        isinstance(balance, bool) and not (balance and labels is None),
        f"--option balance is true or false, got {balance!r}",
    )
    if "balance" in arguments:
        arguments["balance"] = labels if balance else None
    try:
        return recipe(size, epochs=settings.epochs, seed=settings.seed, **arguments)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def build_rate(settings: Settings) -> learning_rate.Shape:
    """Build the schedule's factor on the learning rate, its rise included."""
    shape, rise = getattr(learning_rate, settings.schedule.replace("-", "_"))(), settings.lr_warmup
    if settings.schedule == "step" and rise:  # it drops after each third of the run, the rise included
        return lambda done: min(done / rise, 1.0) * shape(done)
    return shape if settings.schedule == "one-cycle" else learning_rate.warmed_up(shape, rise)
