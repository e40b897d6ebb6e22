"""All that decides a training run, with the help texts of the command line. Light to import: no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, fields
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
    """What a task's recipe is where nothing else is said."""
    if task == "contrastive":
        return CONTRASTIVE
    if not task.startswith("glue/"):
        return {}
    return LANGUAGE | ({"methods": "full,short,rs2,random,loss,infobatch,emp"} if task == "glue/stsb" else {})


_ADVISED = {"contrastive": "emp_contrastive", "glue/stsb": "loss"}  # the default method of a task; else `memory`
_SCHEDULE = {"keep", "budget", "warmup", "anneal"}  # arguments of a recipe that have a field of their own


def setting(default: Any, help: str, panel: str, *, runtime: bool = False) -> Any:
    """A field with its help text and panel of the command line; without a panel it has no option.

    A runtime option changes how a run is carried out, not what it computes.
    """
    return field(default=default, metadata={"help": help, "panel": panel, "runtime": runtime})


@dataclass(frozen=True)
class Settings:
    """One training run. The names are those of the command line's options."""

    data: str = setting(
        "digits",
        "digits, fashion-mnist, mnist, cifar100, a folder of parquet files or of images, or a hub name.",
        "Data",
    )
    data_folder: str | None = setting(None, "Where the named data lies, if not in its usual place.", "Data")
    train_size: int | None = setting(None, "Train on a fixed random subset of so many samples.", "Data")
    test_size: int | None = setting(None, "Evaluate on a fixed random subset of so many test samples.", "Data")
    val_fraction: float = setting(0.0, "Share of the training set held out for validation.", "Data")
    label_noise: float = setting(0.0, "Share of training labels replaced by random ones.", "Data")
    task: str = setting(
        "classification",
        "classification of images; contrastive: features of images without labels; glue/cola, glue/sst2 ...: fine-tune "
        "an encoder of language.",
        "Data",
    )
    max_length: int = setting(128, "Tokens of a text; longer ones are cut.", "Language")
    image_size: int | None = setting(None, "Resize images to this many pixels a side.", "Data")
    shift: int = setting(0, "Augmentation: random shifts of up to so many pixels.", "Data")
    shift_mode: str = setting("constant", "What fills the border of shifted images: constant or reflect.", "Data")
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
        "What `score` records, comma-separated: forgetting, el2n, grand, aum, entropy, least_confidence, margin, loss, "
        "dyn_unc, dual, tdds; by default all that so many epochs suffice for.",
        "Scores",
    )
    keep: float | None = setting(
        None,
        "Fraction of the data kept in a pruned epoch, in (0, 1]; 0.3 by default, 0.05 on digits, which are easy.",
        "Pruning",
    )
    budget: float | None = setting(None, "In place of --keep: fraction of a full run's samples.", "Pruning")
    warmup: int = setting(1, "Full epochs at the start of a pruned run.", "Pruning")
    anneal: float = setting(0.0, "Share of full epochs at the end of a pruned run.", "Pruning")
    option: tuple[str, ...] = setting(
        (),
        "A method's own parameter, as name=value or method.name=value (beta=5, ucb.c=2, balance=true); repeatable.",
        "Pruning",
    )

    model: str = setting(
        "small_cnn",
        "lenet, mlp, small_cnn, resnet20, resnet32, resnet44, resnet56; for small images, or with _imagenet behind the "
        "name as published: resnet18, resnet34, resnet50, mobilenet_v2, swin_t (which need transformers), vgg16, "
        "shufflenet_v2 (which need torchvision); or module:function, called with (C, H, W) and classes.",
        "Training",
    )
    epochs: int = setting(20, "Epochs.", "Training")
    init: str | None = setting(
        None,
        "Begin with the weights of another run, all but the last layer's: a folder of `dataprune pretrain` or `train`.",
        "Training",
    )
    steps: int | None = setting(
        None, "Stop after so many optimizer steps, and plan the learning rate for them.", "Training"
    )
    batch_size: int = setting(32, "Samples per optimizer step and rank; a smaller last batch is dropped.", "Training")
    optimizer: str = setting("sgd", "sgd, adam, adamw or lars.", "Training")
    lr: float = setting(0.1, "Peak learning rate.", "Training")
    momentum: float = setting(0.9, "Momentum of sgd and lars.", "Training")
    nesterov: bool = setting(True, "Nesterov's form of sgd's momentum.", "Training")
    weight_decay: float = setting(5e-4, "Weight decay.", "Training")
    label_smoothing: float = setting(0.0, "Label smoothing of the training loss.", "Training")
    schedule: str = setting("cosine", "Learning rate over real steps: " + ", ".join(SCHEDULES) + ".", "Training")
    lr_warmup: float = setting(
        0.05, "Share of the steps in which the learning rate rises (not for one-cycle).", "Training"
    )
    recalibrate_bn: int = setting(
        0, "Re-estimate batch-norm statistics on so many random training samples before evaluation.", "Training"
    )
    seed: int = setting(
        0, "Decides initial weights, order, augmentation and selection, each by a stream of its own.", "Training"
    )
    bf16: bool = setting(False, "bfloat16 autocast.", "Training")

    views: str = setting(
        "paper", "paper: crop, flip, grey; simclr: crop, flip, changed colours, grey (needs kornia).", "Contrastive"
    )
    temperature: float = setting(0.5, "Temperature of NT-Xent.", "Contrastive")
    dim: int = setting(128, "Outputs of the projection that NT-Xent compares.", "Contrastive")
    score_on: str = setting(
        "features", "What emp_contrastive takes the distance of views of: features, or projections.", "Contrastive"
    )
    gather: bool = setting(False, "With several processes: compare with the views of all of them.", "Contrastive")

    device: str | None = setting(
        None, "cpu, cuda, cuda:1 ...; a GPU if there is one by default.", "Machine", runtime=True
    )
    threads: int = setting(
        0,
        "CPU threads; 0: torch's choice, but one for images of up to 16 pixels a side, which more do not speed up.",
        "Machine",
        runtime=True,
    )
    workers: int = setting(0, "Loader processes; 0 keeps small images on the device.", "Machine", runtime=True)
    channels_last: bool = setting(False, "Channels-last memory format.", "Machine", runtime=True)
    compile: bool = setting(False, "Compile the model.", "Machine", runtime=True)
    checkpoint_every: int = setting(
        0, "Checkpoint every so many steps; 0: at the end of an epoch, half a minute apart.", "Machine", runtime=True
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

    @property
    def glue(self) -> str:
        """The GLUE task's name, empty for other tasks."""
        return self.task.removeprefix("glue/") if self.task.startswith("glue/") else ""

    def validate(self) -> None:
        """Raise UsageError for what cannot be meant."""
        _require(
            not self.glue or self.data == self.task,
            f"the data of {self.task} is its own: leave --data out, its place is --data-folder",
        )
        _require(
            (self.selection is None) == (self.method != "fixed"),
            "--method fixed needs --selection FILE"
            if self.selection is None
            else f"--selection trains on that coreset alone: leave --method {self.method} out",
        )
        _require(
            self.selection is None or (self.keep is None and self.budget is None),
            "--selection says what is kept: leave --keep and --budget out",
        )
        _require(
            self.selection is None or (self.warmup, self.anneal) == (Settings.warmup, Settings.anneal),
            "a coreset is the same in every epoch: leave --warmup and --anneal out with --selection",
        )
        _require(0 <= self.anneal <= 1, f"--anneal is a share in [0, 1], got {self.anneal}")
        _require(
            self.selection is None or not self.option,
            "--option is for the methods that prune while training: leave it out with --selection",
        )
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("task", self.task, TASKS)
        _one_of("views", self.views, ("paper", "simclr"))
        _one_of("score-on", self.score_on, ("features", "projections"))
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("shift mode", self.shift_mode, ("constant", "reflect"))
        if self.keep is not None and self.budget is not None:
            raise UsageError("give --keep or --budget, not both")
        for name in ("keep", "budget"):
            value = getattr(self, name)
            _require(value is None or 0 < value <= 1, f"--{name} is a fraction in (0, 1], got {value}")
        for name in ("val_fraction", "label_noise", "lr_warmup", "label_smoothing"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{_flag(name)} is a share in [0, 1), got {value}")
        for name in ("epochs", "batch_size", "max_length"):
            _require(getattr(self, name) >= 1, f"{_flag(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "train_size", "test_size", "image_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{_flag(name)} must be at least 1, got {value}")
        for name in (
            "shift",
            "warmup",
            "threads",
            "workers",
            "recalibrate_bn",
            "weight_decay",
            "momentum",
            "checkpoint_every",
            "seed",
        ):
            _require(getattr(self, name) >= 0, f"{_flag(name)} must not be negative, got {getattr(self, name)}")
        _require(
            self.recalibrate_bn == 0 or self.recalibrate_bn >= self.batch_size,
            f"--recalibrate-bn averages whole batches: give at least --batch-size ({self.batch_size}) samples, or 0",
        )
        _require(self.dim >= 1, f"--dim must be at least 1, got {self.dim}")
        _require(self.temperature > 0, f"--temperature must be positive, got {self.temperature}")
        _require(self.lr > 0, f"--lr must be positive, got {self.lr}")
        for text in self.option:
            _require("=" in text, f"--option is name=value, got {text!r}")
            name = text.split("=", 1)[0].rpartition(".")[2]
            _require(name not in _SCHEDULE, f"--option {text}: the schedule has options of its own, give --{name}")

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
        """`--option` by the name before its point, "" where it has none."""
        found: dict[str, dict[str, Any]] = {}
        for text in self.option:
            name, value = text.split("=", 1)
            owner, _, name = name.rpartition(".")
            found.setdefault(owner, {})[name.replace("-", "_")] = _parsed(value)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; of a coreset's file also what is in it."""
        values = {**dataclasses.asdict(self), "option": list(self.option)}
        return values if self.selection is None else {**values, "selected": _content(self.selection)}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Settings:
        """The settings that `as_dict` gave; what it does not name has its default."""
        names = {entry.name for entry in fields(cls)}
        values = {name: value for name, value in stored.items() if name in names}
        return cls(**{**values, "option": tuple(values.get("option", ()))})

    @classmethod
    def runtime(cls) -> frozenset[str]:
        """The options that change how a run is carried out, not what it computes."""
        return frozenset(entry.name for entry in fields(cls) if entry.metadata["runtime"])

    def computed(self) -> dict[str, Any]:
        """What decides the result: all but the runtime options, and of a coreset's file what is in it."""
        without = self.runtime() | {"selection"} | (_SCHEDULE if self.method == "full" else set())
        return {"selected": None, **{name: value for name, value in self.as_dict().items() if name not in without}}

    def differs(self, stored: dict[str, Any]) -> list[str]:
        """Names of the settings that decide the result and are others in `stored`.

        What `stored` does not name was written before there was such a setting, and has its default.
        """
        defaults = Settings().computed()
        other = [name for name, value in self.computed().items() if stored.get(name, defaults[name]) != value]
        return ["selection" if name == "selected" else name for name in other]

    def key(self) -> str:
        """A short text for the names of folders: equal for runs that compute the same."""
        return hashlib.sha256(json.dumps(self.computed(), sort_keys=True).encode()).hexdigest()[:12]


def _content(path: str) -> str:
    """A short text for the tensors in a safetensors file, whatever its header says."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the coreset {path}: {error.strerror}") from error
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:16]


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, suggest(value, known, what=what))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
