"""Settings of a training run, with their help texts and ranges. Imports no torch: the command line reads it first."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from ...errors import UsageError, suggest

OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
SCHEDULES = ("cosine", "one-cycle", "step", "linear", "exponential", "constant")

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
TASKS = ("classification", "contrastive", *(f"glue/{name}" for name in GLUE))
# defaults of contrastive pre-training: the recipe of Xiao et al., arXiv:2408.16031, appendix C.2
CONTRASTIVE: dict[str, Any] = {
    "methods": "full,short,rs2,random,loss,infobatch,emp_contrastive", "task": "contrastive", "epochs": 100,
    "batch_size": 256, "optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-6, "schedule": "exponential",
    "lr_warmup": 0.0,
}  # fmt: skip
# defaults of fine-tuning on GLUE: the recipe of the same paper, Table B.4
LANGUAGE: dict[str, Any] = {
    "epochs": 10, "batch_size": 32, "optimizer": "adam", "lr": 2e-5, "weight_decay": 0.0, "schedule": "linear",
    "lr_warmup": 0.0,
}  # fmt: skip
ONLINE = "online:"  # before the name of a recipe of `dataprune.online`, in the name of a method
KEEP = {"digits": 0.05}  # where 0.3 is so much that nothing shows; chosen by the gap between `full` and `short` alone
_DEFAULT_METHODS = {"contrastive": "emp_contrastive", "glue/stsb": "loss"}  # by task; else that of `dataprune.prune`
_SCHEDULE = {"keep", "budget", "warmup", "anneal"}  # arguments of a recipe that have a field of their own


def defaults_of(task: str) -> dict[str, Any]:
    """Default settings of a task."""
    if task == "contrastive":
        return CONTRASTIVE
    if not task.startswith("glue/"):
        return {}
    return LANGUAGE | ({"methods": "full,short,rs2,random,loss,infobatch,emp"} if task == "glue/stsb" else {})


Rule = Callable[[str, Any], str]  # (flag, value) to what is wrong with it, empty where nothing is


def _rule(holds: Callable[[Any], bool], text: str) -> Rule:
    return lambda flag, value: "" if holds(value) else f"{flag} {text}, got {value}"


def _at_least(low: int) -> Rule:
    return _rule(lambda value: value >= low, f"must be at least {low}")


def _one_of(*known: str) -> Rule:
    return lambda flag, value: "" if value in known else suggest(value, known, what=flag.strip("-").replace("-", " "))


_positive = _rule(lambda value: value > 0, "must be positive")
_share = _rule(lambda value: 0 <= value < 1, "is a share in [0, 1)")
_closed_share = _rule(lambda value: 0 <= value <= 1, "is a share in [0, 1]")
_fraction = _rule(lambda value: 0 < value <= 1, "is a fraction in (0, 1]")


def _setting(panel: str, default: Any, help: str, rule: Rule | None = None) -> Any:
    """A field with its panel on the command line (empty: no option), its help text and the rule for its values."""
    return field(default=default, metadata={"help": help, "panel": panel, "rule": rule})


_data = partial(_setting, "Data")
_pruning = partial(_setting, "Pruning")
_training = partial(_setting, "Training")
_contrastive = partial(_setting, "Contrastive")
_machine = partial(_setting, "Machine")


@dataclass(frozen=True)
class Settings:
    """One training run. The names are those of the command line's options."""

    data: str = _data(
        "digits", "digits, fashion-mnist, mnist, cifar100, a folder of parquet files or of images, or a hub name."
    )
    data_folder: str | None = _data(None, "Folder of the named data, if not in its usual place.")
    train_size: int | None = _data(None, "Train on a fixed random subset of so many samples.", _at_least(1))
    test_size: int | None = _data(None, "Evaluate on a fixed random subset of so many test samples.", _at_least(1))
    val_fraction: float = _data(0.0, "Share of the training set held out for validation.", _share)
    label_noise: float = _data(0.0, "Share of training labels replaced by random ones.", _share)
    task: str = _data(
        "classification",
        "classification of images; contrastive: features of images without labels; glue/cola, glue/sst2 ...: fine-tune "
        "a language encoder.",
        _one_of(*TASKS),
    )
    max_length: int = _setting("Language", 128, "Tokens of a text; longer ones are cut.", _at_least(1))
    image_size: int | None = _data(None, "Resize images to this many pixels a side.", _at_least(1))
    shift: int = _data(0, "Augmentation: random shifts of up to so many pixels.", _at_least(0))
    shift_mode: str = _data(
        "constant", "Border of shifted images: constant or reflect.", _one_of("constant", "reflect")
    )
    resized_crop: bool = _data(
        False, "Augmentation: random crops of 8 to 100 % of the area, aspect 3/4 to 4/3, resized to the image's size."
    )
    flip: bool = _data(False, "Augmentation: random horizontal flips.")

    method: str = _pruning(
        "",
        "Pruning method; `dataprune methods` lists them. By default learnability, for glue/stsb loss, in pre-training "
        "emp_contrastive; with --selection the coreset decides. online:NAME chooses inside every batch.",
    )
    selection: str | None = _pruning(
        None, "Train on this coreset in every epoch: a file that `dataprune select` wrote."
    )
    statistics: str = _setting(
        "Scores",
        "",
        "Statistics to record, comma-separated: forgetting, el2n, grand, aum, entropy, least_confidence, margin, loss, "
        "difficulty, dyn_unc, dual, tdds; by default all that are defined after so many epochs.",
    )
    keep: float | None = _pruning(
        None,
        "Fraction of the data kept in a pruned epoch, in (0, 1]; 0.3 by default, 0.05 on digits, which are easy; for "
        "static_random also, from 2 on, how many samples.",
        _rule(lambda value: 0 < value <= 1 or (value > 1 and value % 1 == 0), "is a fraction in (0, 1]"),
    )
    budget: float | None = _pruning(None, "In place of --keep: fraction of a full run's samples.", _fraction)
    warmup: int = _pruning(1, "Full epochs at the start of a pruned run.", _at_least(0))
    anneal: float = _pruning(0.0, "Share of full epochs at the end of a pruned run.", _closed_share)
    option: tuple[str, ...] = _pruning(
        (), "A parameter of the method, as name=value or method.name=value (beta=5, ucb.c=2, balance=true); repeatable."
    )

    model: str = _training(
        "small_cnn",
        "lenet, mlp, small_cnn, resnet20, resnet32, resnet44, resnet56; for small images, or with _imagenet behind the "
        "name as published: resnet18, resnet34, resnet50, mobilenet_v2, swin_t (which need transformers), vgg16, "
        "shufflenet_v2 (which need torchvision); or module:function, called with (C, H, W) and classes.",
    )
    epochs: int = _training(20, "Epochs.", _at_least(1))
    init: str | None = _training(
        None,
        "Start from the weights of another run, all but the last layer's: a folder of `dataprune pretrain` or `train`.",
    )
    steps: int | None = _training(
        None, "Stop after so many optimizer steps, and plan the learning rate for them.", _at_least(1)
    )
    count_forwards: bool = _training(
        False,
        "Count a sample that the method only forwards, to score it, as a third of a trained one against --steps.",
    )
    batch_size: int = _training(
        32, "Samples per optimizer step and rank; a smaller last batch is dropped.", _at_least(1)
    )
    optimizer: str = _training("sgd", "sgd, adam, adamw or lars.", _one_of(*OPTIMIZERS))
    lr: float = _training(0.1, "Peak learning rate.", _positive)
    momentum: float = _training(0.9, "Momentum of sgd and lars.", _at_least(0))
    nesterov: bool = _training(True, "Nesterov momentum, for sgd.")
    weight_decay: float = _training(5e-4, "Weight decay.", _at_least(0))
    label_smoothing: float = _training(0.0, "Label smoothing of the training loss.", _share)
    schedule: str = _training(
        "cosine",
        f"Learning rate over real steps: {', '.join(SCHEDULES)}; step: a tenth after each third of the run; "
        "exponential: to 1 % at its end.",
        _one_of(*SCHEDULES),
    )
    lr_warmup: float = _training(
        0.05, "Share of the steps in which the learning rate rises (not for one-cycle).", _share
    )
    recalibrate_bn: int = _training(
        0, "Re-estimate batch-norm statistics on so many random training samples before evaluation.", _at_least(0)
    )
    seed: int = _training(
        0, "Seed of initial weights, order, augmentation and selection, each with its own stream.", _at_least(0)
    )
    bf16: bool = _training(False, "bfloat16 autocast.")

    views: str = _contrastive(
        "paper",
        "paper: crop, flip, grey; simclr: crop, flip, changed colours, grey (needs kornia).",
        _one_of("paper", "simclr"),
    )
    temperature: float = _contrastive(0.5, "Temperature of NT-Xent.", _positive)
    dim: int = _contrastive(128, "Outputs of the projection that NT-Xent compares.", _at_least(1))
    projection: str = _contrastive(
        "mlp",
        "Head behind the features: mlp, SimCLR's, with a hidden layer; or linear, the EMP paper's.",
        _one_of("mlp", "linear"),
    )
    score_on: str = _contrastive(
        "features",
        "Outputs whose distance between views emp_contrastive reads: features, or projections.",
        _one_of("features", "projections"),
    )
    gather: bool = _contrastive(False, "With several processes: compare with the views of all of them.")

    device: str | None = _machine(None, "cpu, cuda, cuda:1 ...; a GPU if there is one by default.")
    threads: int = _machine(
        0,
        "CPU threads; 0: torch's choice, but one for images of up to 16 pixels a side, where more are no faster.",
        _at_least(0),
    )
    workers: int = _machine(0, "Loader processes; 0 keeps small images on the device.", _at_least(0))
    channels_last: bool = _machine(False, "Channels-last memory format.")
    compile: bool = _machine(False, "Compile the model.")
    checkpoint_every: int = _machine(
        0, "Checkpoint every so many steps; 0: at the end of an epoch, half a minute apart.", _at_least(0)
    )
    arm: str = _setting("", "", "Name of the run in a comparison.")
    track: str = _machine("", "Log every epoch to tensorboard, wandb, trackio or mlflow; comma-separated.")

    def __post_init__(self) -> None:
        if self.glue and self.data == Settings.data:
            object.__setattr__(self, "data", self.task)
        if not self.method:
            method = "fixed" if self.selection is not None else _DEFAULT_METHODS.get(self.task, "learnability")
            object.__setattr__(self, "method", method)
        for entry in fields(self):
            rule, value = entry.metadata["rule"], getattr(self, entry.name)
            message = "" if rule is None or value is None else rule(flag(entry.name), value)
            require(not message, message)
        if self.selection is not None:
            self._check_coreset()
        if self.online:
            self._check_online()
        require(
            not self.glue or self.data == self.task,
            f"the data of {self.task} is its own: leave --data out, its folder is --data-folder",
        )
        require(self.selection is not None or self.method != "fixed", "--method fixed needs --selection FILE")
        require(
            self.keep is None or self.keep <= 1 or self.method == "static_random",
            f"--keep is a fraction in (0, 1] with {self.method}, got {self.keep}: give the share of the "
            "samples (static_random and `dataprune select` take their number)",
        )
        require(self.keep is None or self.budget is None, "give --keep or --budget, not both")
        require(self.steps is not None or not self.count_forwards, "--count-forwards counts against --steps: give it")
        require(not (self.shift and self.resized_crop), "--shift and --resized-crop are two kinds of crop: give one")
        require(
            self.recalibrate_bn == 0 or self.recalibrate_bn >= self.batch_size,
            f"--recalibrate-bn averages whole batches: give at least --batch-size ({self.batch_size}) samples, or 0",
        )
        self.options()

    def _check_coreset(self) -> None:
        """Refuse what has no effect on a run on a coreset."""
        scheduled = (self.warmup, self.anneal) != (Settings.warmup, Settings.anneal)
        for given, message in (
            (self.method != "fixed", f"--selection trains on that coreset alone: leave --method {self.method} out"),
            (self.keep or self.budget, "--selection says what is kept: leave --keep and --budget out"),
            (scheduled, "a coreset is the same in every epoch: leave --warmup and --anneal out with --selection"),
            (self.option, "--option is for the methods that prune while training: leave it out with --selection"),
        ):
            require(not given, message)

    def _check_online(self) -> None:
        """Refuse what has no effect on a run that chooses inside the batch."""
        scheduled = (self.warmup, self.anneal) != (Settings.warmup, Settings.anneal)
        for given, message in (
            (scheduled, "every batch is chosen alike, from the first on: leave --warmup and --anneal out"),
            (self.budget, "--keep says what is trained of a super-batch: give it in place of --budget"),
            (self.statistics, "statistics need every sample in every epoch, and some are not trained"),
        ):
            require(not given, f"{self.method}: {message}")

    @property
    def online(self) -> str:
        """The recipe of `dataprune.online` that chooses inside every batch; empty for other methods."""
        return self.method.removeprefix(ONLINE) if self.method.startswith(ONLINE) else ""

    @property
    def kept(self) -> float:
        """`keep`, or its default."""
        return KEEP.get(self.data, 0.3) if self.keep is None else self.keep

    @property
    def rows_read(self) -> int:
        """Samples that a step reads on a rank: the batch, or the super-batch from which it is chosen."""
        return round(self.batch_size / self.kept) if self.online else self.batch_size

    @property
    def glue(self) -> str:
        """The GLUE task's name, empty for other tasks."""
        return self.task.removeprefix("glue/") if self.task.startswith("glue/") else ""

    @property
    def statistic_names(self) -> list[str]:
        """The statistics to record, by name."""
        return [name.strip() for name in self.statistics.split(",") if name.strip()]

    def recipe_arguments(self) -> dict[str, Any]:
        """Arguments of the method's recipe: the schedule, and the options that name this method or none."""
        arguments: dict[str, Any] = {"warmup": self.warmup, "anneal": self.anneal}
        if self.budget is not None:
            arguments["budget"] = self.budget
        elif self.method != "full":
            arguments["keep"] = int(self.kept) if self.kept > 1 else self.kept
        options = self.options()
        arguments |= options.get("", {}) | options.get(self.method, {})
        if "prune_probability" in arguments:
            arguments.pop("keep", None)
        return arguments

    def options(self) -> dict[str, dict[str, Any]]:
        """Values of `--option` by the owner before the point ("" where there is none), then by name; do not modify."""
        return _parse(self.option)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with a hash of the coreset file's content."""
        values = {**dataclasses.asdict(self), "option": list(self.option)}
        return values if self.selection is None else {**values, "selected": _content(self.selection)}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Settings:
        """The settings that `as_dict` gave; missing ones take their defaults."""
        names = {entry.name for entry in fields(cls)}
        values = {name: value for name, value in stored.items() if name in names}
        return cls(**{**values, "option": tuple(values.get("option", ()))})

    def computed(self) -> dict[str, Any]:
        """The settings that decide the result: not how a run is carried out, and a coreset file by its content."""
        without = {entry.name for entry in fields(self) if entry.metadata["panel"] in ("Machine", "")}
        without |= {"selection"} | (_SCHEDULE if self.method == "full" else set())
        return {"selected": None, **{name: value for name, value in self.as_dict().items() if name not in without}}

    def differs(self, stored: dict[str, Any]) -> list[str]:
        """Names of the settings that decide the result and differ in `stored`.

        A setting that `stored` lacks did not exist when it was written, and takes its default.
        """
        defaults = Settings().computed()
        names = [name for name, value in self.computed().items() if stored.get(name, defaults[name]) != value]
        return ["selection" if name == "selected" else name for name in names]

    def key(self) -> str:
        """A short hash for folder names, equal for runs that compute the same."""
        return hashlib.sha256(json.dumps(self.computed(), sort_keys=True).encode()).hexdigest()[:12]

    def train_command(self) -> str:
        """The `dataprune train` command with these settings."""
        default, words = Settings(), ["dataprune", "train"]
        for entry in fields(self):
            value, option = getattr(self, entry.name), flag(entry.name)
            if entry.name == "option":
                words += [word for text in value for word in (option, text)]
            elif entry.metadata["panel"] and (
                entry.name in ("data", "method") or value != getattr(default, entry.name)
            ):
                if isinstance(value, bool):
                    words.append(option if value else "--no-" + option.removeprefix("--"))
                else:
                    words += [option, str(value)]
        return shlex.join(words)


def _content(path: str) -> str:
    """A short hash of the tensors in a safetensors file, and of how they weight losses; not of its other notes."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the coreset {path}: {error.strerror}") from error
    start = 8 + int.from_bytes(data[:8], "little")
    by_batch = b"by batch" * (rb"\"by_batch\": true" in data[:start])  # the notes are JSON in a string of JSON
    return hashlib.sha256(data[start:] + by_batch).hexdigest()[:16]


def require(condition: bool, message: str) -> None:
    """Raise UsageError unless the condition holds."""
    if not condition:
        raise UsageError(message)


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


@cache
def _parse(option: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    for text in option:
        name, separator, value = text.partition("=")
        require(bool(separator), f"--option is name=value, got {text!r}")
        owner, _, name = name.rpartition(".")
        require(name not in _SCHEDULE, f"--option {text}: the schedule has options of its own, give --{name}")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        options.setdefault(owner, {})[name.replace("-", "_")] = parsed
    return options
