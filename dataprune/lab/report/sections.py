"""Sections on what a comparison found: accuracy, samples, time, schedule, and whether its records agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from ..training.settings import Settings
from . import plots
from .differences import REFERENCES, UNSCORED, Difference, difference, power, saving
from .document import Block, Chart, Table
from .formatting import count_seeds, heading, listed, mean_percent, mean_score, points, setting, share
from .integrity import checks
from .pack import Run
from .records import Group, computed
from .significance import LEVEL, detectable

MEANING = {
    "full": "all data in every epoch",
    "short": "all data, stopped after as many steps as the pruned runs",
    "rs2": "a random part of the data, another one in every epoch until all of it was trained, and so on",
    "random": "a random part of the data, drawn anew in every epoch",
    "static_random": "one random part of the data in all epochs",
}
_Compared = Mapping[tuple[str, str], Difference | None]  # by method and reference


def titles(groups: Sequence[Group]) -> list[str]:
    """A title for each group: what was run; the folder's name too where that is not unique."""
    return _unique([heading(group.result) for group in groups], groups)


def overview(groups: Sequence[Group], left_out: Sequence[Path]) -> list[Block]:
    """A row for each group: its best method beside the reference methods; and what was left out."""
    rows = []
    for group, name in zip(groups, _unique([setting(group.result) for group in groups], groups)):
        scored = [line for method, line in group.lines.items() if method not in UNSCORED]
        best = max(scored or group.lines.values(), key=lambda line: line["accuracy_mean"])
        row = {"group": name, "best method": best["method"], "its %": mean_score(group.result, best)}
        row["minus rs2, points"] = _points(difference(group.result, best["method"], "rs2"))
        for method in REFERENCES:
            row[f"{method}, %"] = mean_score(group.result, group.lines[method]) if method in group.lines else "–"
        row |= {"metric": group.metric, "epochs": str(group.result["epochs"])}
        row["keep"] = f"{group.result['keep']:.3g}" if "keep" in group.result else "–"
        rows.append(row | {"seeds": str(count_seeds(group.result))})
    unfinished = f"Left out, not finished or not tested: {listed(list(map(str, left_out)))}."
    return [Table("All groups: test means over seeds ± standard deviation", rows), unfinished if left_out else ""]


def result(group: Group, title: str) -> list[Block]:
    """The figure, and what the reference methods are."""
    described = f"Test {group.metric} against samples trained. " + "; ".join(
        f"{method} {100 * line['accuracy_mean']:.2f} % at {line['samples']:,} samples"
        for method, line in group.lines.items()
    )
    several = count_seeds(group.result) > 1
    text = "Means over seeds, bars are one standard deviation. " if several else "One seed. "
    if any("scoring_samples" in line for line in group.lines.values()):
        text += "Dotted lines add the run on all data that scores for static methods; it serves all of them. "
    if meant := [f"{method}: {MEANING[method]}" for method in group.methods if method in MEANING]:
        text += f"The runs to compare with – {'; '.join(meant)}."
    return [[Chart("accuracy", described, plots.accuracy(group.result, title))], text]


def differences(group: Group) -> list[Block]:
    """Accuracy of every method and its difference from the references, seed by seed."""
    references = [name for name in REFERENCES if name in group.methods]
    missing = [name for name in REFERENCES if name not in group.methods]
    compared = {(name, other): difference(group.result, name, other) for name in group.methods for other in references}
    untrained = [row["accuracy"] for row in group.result.get("untrained", [])]
    poor = [name for name, line in group.lines.items() if untrained and line["accuracy_mean"] <= fmean(untrained)]
    tests = [value.seeds for value in compared.values() if value is not None and value.seeds > 2]
    least = min(tests, default=3)
    chance = (
        f"Higher or lower: a paired t-test over the seeds has p < {LEVEL:g}, and the mean exceeds the standard "
        f"deviation. With {least} seeds a mean difference must be {detectable(least):.2g} times its "
        f"standard deviation to be detected. Of {len(tests)} such tests about {LEVEL * len(tests):.1f} come out "
        "so by chance."
    )
    flops = "FLOPs are shares of full's, scoring included: a sample that is only forwarded is a third of a trained one."
    nothing = f"No better than untrained encoders, which means that they learned nothing: {listed(poor)}."
    return [
        *_verdicts(group, references, compared),
        _accuracies(group, references, compared),
        flops if any("flops" in line for line in group.lines.values()) else "",
        nothing if poor else "",
        f"There are no runs of {listed(missing)} to compare with." if missing else "",
        chance if tests else "",
    ]


