"""Experiments: files of settings, read and checked before anything runs."""

from __future__ import annotations

import collections.abc
import contextlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ....coresets import small_batch
from ....errors import UsageError, suggest
from ...training.settings import Settings, defaults_of, require
from ...training.yaml_file import read_yaml
from ..compare import Comparison

SCALES = ("smoke", "cpu", "paper")
SHOWN = ("accuracy", "difference", "selections", "loss", "interpolation")
_OF_DATA = ("data", "data_folder", "train_size", "test_size", "val_fraction", "label_noise", "image_size", "task")
_OF_SCHEDULE = ("anneal", "warmup")
_OF_COMPARISON = ("score_epochs", "score_model", "score_runs", "finetune_epochs")
_PLANNED = ("settings", "panels", "arms", "strategy", "small_batches", *_OF_SCHEDULE, *_OF_COMPARISON)

HERE = Path(__file__).parent
FOLDERS = (HERE / "files", HERE.parents[3] / "experiments")  # of an installed package; of a clone


class Key(NamedTuple):
    """The place of a run in an experiment."""

    panel: str
    keep: float
    arm: str
    seed: int


class Cell(NamedTuple):
    """One run of an experiment, as a comparison of one method that has its schedule and scoring run."""

    key: Key
    comparison: Comparison

    @property
    def method(self) -> str:
        """Of the comparison."""
        return self.comparison.methods[0]


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of a paper: arms at several budgets, on several data sets or models.

    Attributes:
        arms: by the name of a line: `method` where that is not its name, settings, `option` of the method, `anneal`,
            `warmup`, `score_epochs`, `score_model`, `score_runs`. `at`, here, in a panel or in `settings`, has values
            for one keep; there its options go to the arms of their method alone.
        show: what the figure draws: "accuracy" against keep, its "difference" from that of `short` paired by seed,
            "selections" per sample, training "loss" and accuracy per epoch, or "interpolation": loss and accuracy along
            the line from initial to final weights.
        published: the paper's numbers by panel and arm, one for each `keep`, in percent, or None. A file has a number
            for each `keep` of the part that it is in; a scale takes those of its own shares.
        differs: why a setting is not the paper's, by its name.
    """

    name: str
    scale: str
    settings: Mapping[str, Any]  # of all runs
    panels: Mapping[str, Mapping[str, Any]]  # settings by the name of a part of the table: data, model, task
    keep: Sequence[float]  # fractions of the data
    arms: Mapping[str, Mapping[str, Any]]
    claim: str = ""
    source: str = ""
    seeds: int = 1  # runs of each
    anneal: float = 0.0  # share of full epochs at the end of every pruned run
    warmup: int = 1  # full epochs at its beginning
    score_epochs: int | None = None  # of the run that scores for static methods
    score_model: str | None = None  # of that run; by default the panel's
    score_runs: int = 1  # such runs, over which scores are averaged
    finetune_epochs: int = 0  # after contrastive pre-training
    strategy: str = "E"  # or "P": 1 / keep times as many epochs, so that all coresets get the steps of a full run
    small_batches: bool = False  # half the batch size where a fifth or less is kept, a quarter at a tenth
    show: str = "accuracy"
    published: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)
    note: str = ""  # what this scale can and cannot show

    def __post_init__(self) -> None:
        require(self.show in SHOWN, suggest(self.show, SHOWN, what="kind of figure"))
        require(self.show != "difference" or "short" in self.arms, "the difference is to `short`: add it to the arms")
        require(self.seeds >= 1, f"seeds must be at least 1, got {self.seeds}")
        require(len(set(self.keep)) == len(self.keep), f"keep names a share twice: {list(self.keep)}")
        advice = "all arms share it; write `keep: [...]` and `seeds:` beside the arms"
        for part, own in [("settings", self.settings), *self.panels.items(), *self.arms.items()]:
            for name in ("keep", "seed", "seeds"):
                require(name not in own, f"{part!r} sets {name}: {advice}")
        advice = "all arms of a panel share their data; set it in the panel"
        for arm, own in self.arms.items():
            for name in own:
                require(name.replace("-", "_") not in _OF_DATA, f"{arm!r} sets {name}: {advice}")
        for key in self.runs():
            if key.seed == 0:
                try:
                    self.comparison(*key)
                except UsageError as error:
                    raise UsageError(f"{key.panel}, {key.arm}: {error}") from error

    @property
    def plan(self) -> dict[str, Any]:
        """What determines each run beside its keep and seed, for JSON."""
        return json.loads(json.dumps({name: getattr(self, name) for name in _PLANNED}))

    def runs(self) -> Iterator[Key]:
        """All runs, by panel, seed, keep and arm."""
        for panel in self.panels:
            for seed in range(self.seeds):
                yield from (Key(panel, keep, arm, seed) for keep in self.keep for arm in self.arms)

    def cells(self, panel: str) -> list[Cell]:
        """All runs of a panel."""
        return [Cell(key, self.comparison(*key)) for key in self.runs() if key.panel == panel]

    def comparison(self, panel: str, keep: float, arm: str, seed: int) -> Comparison:
        """A comparison of one method, which has a cell's schedule and scoring run."""
        bases = (self.settings, self.panels[panel], self.arms[arm])
        method = {**bases[0], **bases[1], **bases[2]}.get("method", arm)
        parts = [part for base in bases for part in (base, _at(base, keep, method))]
        values = {name.replace("-", "_"): value for part in parts for name, value in part.items()}
        named = {name: value for part in parts for name, value in part.get("option", {}).items()}
        option = tuple(f"{name if '.' in name else f'{method}.{name}'}={_text(value)}" for name, value in named.items())
        shared = {name: values.pop(name, getattr(self, name)) for name in _OF_COMPARISON}
        schedule = {name: getattr(self, name) for name in _OF_SCHEDULE}
        values = {name: value for name, value in values.items() if name not in ("at", "method")}
        settings = settings_of({**schedule, **values, "keep": keep, "seed": seed}, option)
        if self.strategy == "P" and method != "full":
            shared["score_epochs"] = shared["score_epochs"] or settings.epochs
            settings = replace(settings, epochs=round(settings.epochs / keep))
        if self.small_batches and method != "full":
            shared["score_batch_size"] = settings.batch_size  # scoring trains on all data, as elsewhere
            settings = replace(settings, batch_size=small_batch(settings.batch_size, keep))
        if settings.task != "contrastive":
            shared["finetune_epochs"] = 0
        return Comparison(settings, [method], [seed], **shared)


