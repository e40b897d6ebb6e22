"""Experiments: files of settings, read and checked before anything runs."""

from __future__ import annotations

import contextlib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ....errors import UsageError, suggest
from ...training.settings import Settings, defaults_of
from ..compare import Comparison
from . import kinds

SCALES = ("smoke", "cpu", "paper")
SHOWN = ("accuracy", "difference", "selections", "loss", "interpolation")
_OF_DATA = ("data", "data_folder", "train_size", "test_size", "val_fraction", "label_noise", "image_size", "task")
_OF_SCHEDULE = ("anneal", "warmup")
_OF_COMPARISON = ("score_epochs", "score_model", "finetune_epochs")
_PLANNED = ("settings", "panels", "arms", "strategy", "small_batches", *_OF_SCHEDULE, *_OF_COMPARISON)


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of a paper: arms at several budgets, on several data sets or models.

    Attributes:
        name: of the file.
        claim: of the paper; optional.
        source: paper, and number of the table or figure; optional.
        scale: "smoke", "cpu" or "paper".
        settings: of all runs.
        panels: settings by the name of a part of the table: data, model, task.
        keep: fractions of the data.
        arms: by the name of a line: `method` where that is not its name, settings, `option` of the method, `anneal`,
            `warmup`, `score_epochs`, `score_model`; `at` has values for one keep.
        seeds: runs of each.
        anneal: share of full epochs at the end of every pruned run.
        warmup: full epochs at its beginning.
        score_epochs: epochs of the run that scores for static methods.
        score_model: model of that run; by default the panel's.
        finetune_epochs: epochs of fine-tuning after contrastive pre-training.
        strategy: "E", or "P": 1 / keep times as many epochs, so that all coresets get the steps of a full run.
        small_batches: half the batch size where a fifth or less is kept, a quarter at a tenth; not for scoring.
        show: what the figure draws: "accuracy" against keep, its "difference" from that of `short` paired by seed,
            "selections" per sample, training "loss" per epoch, or "interpolation": loss and accuracy along the line
            from initial to final weights.
        published: the paper's numbers by panel and arm, one for each `keep`, in percent, or None. A file has a number
            for each `keep` of the part that it is in; a scale takes those of its own shares.
        note: what this scale can and cannot show.
    """

    name: str
    claim: str
    source: str
    scale: str
    settings: Mapping[str, Any]
    panels: Mapping[str, Mapping[str, Any]]
    keep: Sequence[float]
    arms: Mapping[str, Mapping[str, Any]]
    seeds: int = 1
    anneal: float = 0.0
    warmup: int = 1
    score_epochs: int | None = None
    score_model: str | None = None
    finetune_epochs: int = 0
    strategy: str = "E"
    small_batches: bool = False
    show: str = "accuracy"
    published: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)
    note: str = ""

    @property
    def plan(self) -> dict[str, Any]:
        """What determines each run beside its keep and seed, for JSON."""
        return json.loads(json.dumps({name: getattr(self, name) for name in _PLANNED}))

    def cells(self, panel: str, seeds: Sequence[int] | None = None) -> Iterator[Cell]:
        """All runs of a panel, seed by seed."""
        for seed in range(self.seeds) if seeds is None else seeds:
            for keep in self.keep:
                for arm in self.arms:
                    yield Cell(panel, keep, arm, seed, self.comparison(panel, keep, arm, seed))

    def comparison(self, panel: str, keep: float, arm: str, seed: int) -> Comparison:
        """A comparison of one method, which has a cell's schedule and scoring run."""
        parts = [self.settings, self.panels[panel], self.arms[arm]]
        parts.append(self.arms[arm].get("at", {}).get(keep, {}))
        values = {name.replace("-", "_"): value for part in parts for name, value in part.items() if name != "at"}
        method = values.pop("method", arm)
        named = {name: value for part in parts for name, value in part.get("option", {}).items()}
        option = tuple(f"{name if '.' in name else f'{method}.{name}'}={_text(value)}" for name, value in named.items())
        shared = {name: values.pop(name, getattr(self, name)) for name in _OF_COMPARISON}
        schedule = {name: getattr(self, name) for name in _OF_SCHEDULE}
        settings = settings_of({**schedule, **values, "keep": keep, "seed": seed}, option)
        if self.strategy == "P" and method != "full":
            shared["score_epochs"] = shared["score_epochs"] or settings.epochs
            settings = replace(settings, epochs=round(settings.epochs / keep))
        if self.small_batches and method != "full":
            from ....coresets import small_batch

            shared["score_batch_size"] = settings.batch_size  # scoring trains on all data, as elsewhere
            settings = replace(settings, batch_size=small_batch(settings.batch_size, keep))
        if settings.task != "contrastive":
            shared["finetune_epochs"] = 0
        return Comparison(settings, [method], [seed], **shared)


@dataclass(frozen=True)
class Cell:
    """One run of an experiment."""

    panel: str
    keep: float
    arm: str
    seed: int
    comparison: Comparison

    @property
    def method(self) -> str:
        """Of the comparison."""
        return self.comparison.methods[0]

    @property
    def key(self) -> tuple[str, float, str, int]:
        """Its place in the experiment."""
        return self.panel, self.keep, self.arm, self.seed