def savings(group: Group, watts: float | None) -> list[Block]:
    """Samples, time and energy saved against `full`."""
    rows, scored = [], any("scoring_seconds" in line for line in group.lines.values())
    for method in group.methods:
        saved = saving(group, method, watts)
        if saved is not None:
            kilo = abs(saved.watt_hours) >= 1000
            energy = f"{saved.watt_hours / 1000:,.2g} kWh" if kilo else f"{saved.watt_hours:,.2g} Wh"
            row = {
                "samples saved": f"{100 * saved.samples:.0f} %",
                "time saved": f"{100 * saved.time:.0f} %",
                "time saved, seconds": f"{saved.seconds:,.1f} s",
                "energy saved, estimate": energy,
            }
            row = {"method": method} | {name: cell.replace("-", "−") for name, cell in row.items()}
            rows.append(row | ({"scoring run": "included" if saved.scored else "–"} if scored else {}))
    if not rows:
        return ["There is no run of full to compare with."]
    note = (
        "Time is that of training and selecting, without evaluation; runs side by side slow each other down. Energy is "
        f"time × {power(group, watts)[1]}, and was not measured. A minus sign means more than full took."
    )
    return [Table("Saved per run", rows), note]


def along_the_way(group: Group) -> list[Block]:
    """Accuracy over the epochs: on a validation split, or else on what each epoch trained."""
    color = plots.colors(group.result)
    validated = [method for method in group.methods if _recorded(group.of(method), "val_accuracy")]
    if validated:
        curves = [(name, color[name], _means(group.of(name), "val_accuracy", 100)) for name in validated]
        trained = [list(accumulate(_means(group.of(name), "samples"))) for name in validated]
        figure = plots.over_epochs("Validation split", curves, f"validation {group.metric}, %", trained)
        return [[Chart("validation", f"Accuracy on the validation split, mean over seeds. {_ends(curves)}", figure)]]
    curves = _curves(group, "train_accuracy", 100)
    if not curves:
        return []
    figure = plots.over_epochs("Samples that an epoch trained", curves, "training accuracy, %")
    note = (
        "On the samples that each epoch trained, while it trained them: a method that selects hard samples is lower "
        "here. With --val-fraction runs record the accuracy on a validation split."
    )
    return [note, [Chart("training", f"Training accuracy, mean over seeds. {_ends(curves)}", figure)]]


def per_epoch(group: Group) -> list[Block]:
    """Samples and learning rate of every epoch."""
    if not any(run.history for run in group.runs):
        return ["The epochs' history was not recorded."]
    charts, tables = [], []
    for column, what in (("samples", "samples trained"), ("lr", "learning rate")):
        curves = _curves(group, column)
        ends = "; ".join(f"{label}: from {_number(values[0])} to {_number(values[-1])}" for label, _, values in curves)
        figure = plots.over_epochs(what.capitalize(), curves, what)
        charts.append(Chart(f"{column}_per_epoch", f"{what.capitalize()} by epoch. {ends}", figure))
        rows = []
        for epoch in range(max(len(values) for _, _, values in curves)):
            shown = {label: _number(values[epoch]) for label, _, values in curves if epoch < len(values)}
            rows.append({"epoch": str(epoch)} | shown)
        tables.append(Table(f"Numbers: {what}", rows, folded=True))
    note = "Means over seeds; methods with equal curves share a line. The learning rate is that of the last step."
    return [note, charts, *tables]


def configuration(group: Group) -> list[Block]:
    """Checks, settings, and every run."""
    results = [{"check": check.what, "state": check.state, "found": check.detail} for check in checks(group)]
    stored = [computed(run.settings) for run in group.runs if run.settings]
    shared = []
    for name, usual in computed({}).items() if stored else ():
        value = stored[0][name]
        if all(settings[name] == value for settings in stored) and _applies(name, stored[0]["task"]):
            shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            row = {"setting": name.replace("_", "-"), "value": "none" if shown in ("", "None") else shown}
            shared.append(row | {"not the default": "" if value == usual else "set"})
    runs = []
    for run in group.result["runs"]:
        row = {"method": run["method"], "seed": str(run["seed"]), f"{group.metric}, %": _number(100 * run["accuracy"])}
        row |= {name: _number(run[name]) for name in ("samples", "steps", "seconds")}
        runs.append(row | {"share kept": _number(run["reached_keep"])})
    unrecorded = "" if stored else "The runs' settings were not recorded."
    settings = Table("Settings that all runs share", shared, folded=True)
    return [Table("Checks of the records", results), unrecorded, settings, Table("All runs", runs, folded=True)]


