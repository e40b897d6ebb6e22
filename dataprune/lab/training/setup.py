"""From settings to what a run is made of: its data, its pruner, its device and its streams of random numbers."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ... import coresets, distributed, learning_rate
from ...dynamics import STATISTICS, Statistic
from ...errors import DataError, UsageError, suggest
from ...methods import METHODS, fixed
from ...pruner import Pruner
from ...selection import Selection
from ..data import named as datasets
from ..data.named import Data
from ..models import build
from .settings import Settings

_SHAPES: dict[str, Callable[[], learning_rate.Shape]] = {
    "cosine": learning_rate.cosine,
    "one-cycle": learning_rate.one_cycle,
    "step": learning_rate.step,
    "linear": learning_rate.linear,
    "exponential": learning_rate.exponential,
    "constant": learning_rate.constant,
}


_ONLY_LABELS = ("emp", "emp_reverse", "memory")  # they read class probabilities


def check(settings: Settings) -> None:
    """Raise UsageError for what cannot be meant, before any data is read."""
    settings.validate()
    if settings.method not in METHODS and settings.selection is None:
        if settings.method in coresets.METHODS:
            raise UsageError(
                f"{settings.method} is a static method: `dataprune select` chooses by it, and train --selection FILE "
                "trains on what it chose; compare takes it as it is"
            )
        raise UsageError(suggest(settings.method, METHODS, what="method"))
    wrong = _ONLY_LABELS if settings.task == "contrastive" else ("emp_contrastive",)
    if settings.method in wrong:
        other = "emp_contrastive, loss, rs2 ..." if settings.task == "contrastive" else "emp"
        raise UsageError(f"{settings.method} is not for the task {settings.task}: take {other}")
    if settings.glue:
        _check_language(settings)
        return
    if settings.task == "contrastive":
        for name in ("label_noise", "label_smoothing", "shift", "flip", "recalibrate_bn", "statistics", "init"):
            if getattr(settings, name):
                raise UsageError(f"--{name.replace('_', '-')} is not for contrastive learning: leave it out")
        if settings.views == "simclr" and importlib.util.find_spec("kornia") is None:
            raise UsageError(
                "--views simclr changes colours with kornia: pip install -c constraints.txt -e '.[contrastive]'"
            )
    if ":" not in settings.model and settings.model not in build.MODELS:
        raise UsageError(suggest(settings.model, build.MODELS, what="model") + ", or module:function of your own")
    for text in settings.option:
        method = text.split("=", 1)[0].rpartition(".")[0]
        if method and method not in (*METHODS, *coresets.METHODS, *STATISTICS):
            what, named = ("statistic", STATISTICS) if settings.statistics else ("method", METHODS)
            raise UsageError(f"--option {text}: {suggest(method, named, what=what)}")
    statistics(settings)


def _check_language(settings: Settings) -> None:
    for name in ("shift", "flip", "image_size", "recalibrate_bn", "statistics", "init", "channels_last"):
        if getattr(settings, name):
            hint = "a folder that transformers loads, as --model" if name == "init" else "leave it out"
            raise UsageError(f"--{name.replace('_', '-')} is not for {settings.task}: {hint}")
    if settings.model == Settings.model:
        raise UsageError(f"{settings.task} needs a pretrained encoder: --model FOLDER, or its name on the hub")
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(f"{settings.task} needs transformers: pip install -c constraints.txt -e '.[hf]'")
    if settings.glue == "stsb":
        if settings.method == "memory":
            raise UsageError("memory reads class probabilities, and glue/stsb predicts a score: take loss or emp")
        for name in ("label_noise", "label_smoothing"):
            if getattr(settings, name):
                raise UsageError(f"--{name.replace('_', '-')} is for classes, and glue/stsb has scores: leave it out")


def load_data(settings: Settings) -> Data:
    """The data that the settings name."""
    if settings.glue:
        from ..data import glue

        return glue.load(settings)
    return datasets.load(
        settings.data,
        folder=settings.data_folder,
        train_size=settings.train_size,
        test_size=settings.test_size,
        val_fraction=settings.val_fraction,
        label_noise=settings.label_noise,
        image_size=settings.image_size,
    )


def statistics(settings: Settings) -> dict[str, Statistic]:
    """The statistics that a scoring run records, with their options; none for any other run.

    Raises:
        UsageError: for an unknown statistic or option, or one that has no score after so many epochs.
    """
    names = [name.strip() for name in settings.statistics.split(",") if name.strip()]
    options = settings.options()
    found = {}
    for number, name in enumerate(names):
        if name not in STATISTICS:
            raise UsageError(suggest(name, STATISTICS, what="statistic"))
        if name in names[:number]:
            raise UsageError(f"statistic {name} is named twice")
        own = options.get(name, {})
        known = list(inspect.signature(STATISTICS[name]).parameters)
        for option in own:
            if option not in known:
                raise UsageError(suggest(option, known, what=f"option of the statistic {name}"))
        try:
            found[name] = STATISTICS[name](**own)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{name}: {error}") from error
        if found[name].window > settings.epochs:
            smaller = f", or give --option {name}.window={max(3, settings.epochs // 2)}" if settings.epochs > 2 else ""
            raise UsageError(
                f"{name} looks at windows of {found[name].window} epochs, this run has {settings.epochs}: raise the "
                f"epochs{smaller}"
            )
    return found


def recordable(settings: Settings) -> list[str]:
    """Names of the statistics that have a score after the settings' epochs."""
    options = settings.options()
    return [
        name
        for name, make in STATISTICS.items()
        if options.get(name, {}).get("window", make().window) <= settings.epochs
    ]


