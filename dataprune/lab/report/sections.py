"""Sections on what a comparison found: accuracy, samples, time, schedule, and whether its records agree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..training.settings import Settings
from . import plots
from .differences import REFERENCES, UNSCORED, Difference, difference, power, saving, sentence
from .document import Block, Chart, Section, Table, listed
from .integrity import checks
from .records import Group, Run, computed
from .significance import LEVEL, detectable, moments
from .tables import percent, setting

MEANING = {
    "full": "all data in every epoch",
    "short": "all data, stopped after as many steps as the pruned runs",
    "rs2": "a random part of the data, another one in every epoch until all of it was trained, and so on",
    "random": "a random part of the data, drawn anew in every epoch",
    "static_random": "one random part of the data in all epochs",
}


def titles(groups: Sequence[Group]) -> list[str]:
    """A title for each group: what was run; the folder's name too where that is not unique."""
    shown = [plots.heading(group.result) + _noise(group) for group in groups]
    return [
        f"{title} ({group.folder.name})" if shown.count(title) > 1 else title for title, group in zip(shown, groups)
    ]


def overview(groups: Sequence[Group], skipped: Sequence[Path]) -> list[Block]:
    """A row for each group: its best method beside the reference methods; and what was left out."""
    rows = []
    names = [setting(group.result) + _noise(group) for group in groups]
    for group, name in zip(groups, names):
        lines = {line["method"]: line for line in group.result["summary"]}
        others = [line for line in lines.values() if line["method"] not in UNSCORED] or list(lines.values())
        best = max(others, key=lambda line: line["accuracy_mean"])
        compared = difference(group.result, best["method"], "rs2")
        rows.append(
            [
                f"{name} ({group.folder.name})" if names.count(name) > 1 else name,
                best["method"],
                _accuracy(group, best),
                "–" if compared is None else _points(compared),
                *(_accuracy(group, lines[method]) if method in lines else "–" for method in REFERENCES),
                group.metric,
                str(group.result["epochs"]),
                f"{group.result['keep']:.3g}" if "keep" in group.result else "–",
                str(len({row["seed"] for row in group.result["runs"]})),
            ]
        )
    head = ["group", "best method", "its %", "minus rs2, points", *(f"{name}, %" for name in REFERENCES)]
    caption = "All groups: test means over seeds ± standard deviation"
    table = Table(caption, [*head, "metric", "epochs", "keep", "seeds"], rows)
    unfinished = f"Left out, not finished or not tested: {listed(list(map(str, skipped)))}."
    return [*([table] if rows else []), *([unfinished] if skipped else [])]


def result(group: Group, title: str) -> tuple[str, list[Block]]:
    """The result in a sentence, and what stands below it: the figure, and what the reference methods are."""
    lines = group.result["summary"]
    described = f"Test {group.metric} against samples trained. " + "; ".join(
        f"{line['method']} {100 * line['accuracy_mean']:.2f} % at {line['samples']:,} samples" for line in lines
    )
    blocks: list[Block] = [[Chart("accuracy", described, plots.accuracy(group.result, title))]]
    meant = [f"{line['method']}: {MEANING[line['method']]}" for line in lines if line["method"] in MEANING]
    several = len({row["seed"] for row in group.result["runs"]}) > 1
    text = "Means over seeds, bars are one standard deviation. " if several else "One seed. "
    if any("scoring_samples" in line for line in lines):
        text += "Dotted lines add the run on all data that scores for static methods; it serves all of them. "
    blocks.append(text + ("The runs to compare with – " + "; ".join(meant) + "." if meant else ""))
    return sentence(group.result, group.metric), blocks


def differences(group: Group) -> Section:
    """Accuracy of every method and its difference from the references, seed by seed."""
    methods = [line["method"] for line in group.result["summary"]]
    references = [name for name in REFERENCES if name in methods]
    missing = [name for name in REFERENCES if name not in methods]
    compared = {(name, other): difference(group.result, name, other) for name in methods for other in references}
    blocks: list[Block] = [*_verdicts(methods, references, compared), _accuracies(group, references, compared)]
    if untrained := [row["accuracy"] for row in group.result.get("untrained", [])]:
        least = statistics.fmean(untrained)
        poor = [line["method"] for line in group.result["summary"] if line["accuracy_mean"] <= least]
        if poor:
            blocks.append(f"No better than untrained encoders, which means that they learned nothing: {listed(poor)}.")
    if missing:
        blocks.append(f"There are no runs of {listed(missing)} to compare with.")
    tests = [value for value in compared.values() if value is not None and value.seeds > 2]
    if tests:
        least_seeds = min(value.seeds for value in tests)
        blocks.append(
            f"Higher or lower: a paired t-test over the seeds has p < {LEVEL:g}, and the mean exceeds the standard "
            f"deviation. With {least_seeds} seeds a mean difference must be {detectable(least_seeds):.2g} times its "
            f"standard deviation to be detected. Of {len(tests)} such tests about {LEVEL * len(tests):.1f} come out "
            "so by chance."
        )
    return Section("Accuracy and differences", blocks)