# -- reading files ---------------------------------------------------------------------------------------------------


def available() -> dict[str, Path]:
    """Files of the experiments in the library, by name."""
    for folder in (FOLDERS[0], FOLDERS[1] / "papers"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def content(name: str) -> tuple[str, dict[str, Any]]:
    """Name of an experiment that is `available` or has a file of its own, and the content of its file."""
    path = available().get(name, Path(name))
    if not path.suffix and not path.exists():
        raise UsageError(suggest(name, available(), what="experiment") + ", or the path of a YAML file")
    return path.stem, read_yaml(path)


def read(name: str, scale: str) -> Experiment:
    """An experiment at a scale, by the name of its file; UsageError if there is no such, or it is invalid."""
    return of(*content(name), scale)


def of(name: str, content: Mapping[str, Any], scale: str) -> Experiment:
    """An experiment from the content of its file, as for `read`."""
    try:
        merged: dict[str, Any] = at_scale(name, content, scale)
        merged |= {key: _named(merged[key]) for key in ("arms", "panels") if key in merged}
        hints = typing.get_type_hints(Experiment)
        for key in merged:
            require(key in hints.keys() - {"name", "scale"}, suggest(key, sorted(hints), what="key"))
            check_kind(key, merged[key], hints[key])
        for key in ("panels", "keep", "arms"):
            require(bool(merged.get(key)), f"it has no {key}")
        merged["published"] = _published(content, merged, scale)
        return Experiment(name, scale, **merged)
    except UsageError as error:
        raise UsageError(f"experiment {name}, scale {scale}: {error}") from error


def at_scale(name: str, content: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Content of a file for one scale: its `settings` are merged with the shared ones, all else replaces them."""
    scales = content.get("scales") or {}
    if scale not in scales:
        raise UsageError(f"{name} has no scale {scale!r}, it has {', '.join(map(str, scales)) or 'no scales at all'}")
    shared = {key.replace("-", "_"): value for key, value in content.items() if key not in ("scales", "kind")}
    own = {key.replace("-", "_"): value for key, value in (scales[scale] or {}).items()}
    settings = {}
    for part in (shared, own):
        check_kind("settings", part.get("settings") or {}, Mapping[str, Any])
        settings |= part.get("settings") or {}
    return {**shared, **own, "settings": settings}


def settings_of(values: Mapping[str, Any], option: tuple[str, ...] = ()) -> Settings:
    """Settings by their names in a file, with the defaults of the task."""
    plain = {name.replace("-", "_"): value for name, value in values.items() if name != "option"}
    defaults = {name: value for name, value in defaults_of(str(plain.get("task", ""))).items() if name != "methods"}
    known = {name: kind for name, kind in typing.get_type_hints(Settings).items() if name != "option"}
    for name, value in list(plain.items()):
        spelled = [key.replace("_", "-") for key in known]
        require(name in known, suggest(name.replace("_", "-"), spelled, what="setting"))
        if known[name] is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a point, as text
            with contextlib.suppress(ValueError):
                plain[name] = float(value)
        check_kind(name, plain[name], known[name])
    return Settings(**{**defaults, **plain, "option": option})


def _published(content: Mapping[str, Any], merged: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
    """Published numbers for the panels, arms and shares of a scale; they belong to the `keep` of their own part."""
    own = (content["scales"][scale] or {}).get("published")
    keep = merged["keep"] if own is not None else content.get("keep") or ()
    check_kind("keep", keep, Sequence[float])
    published: dict[str, dict[str, list[float | None]]] = {}
    for panel, lines in merged.get("published", {}).items():
        for arm, values in lines.items():
            counts = f"{len(values)} numbers for the {len(keep)} of keep"
            require(len(values) == len(keep), f"published, {panel}, {arm}: {counts}")
            at = dict(zip(keep, values))
            numbers = [at.get(share) for share in merged["keep"]]
            if panel in merged["panels"] and arm in merged["arms"] and any(number is not None for number in numbers):
                published.setdefault(panel, {})[arm] = numbers
    return published


def _at(base: Mapping[str, Any], keep: float, method: str) -> dict[str, Any]:
    """What `at` says of one keep, with the options of the method alone."""
    own = base.get("at", {}).get(keep, {})
    options = {name: value for name, value in own.get("option", {}).items() if name.rpartition(".")[0] in ("", method)}
    return {**own, "option": options}


def _named(values: Any) -> Any:
    """A mapping by name; a list has only names."""
    if isinstance(values, list):
        check_kind("a name", values, Sequence[str])
        return {name: {} for name in values}
    return {name: own or {} for name, own in values.items()} if isinstance(values, Mapping) else values


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# -- types of values -------------------------------------------------------------------------------------------------


def check_kind(name: str, value: Any, kind: Any) -> None:
    """Raise UsageError if a value does not match an annotation of plain types, unions, sequences and mappings."""
    require(_is(value, kind), f"{name.replace('_', '-')} must be {_describe(kind)}, got {value!r}")


def _is(value: Any, kind: Any) -> bool:
    inner = typing.get_args(kind)
    match typing.get_origin(kind) or kind:
        case typing.Any:
            return True
        case types.UnionType:
            return any(_is(value, member) for member in inner)
        case collections.abc.Mapping:
            return isinstance(value, Mapping) and all(
                _is(key, inner[0]) and _is(item, inner[1]) for key, item in value.items()
            )
        case collections.abc.Sequence:
            return isinstance(value, list | tuple) and all(_is(item, inner[0]) for item in value)
        case plain if plain in (int, float):
            return isinstance(value, (int, plain)) and not isinstance(value, bool)
        case plain:
            return isinstance(value, plain)


def _describe(kind: Any) -> str:
    inner = typing.get_args(kind)
    match typing.get_origin(kind) or kind:
        case types.UnionType:
            return " or ".join(_describe(member) for member in inner)
        case collections.abc.Mapping:
            return "lines of name: value" + (f", each {_describe(inner[1])}" if inner[1] is not Any else "")
        case collections.abc.Sequence:
            return f"a list, each {_describe(inner[0])}"
        case plain:
            return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(plain, "nothing")
