"""Settings of a training run, with their help texts and ranges. Imports no torch: the command line reads it first."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import UsageError, suggest

OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
SCHEDULES = ("cosine", "one-cycle", "step", "linear", "exponential", "constant")

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
TASKS = ("classification", "contrastive", *(f"glue/{name}" for name in GLUE))
# defaults of contrastive pre-training: the recipe of Xiao et al., arXiv:2408.16031, appendix C.2
CONTRASTIVE: dict[str, Any] = {
    "methods": "full,short,rs2,random,loss,infobatch,emp_contrastive",
    "task": "contrastive",
    "epochs": 100,
    "batch_size": 256,
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 1e-6,
    "schedule": "exponential",
    "lr_warmup": 0.0,
}

# defaults of fine-tuning on GLUE: the recipe of the same paper, Table B.4
LANGUAGE: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 32,
    "optimizer": "adam",
    "lr": 2e-5,
    "weight_decay": 0.0,
    "schedule": "linear",
    "lr_warmup": 0.0,
}

KEEP = {"digits": 0.05}  # where 0.3 is so much that nothing shows; chosen by the gap between `full` and `short` alone


def defaults_of(task: str) -> dict[str, Any]:
    """Default settings of a task."""
    if task == "contrastive":
        return CONTRASTIVE
    if not task.startswith("glue/"):
        return {}
    return LANGUAGE | ({"methods": "full,short,rs2,random,loss,infobatch,emp"} if task == "glue/stsb" else {})


_ADVISED = {"contrastive": "emp_contrastive", "glue/stsb": "loss"}  # the default method of a task; else `memory`
_SCHEDULE = {"keep", "budget", "warmup", "anneal"}  # arguments of a recipe that have a field of their own

Rule = Callable[[str, Any], str]  # (flag, value) to what is wrong with it, empty where nothing is


def _at_least(low: int) -> Rule:
    return lambda flag, value: "" if value >= low else f"{flag} must be at least {low}, got {value}"


def _one_of(*known: str) -> Rule:
    return lambda flag, value: "" if value in known else suggest(value, known, what=flag.strip("-").replace("-", " "))


def _positive(flag: str, value: float) -> str:
    return "" if value > 0 else f"{flag} must be positive, got {value}"


def _share(flag: str, value: float) -> str:
    return "" if 0 <= value < 1 else f"{flag} is a share in [0, 1), got {value}"


def _fraction(flag: str, value: float) -> str:
    return "" if 0 < value <= 1 else f"{flag} is a fraction in (0, 1], got {value}"


def _closed_share(flag: str, value: float) -> str:
    return "" if 0 <= value <= 1 else f"{flag} is a share in [0, 1], got {value}"


def setting(default: Any, help: str, panel: str, rule: Rule | None = None, *, runtime: bool = False) -> Any:
    """A field with its help text, its panel on the command line (empty: no option) and the rule for its values.

    A runtime option changes how a run is carried out, not what it computes.
    """
    return field(default=default, metadata={"help": help, "panel": panel, "rule": rule, "runtime": runtime})


@dataclass(frozen=True)
class Settings:
    """One training run. The names are those of the command line's options."""

    data: str = setting(
        "digits",
        "digits, fashion-mnist, mnist, cifar100, a folder of parquet files or of images, or a hub name.",
        "Data",
    )
    data_folder: str | None = setting(None, "Folder of the named data, if not in its usual place.", "Data")
    train_size: int | None = setting(None, "Train on a fixed random subset of so many samples.", "Data", _at_least(1))
    test_size: int | None = setting(
        None, "Evaluate on a fixed random subset of so many test samples.", "Data", _at_least(1)
    )
    val_fraction: float = setting(0.0, "Share of the training set held out for validation.", "Data", _share)
    label_noise: float = setting(0.0, "Share of training labels replaced by random ones.", "Data", _share)
    task: str = setting(
        "classification",
        "classification of images; contrastive: features of images without labels; glue/cola, glue/sst2 ...: fine-tune "
        "a language encoder.",
        "Data",
        _one_of(*TASKS),
    )
    max_length: int = setting(128, "Tokens of a text; longer ones are cut.", "Language", _at_least(1))
    image_size: int | None = setting(None, "Resize images to this many pixels a side.", "Data", _at_least(1))
    shift: int = setting(0, "Augmentation: random shifts of up to so many pixels.", "Data", _at_least(0))
    shift_mode: str = setting(
        "constant", "Border of shifted images: constant or reflect.", "Data", _one_of("constant", "reflect")
    )
    flip: bool = setting(False, "Augmentation: random horizontal flips.", "Data")

    method: str = setting(
        "",
        "Pruning method; `dataprune methods` lists them. By default memory, for glue/stsb loss, in pre-training "
        "emp_contrastive; with --selection the coreset decides.",
        "Pruning",
    )
    selection: str | None = setting(
        None, "Train on this coreset in every epoch: a file that `dataprune select` wrote.", "Pruning"
    )
    statistics: str = setting(
        "",
        "Statistics to record, comma-separated: forgetting, el2n, grand, aum, entropy, least_confidence, margin, loss, "
        "dyn_unc, dual, tdds; by default all that are defined after so many epochs.",
        "Scores",
    )
    keep: float | None = setting(
        None,
        "Fraction of the data kept in a pruned epoch, in (0, 1]; 0.3 by default, 0.05 on digits, which are easy.",
        "Pruning",
        _fraction,
    )
    budget: float | None = setting(None, "In place of --keep: fraction of a full run's samples.", "Pruning", _fraction)
    warmup: int = setting(1, "Full epochs at the start of a pruned run.", "Pruning", _at_least(0))
    anneal: float = setting(0.0, "Share of full epochs at the end of a pruned run.", "Pruning", _closed_share)
    option: tuple[str, ...] = setting(
        (),
        "A parameter of the method, as name=value or method.name=value (beta=5, ucb.c=2, balance=true); repeatable.",
        "Pruning",
    )

    model: str = setting(
        "small_cnn",
        "lenet, mlp, small_cnn, resnet20, resnet32, resnet44, resnet56; for small images, or with _imagenet behind the "
        "name as published: resnet18, resnet34, resnet50, mobilenet_v2, swin_t (which need transformers), vgg16, "
        "shufflenet_v2 (which need torchvision); or module:function, called with (C, H, W) and classes.",
        "Training",
    )
    epochs: int = setting(20, "Epochs.", "Training", _at_least(1))
    init: str | None = setting(
        None,
        "Start from the weights of another run, all but the last layer's: a folder of `dataprune pretrain` or `train`.",
        "Training",
    )
    steps: int | None = setting(
        None, "Stop after so many optimizer steps, and plan the learning rate for them.", "Training", _at_least(1)
    )
    batch_size: int = setting(
        32, "Samples per optimizer step and rank; a smaller last batch is dropped.", "Training", _at_least(1)
    )
    optimizer: str = setting("sgd", "sgd, adam, adamw or lars.", "Training", _one_of(*OPTIMIZERS))
    lr: float = setting(0.1, "Peak learning rate.", "Training", _positive)
    momentum: float = setting(0.9, "Momentum of sgd and lars.", "Training", _at_least(0))
    nesterov: bool = setting(True, "Nesterov momentum, for sgd.", "Training")
    weight_decay: float = setting(5e-4, "Weight decay.", "Training", _at_least(0))
    label_smoothing: float = setting(0.0, "Label smoothing of the training loss.", "Training", _share)
    schedule: str = setting(
        "cosine", f"Learning rate over real steps: {', '.join(SCHEDULES)}.", "Training", _one_of(*SCHEDULES)
    )
    lr_warmup: float = setting(
        0.05, "Share of the steps in which the learning rate rises (not for one-cycle).", "Training", _share
    )
    recalibrate_bn: int = setting(
        0,
        "Re-estimate batch-norm statistics on so many random training samples before evaluation.",
        "Training",
        _at_least(0),
    )
    seed: int = setting(
        0, "Seed of initial weights, order, augmentation and selection, each with its own stream.", "Training",
        _at_least(0),
    )  # fmt: skip
    bf16: bool = setting(False, "bfloat16 autocast.", "Training")

    views: str = setting(
        "paper",
        "paper: crop, flip, grey; simclr: crop, flip, changed colours, grey (needs kornia).",
        "Contrastive",
        _one_of("paper", "simclr"),
    )
    temperature: float = setting(0.5, "Temperature of NT-Xent.", "Contrastive", _positive)
    dim: int = setting(128, "Outputs of the projection that NT-Xent compares.", "Contrastive", _at_least(1))
    score_on: str = setting(
        "features",
        "Outputs whose distance between views emp_contrastive reads: features, or projections.",
        "Contrastive",
        _one_of("features", "projections"),
    )
    gather: bool = setting(False, "With several processes: compare with the views of all of them.", "Contrastive")

    device: str | None = setting(
        None, "cpu, cuda, cuda:1 ...; a GPU if there is one by default.", "Machine", runtime=True
    )
    threads: int = setting(
        0,
        "CPU threads; 0: torch's choice, but one for images of up to 16 pixels a side, where more are no faster.",
        "Machine",
        _at_least(0),
        runtime=True,
    )
    workers: int = setting(
        0, "Loader processes; 0 keeps small images on the device.", "Machine", _at_least(0), runtime=True
    )
    channels_last: bool = setting(False, "Channels-last memory format.", "Machine", runtime=True)
    compile: bool = setting(False, "Compile the model.", "Machine", runtime=True)
    checkpoint_every: int = setting(
        0,
        "Checkpoint every so many steps; 0: at the end of an epoch, half a minute apart.",
        "Machine",
        _at_least(0),
        runtime=True,
    )
    arm: str = setting("", "Name of the run in a comparison.", "", runtime=True)
    track: str = setting(
        "", "Log every epoch to tensorboard, wandb, trackio or mlflow; comma-separated.", "Machine", runtime=True
    )

    def __post_init__(self) -> None:
        if self.glue and self.data == Settings.data:
            object.__setattr__(self, "data", self.task)
        if not self.method:
            method = "fixed" if self.selection is not None else _ADVISED.get(self.task, "memory")
            object.__setattr__(self, "method", method)
        self._check_values()

    @property
    def glue(self) -> str:
        """The GLUE task's name, empty for other tasks."""
        return self.task.removeprefix("glue/") if self.task.startswith("glue/") else ""

    def _check_values(self) -> None:
        for entry in fields(self):
            rule, value = entry.metadata["rule"], getattr(self, entry.name)
            if rule is not None and value is not None:
                message = rule(flag(entry.name), value)
                require(not message, message)
        coreset = self.selection is not None
        require(
            not self.glue or self.data == self.task,
            f"the data of {self.task} is its own: leave --data out, its folder is --data-folder",
        )
        require(coreset or self.method != "fixed", "--method fixed needs --selection FILE")
        require(
            not coreset or self.method == "fixed",
            f"--selection trains on that coreset alone: leave --method {self.method} out",
        )
        require(
            not coreset or (self.keep is None and self.budget is None),
            "--selection says what is kept: leave --keep and --budget out",
        )
        require(
            not coreset or (self.warmup, self.anneal) == (Settings.warmup, Settings.anneal),
            "a coreset is the same in every epoch: leave --warmup and --anneal out with --selection",
        )
        require(
            not coreset or not self.option,
            "--option is for the methods that prune while training: leave it out with --selection",
        )
        require(self.keep is None or self.budget is None, "give --keep or --budget, not both")
        require(
            self.recalibrate_bn == 0 or self.recalibrate_bn >= self.batch_size,
            f"--recalibrate-bn averages whole batches: give at least --batch-size ({self.batch_size}) samples, or 0",
        )
        self.options()

    def recipe_arguments(self) -> dict[str, Any]:
        """Arguments of the method's recipe: the schedule, and the options that name this method or none."""
        arguments: dict[str, Any] = {"warmup": self.warmup, "anneal": self.anneal}
        if self.budget is not None:
            arguments["budget"] = self.budget
        elif self.method != "full":
            arguments["keep"] = KEEP.get(self.data, 0.3) if self.keep is None else self.keep
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

    @classmethod
    def runtime(cls) -> frozenset[str]:
        """Names of the options that change how a run is carried out, not what it computes."""
        return frozenset(entry.name for entry in fields(cls) if entry.metadata["runtime"])

    def computed(self) -> dict[str, Any]:
        """The settings that decide the result: without runtime options, a coreset file by its content."""
        without = self.runtime() | {"selection"} | (_SCHEDULE if self.method == "full" else set())
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


def _content(path: str) -> str:
    """A short hash of the tensors in a safetensors file, without its header."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the coreset {path}: {error.strerror}") from error
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:16]


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