def savings(group: Group, watts: float | None) -> Section:
    """Samples, time and energy saved against `full`."""
    rows, scored = [], any("scoring_seconds" in line for line in group.result["summary"])
    for method in (line["method"] for line in group.result["summary"]):
        saved = saving(group, method, watts)
        if saved is not None:
            cells = [f"{100 * saved.samples:.0f} %", f"{100 * saved.time:.0f} %", f"{saved.seconds:,.1f} s"]
            cells = [cell.replace("-", "−") for cell in (*cells, _energy(saved.watt_hours))]
            rows.append([method, *cells, "included" if saved.scored else "–"][: None if scored else -1])
    if not rows:
        return Section("Saved against full", ["There is no run of full to compare with."])
    head = [
        "method",
        "samples saved",
        "time saved",
        "time saved, seconds",
        "energy saved, estimate",
        *["scoring run"] * scored,
    ]
    note = (
        "Time is that of training and selecting, without evaluation; runs side by side slow each other down. Energy is "
        f"time × {power(group, watts)[1]}, and was not measured. A minus sign means more than full took."
    )
    return Section("Saved against full", [Table("Saved per run", head, rows), note])


def along_the_way(group: Group) -> Section:
    """Accuracy over the epochs: on a validation split, or else on what each epoch trained."""
    title, color = "Accuracy over epochs", plots.colors(group.result)
    methods = [line["method"] for line in group.result["summary"]]
    validated = [method for method in methods if _recorded(group.of(method), "val_accuracy")]
    if validated:
        lines, x = [], []
        for method in validated:
            epochs = list(zip(*(run.history for run in group.of(method)), strict=False))
            lines.append((method, color[method], _means(epochs, "val_accuracy", 100)))
            trained = _means(epochs, "samples")
            x.append([sum(trained[: place + 1]) for place in range(len(trained))])
        ends = "; ".join(f"{name} ends at {values[-1]:.2f} %" for name, _, values in lines)
        figure = plots.over_epochs("Validation split", lines, f"validation {group.metric}, %", x)
        return Section(
            title, [[Chart("validation", f"Accuracy on the validation split, mean over seeds. {ends}", figure)]]
        )
    lines = [
        (listed(names), color[names[0]], [100 * value for value in values])
        for names, values in _curves(group, "train_accuracy")
    ]
    if not lines:
        return Section(title, [])
    ends = "; ".join(f"{name} ends at {values[-1]:.2f} %" for name, _, values in lines)
    figure = plots.over_epochs("Samples that an epoch trained", lines, "training accuracy, %")
    note = (
        "On the samples that each epoch trained, while it trained them: a method that selects hard samples is lower "
        "here. With --val-fraction runs record the accuracy on a validation split."
    )
    return Section(title, [note, [Chart("training", f"Training accuracy, mean over seeds. {ends}", figure)]])


def per_epoch(group: Group) -> Section:
    """Samples and learning rate of every epoch."""
    title = "Samples and learning rate per epoch"
    if not any(run.history for run in group.runs):
        return Section(title, ["The epochs' history was not recorded."])
    charts, tables, color = [], [], plots.colors(group.result)
    for column, heading in (("samples", "samples trained"), ("lr", "learning rate")):
        lines = [(listed(methods), color[methods[0]], values) for methods, values in _curves(group, column)]
        ends = "; ".join(f"{label}: from {_number(values[0])} to {_number(values[-1])}" for label, _, values in lines)
        figure = plots.over_epochs(heading.capitalize(), lines, heading)
        charts.append(Chart(f"{column}_per_epoch", f"{heading.capitalize()} by epoch. {ends}", figure))
        rows = [
            [str(epoch), *(_number(values[epoch]) if epoch < len(values) else "–" for _, _, values in lines)]
            for epoch in range(max(len(values) for _, _, values in lines))
        ]
        tables.append(Table(f"Numbers: {heading}", ["epoch", *(label for label, _, _ in lines)], rows, folded=True))
    note = "Means over seeds; methods with equal curves share a line. The learning rate is that of the last step."
    return Section(title, [note, charts, *tables])


def configuration(group: Group) -> Section:
    """Checks, settings, and every run."""
    blocks: list[Block] = [
        Table("Checks of the records", ["check", "state", "found"], [list(check) for check in checks(group)])
    ]
    stored = [computed(run.settings) for run in group.runs if run.settings]
    if not stored:
        blocks.append("The runs' settings were not recorded.")
    else:
        rows = [
            [name.replace("_", "-"), _plain(stored[0][name]), "" if stored[0][name] == usual else "set"]
            for name, usual in computed({}).items()
            if all(settings[name] == stored[0][name] for settings in stored) and _applies(name, stored[0]["task"])
        ]
        blocks.append(Table("Settings that all runs share", ["setting", "value", "not the default"], rows, folded=True))
    names = {"seed": "seed", "accuracy": f"{group.metric}, %", "samples": "samples", "steps": "steps"}
    names |= {"seconds": "seconds", "reached_keep": "share kept"}
    rows = []
    for row in group.result["runs"]:
        shown = row | {"accuracy": 100 * row["accuracy"]}
        rows.append([row["method"], *(_number(shown[name]) for name in names)])
    blocks.append(Table("All runs", ["method", *names.values()], rows, folded=True))
    return Section("Configuration and checks", blocks)