def settings_of(values: Mapping[str, Any], option: tuple[str, ...] = ()) -> Settings:
    """Settings by their names in a file, with the defaults of the task."""
    plain = {name.replace("-", "_"): value for name, value in values.items() if name != "option"}
    defaults = {name: value for name, value in defaults_of(str(plain.get("task", ""))).items() if name != "methods"}
    known = {name: kind for name, kind in typing.get_type_hints(Settings).items() if name != "option"}
    for name, value in list(plain.items()):
        if name not in known:
            raise UsageError(suggest(name.replace("_", "-"), [key.replace("_", "-") for key in known], what="setting"))
        if known[name] is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a point, as text
            with contextlib.suppress(ValueError):
                plain[name] = float(value)
        kinds.check(name, plain[name], known[name])
    return Settings(**{**defaults, **plain, "option": option})


def available() -> dict[str, Path]:
    """Files of the experiments in the library, by name."""
    here = Path(__file__).parent
    for folder in (here / "files", here.parents[3] / "experiments" / "papers"):  # installed; in a clone
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def read(name: str, scale: str) -> Experiment:
    """An experiment at a scale.

    Args:
        name: of one that is `available`, or the path of a file of one's own.
        scale: one of `SCALES` that the file has.
    Raises:
        UsageError: if there is no such experiment or scale, or the file has invalid or contradictory settings.
    """
    return of(*content(name), scale)


def of(name: str, content: Mapping[str, Any], scale: str) -> Experiment:
    """An experiment from the content of its file, as for `read`."""
    try:
        merged = {"source": "", "claim": "", **at_scale(name, content, scale)}
        merged |= {key: _named(merged[key]) for key in ("arms", "panels") if key in merged}
        hints = typing.get_type_hints(Experiment)
        for key in merged:
            if key not in hints.keys() - {"name", "scale"}:
                raise UsageError(suggest(key, sorted(hints), what="key"))
            kinds.check(key, merged[key], hints[key])
        for key in ("panels", "keep", "arms"):
            if not merged.get(key):
                raise UsageError(f"it has no {key}")
        merged["published"] = _published(content, merged, scale)
        experiment = Experiment(name=name, scale=scale, **merged)
        _check(experiment)
    except UsageError as error:
        raise UsageError(f"experiment {name}, scale {scale}: {error}") from error
    return experiment


def at_scale(name: str, content: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """Content of a file for one scale: its `settings` are merged with the shared ones, all else replaces them."""
    scales = content.get("scales") or {}
    if scale not in scales:
        raise UsageError(f"{name} has no scale {scale!r}, it has {', '.join(map(str, scales)) or 'no scales at all'}")
    shared = {key.replace("-", "_"): value for key, value in content.items() if key not in ("scales", "kind")}
    own = {key.replace("-", "_"): value for key, value in (scales[scale] or {}).items()}
    both = [part.get("settings") or {} for part in (shared, own)]
    for settings in both:
        kinds.check("settings", settings, Mapping[str, Any])
    return {**shared, **own, "settings": {**both[0], **both[1]}}


def _published(content: Mapping[str, Any], merged: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
    """Published numbers for the panels, arms and shares of a scale; they belong to the `keep` of their own part."""
    own = (content["scales"][scale] or {}).get("published")
    keep = merged["keep"] if own is not None else content.get("keep") or ()
    kinds.check("keep", keep, Sequence[float])
    published: dict[str, dict[str, list[float | None]]] = {}
    for panel, lines in merged.get("published", {}).items():
        for arm, values in lines.items():
            if len(values) != len(keep):
                raise UsageError(f"published, {panel}, {arm}: {len(values)} numbers for the {len(keep)} of keep")
            at = dict(zip(keep, values))
            numbers = [at.get(share) for share in merged["keep"]]
            if panel in merged["panels"] and arm in merged["arms"] and any(number is not None for number in numbers):
                published.setdefault(panel, {})[arm] = numbers
    return published


def _check(experiment: Experiment) -> None:
    if experiment.show not in SHOWN:
        raise UsageError(suggest(experiment.show, SHOWN, what="kind of figure"))
    if experiment.show == "difference" and "short" not in experiment.arms:
        raise UsageError("the difference is to `short`: add it to the arms")
    if experiment.seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {experiment.seeds}")
    if len(set(experiment.keep)) < len(experiment.keep):
        raise UsageError(f"keep names a share twice: {list(experiment.keep)}")
    for part, own in [("settings", experiment.settings), *experiment.panels.items(), *experiment.arms.items()]:
        for name in own:
            if name in ("keep", "seed", "seeds"):
                raise UsageError(
                    f"{part!r} sets {name}: all arms share it; write `keep: [...]` and `seeds:` beside the arms"
                )
    for arm, own in experiment.arms.items():
        for name in own:
            if name.replace("-", "_") in _OF_DATA:
                raise UsageError(f"{arm!r} sets {name}: all arms of a panel share their data; set it in the panel")
    for panel in experiment.panels:
        for cell in experiment.cells(panel, seeds=[0]):
            try:
                cell.comparison.validate()
            except UsageError as error:
                raise UsageError(f"{panel}, {cell.arm}: {error}") from error


def content(name: str) -> tuple[str, dict[str, Any]]:
    """Name of an experiment, and the content of its file; as for `read`."""
    import yaml

    path = available().get(name, Path(name))
    if not path.suffix and not path.exists():
        raise UsageError(suggest(name, available(), what="experiment") + ", or the path of a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold lines of the form key: value")
    return path.stem, content


def _named(values: Any) -> Any:
    """A mapping by name; a list has only names."""
    if isinstance(values, list):
        kinds.check("a name", values, Sequence[str])
        return {name: {} for name in values}
    return {name: own or {} for name, own in values.items()} if isinstance(values, Mapping) else values


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