def load_selection(settings: Settings, train: Any = None) -> Selection | None:
    """The coreset that the settings name; None where they name none.

    Args:
        settings: of the run.
        train: the data it must have been made for.
    Raises:
        DataError: if it is no coreset, or that of another dataset.
    """
    return None if settings.selection is None else Selection.load(settings.selection, train)


def build_pruner(
    settings: Settings,
    size: int,
    labels: Int[Tensor, " n"] | None = None,
    selection: Selection | None = None,
) -> Pruner:
    """The settings' method.

    Args:
        settings: of the run.
        size: samples to train on, N.
        labels: their classes, for the option `balance=true`.
        selection: the settings' coreset, where it is loaded already.
    Returns:
        The method's pruner over N samples.
    Raises:
        UsageError: for an unknown method, an option that it does not have, or a kept epoch smaller than a batch.
    """
    check(settings)
    selection = load_selection(settings) if selection is None else selection
    pruner = _of_method(settings, size, labels) if selection is None else _of_coreset(settings, size, selection)
    smallest = -(-min(pruner.counts) // distributed.world_size())
    if smallest < settings.batch_size:
        more = "raise --keep" if settings.budget is None else "raise --budget"
        what, remedy = ("a pruned epoch", more) if selection is None else ("the coreset", "select more")
        raise UsageError(
            f"{what} keeps {smallest} of {size} samples per rank, fewer than one batch of {settings.batch_size}: "
            f"{remedy} or lower --batch-size"
        )
    return pruner


def _of_coreset(settings: Settings, size: int, selection: Selection) -> Pruner:
    try:
        return fixed(size, selection=selection, epochs=settings.epochs, seed=settings.seed)
    except ValueError as error:
        raise DataError(f"{settings.selection}: {error}") from error


def _of_method(settings: Settings, size: int, labels: Int[Tensor, " n"] | None) -> Pruner:
    recipe, arguments = METHODS[settings.method], settings.recipe_arguments()
    known = [name for name in recipe.__kwdefaults__ or {} if name not in ("epochs", "seed")]
    for name in arguments:
        if name not in known:
            raise UsageError(suggest(name, known, what=f"option of {settings.method}"))
    if "balance" in arguments:
        if not isinstance(arguments["balance"], bool) or (arguments["balance"] and labels is None):
            raise UsageError(f"--option balance is true or false, got {arguments['balance']!r}")
        arguments["balance"] = labels if arguments["balance"] else None
    try:
        return recipe(size, epochs=settings.epochs, seed=settings.seed, **arguments)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def rate(settings: Settings) -> learning_rate.Shape:
    """The schedule's factor on the learning rate, its rise included."""
    shape = _SHAPES[settings.schedule]()
    return shape if settings.schedule == "one-cycle" else learning_rate.warmed_up(shape, settings.lr_warmup)


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is: this rank's GPU, else the CPU.

    Raises:
        UsageError: if there is no such device.
    """
    try:
        if name is None:
            local = distributed.local_rank() % max(torch.cuda.device_count(), 1)
            return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"there is no device {name!r} here: {str(error).splitlines()[0]}") from error
    if device == torch.device("cuda"):
        device = torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
    return device


@contextmanager
def connected(device: torch.device) -> Iterator[None]:
    """Within it torchrun's processes are joined and this rank's GPU is the current one.

    Torch's random state and number of threads are afterwards what they were.

    Nested in itself it changes nothing.
    """
    gpus = [device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.cuda.device(gpus[0] if gpus else -1):
        own_group, threads = distributed.connect(device), torch.get_num_threads()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if own_group:
                distributed.disconnect()


def use_threads(settings: Settings, data: Data) -> None:
    """Set the number of CPU threads, inside `connected`."""
    # images whose layers are over before a second thread has woken up
    tiny = len(data.shape) == 3 and max(data.shape[1:]) <= 16
    if settings.threads or tiny:
        torch.set_num_threads(settings.threads or 1)


def stream(*parts: Any) -> int:
    """A seed of its own for each purpose."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def reseed(device: torch.device, seed: int) -> None:
    """Seed what a model draws from, on the CPU and its own GPU; torch.manual_seed would reseed all GPUs."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