def _verdicts(
    methods: Sequence[str], references: Sequence[str], compared: dict[tuple[str, str], Difference | None]
) -> list[str]:
    """A sentence for each reference at equal steps."""
    sentences = []
    for reference in (name for name in references if name != "full"):
        verdicts: dict[str, list[str]] = {}
        for method in methods:
            value = compared[method, reference]
            if method not in REFERENCES and value is not None and value.equal_steps:
                verdicts.setdefault(value.verdict, []).append(method)
        parts = [
            f"{verdict}: {listed(verdicts[verdict])}"
            for verdict in ("higher", "no difference detected", "lower")
            if verdict in verdicts
        ]
        if parts:
            sentences.append(f"Against {reference} at equal steps – {'; '.join(parts)}.")
    seeds = min((value.seeds for value in compared.values() if value is not None), default=3)
    if seeds < 3:
        text = "With one seed" if seeds < 2 else "Two seeds are too few:"
        sentences.append(
            f"{text} a difference cannot be distinguished from chance. Three or more can show a large one."
        )
    return sentences


def _accuracies(group: Group, references: Sequence[str], compared: dict[tuple[str, str], Difference | None]) -> Table:
    rows = []
    tuned = any("finetuned_accuracy_mean" in line for line in group.result["summary"])
    names = ["accuracy", "finetuned_accuracy"][: 1 + tuned]
    for line in group.result["summary"]:
        values = [_accuracy(group, line, name) for name in names]
        differences = [compared[line["method"], other] for other in references]
        cells = ["–" if value is None else _points(value) for value in differences]
        rows.append([line["method"], *values, f"{line['samples']:,}", f"{line['steps']:,}", *cells])
    if untrained := group.result.get("untrained"):
        values = [percent(*moments([row[name] for row in untrained]), len(untrained), 2) for name in names]
        rows.append(["untrained", *values, *["–"] * (2 + len(references))])
    seeds = len({row["seed"] for row in group.result["runs"]})
    caption = f"Means over {seeds} seeds ± standard deviation" if seeds > 1 else "One seed"
    head = ["method", f"test {group.metric}, %", *["fine-tuned, %"] * tuned, "samples", "steps"]
    head += [f"minus {name}, points" for name in references]
    return Table(f"{caption}; differences are taken seed by seed", head, rows)


def _accuracy(group: Group, line: dict[str, Any], name: str = "accuracy") -> str:
    count = sum(row["method"] == line["method"] for row in group.result["runs"])
    return percent(line[f"{name}_mean"], line.get(f"{name}_std", 0.0), count, 2)


def _noise(group: Group) -> str:
    settings = group.settings()
    return f", {settings.label_noise:.0%} label noise" if settings and settings.label_noise else ""


def _points(value: Difference) -> str:
    mean = f"{round(100 * value.mean, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no minus before nothing
    return f"{mean} ± {100 * value.std:.2f}\n{value.verdict}" if value.seeds > 1 else mean


def _curves(group: Group, name: str) -> list[tuple[list[str], list[float]]]:
    """A column of the histories, mean over seeds, methods with equal curves together."""
    curves: dict[tuple[float, ...], list[str]] = {}
    for method in (line["method"] for line in group.result["summary"]):
        runs = group.of(method)
        if _recorded(runs, name):
            epochs = zip(*(run.history for run in runs), strict=False)
            values = tuple(float(f"{value:.4g}") for value in _means(list(epochs), name))
            curves.setdefault(values, []).append(method)
    return [(methods, list(values)) for values, methods in curves.items()]


def _recorded(runs: Sequence[Run], name: str) -> bool:
    return bool(runs) and all(run.history and all(line.get(name) is not None for line in run.history) for run in runs)


def _means(epochs: Sequence[Sequence[Any]], name: str, scale: float = 1) -> list[float]:
    return [statistics.fmean(scale * line[name] for line in lines) for lines in epochs]


def _applies(setting: str, task: str) -> bool:
    """Whether a task has this setting."""
    entry = Settings.__dataclass_fields__.get(setting)
    of_task = {"Language": task.startswith("glue/"), "Contrastive": task == "contrastive"}
    return entry is not None and of_task.get(entry.metadata["panel"], True)


def _energy(watt_hours: float) -> str:
    kilo = abs(watt_hours) >= 1000
    return f"{watt_hours / 1000 if kilo else watt_hours:,.2g} {'kWh' if kilo else 'Wh'}"


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None or value == "" else str(value)