def _unique(names: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Names with the label noise of a group's data, and with its folder where they are not unique."""
    noises = [settings.label_noise if (settings := group.settings()) else 0 for group in groups]
    names = [name + (f", {noise:.0%} label noise" if noise else "") for name, noise in zip(names, noises)]
    return [f"{name} ({group.folder.name})" if names.count(name) > 1 else name for name, group in zip(names, groups)]


def _verdicts(group: Group, references: Sequence[str], compared: _Compared) -> list[str]:
    """A sentence for each reference at equal steps or FLOPs."""
    sentences, what = [], "FLOPs" if group.result.get("equal") == "flops" else "steps"
    for reference in (name for name in references if name != "full"):
        pairs = ((method, compared[method, reference]) for method in group.methods if method not in REFERENCES)
        values = {method: value for method, value in pairs if value and (value.equal_steps or value.equal_flops)}
        parts = []
        for verdict in ("higher", "no difference detected", "lower"):
            names = [name for name, value in values.items() if value.verdict == verdict]
            parts += [f"{verdict}: {listed(names)}"] if names else []
        if parts:
            sentences.append(f"Against {reference} at equal {what} – {'; '.join(parts)}.")
    seeds = min((value.seeds for value in compared.values() if value is not None), default=3)
    if seeds < 3:
        text = "With one seed" if seeds < 2 else "Two seeds are too few:"
        sentences.append(
            f"{text} a difference cannot be distinguished from chance. Three or more can show a large one."
        )
    return sentences


def _accuracies(group: Group, references: Sequence[str], compared: _Compared) -> Table:
    scores = {"accuracy": f"test {group.metric}, %"}
    if any("finetuned_accuracy_mean" in line for line in group.lines.values()):
        scores["finetuned_accuracy"] = "fine-tuned, %"
    rows = []
    for method, line in group.lines.items():
        row = {"method": method} | {heading: mean_score(group.result, line, name) for name, heading in scores.items()}
        row |= {name: f"{line[name]:,}" for name in ("samples", "steps")}
        row |= {"FLOPs": share(line["flops"])} if "flops" in line else {}
        rows.append(row | {f"minus {name}, points": _points(compared[method, name]) for name in references})
    if untrained := group.result.get("untrained"):
        cells = {heading: mean_percent(untrained, name) for name, heading in scores.items()}
        rows.append({"method": "untrained"} | cells)
    seeds = count_seeds(group.result)
    caption = f"Means over {seeds} seeds ± standard deviation" if seeds > 1 else "One seed"
    return Table(f"{caption}; differences are taken seed by seed", rows)


def _points(value: Difference | None) -> str:
    if value is None:
        return "–"
    return f"{points(value.mean, value.std)}\n{value.verdict}" if value.seeds > 1 else points(value.mean)


def _curves(group: Group, column: str, scale: float = 1) -> list[plots.Curve]:
    """A column of the histories, mean over seeds, methods with equal curves together."""
    color = plots.colors(group.result)
    alike: dict[tuple[float, ...], list[str]] = {}
    for method in group.methods:
        runs = group.of(method)
        if _recorded(runs, column):
            values = tuple(float(f"{value:.4g}") for value in _means(runs, column, scale))
            alike.setdefault(values, []).append(method)
    return [(listed(methods), color[methods[0]], list(values)) for values, methods in alike.items()]


def _recorded(runs: Sequence[Run], column: str) -> bool:
    return bool(runs) and all(run.history and all(line.get(column) is not None for line in run.history) for run in runs)


def _means(runs: Sequence[Run], column: str, scale: float = 1) -> list[float]:
    epochs = zip(*(run.history for run in runs), strict=False)
    return [fmean(scale * line[column] for line in lines) for lines in epochs]


def _ends(curves: Sequence[plots.Curve]) -> str:
    return "; ".join(f"{name} ends at {values[-1]:.2f} %" for name, _, values in curves)


def _applies(setting: str, task: str) -> bool:
    """Whether a task has this setting."""
    entry = Settings.__dataclass_fields__.get(setting)
    of_task = {"Language": task.startswith("glue/"), "Contrastive": task == "contrastive"}
    return entry is not None and of_task.get(entry.metadata["panel"], True)


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
