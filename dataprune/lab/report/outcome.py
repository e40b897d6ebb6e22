"""Sections that say what a comparison came to: accuracy, budget, schedule, and whether it can be trusted."""

from __future__ import annotations

import statistics
from typing import Any

from ..training.settings import Settings
from . import charts
from .content import Cell, Chart, Charts, Section, Table, listed
from .findings import LEVEL, REFERENCES, Difference, curves, difference, power, saving
from .integrity import checks
from .records import Group, computed
from .tables import percent

_MARKS = {"more": "good", "less": "bad", "passed": "good", "failed": "bad", "note": "note"}


def headline(group: Group, watts: float | None) -> Section:
    """Accuracy against the references, and what was saved."""
    result, methods = group.result, [line["method"] for line in group.result["summary"]]
    references = [name for name in REFERENCES if name in methods]
    found = {(one, other): difference(result, one, other) for one in methods for other in references}
    missing = [name for name in REFERENCES if name not in methods]
    blocks: list[Any] = [*_verdicts(methods, references, found), _accuracies(group, references, found)]
    if untrained := [one["accuracy"] for one in result.get("untrained", [])]:
        least = statistics.fmean(untrained)
        poor = [line["method"] for line in result["summary"] if line["accuracy_mean"] <= least]
        if poor:
            blocks.append(f"No better than untrained encoders, so that nothing can be concluded: {listed(poor)}.")
    if missing:
        blocks.append(f"Not compared with {listed(missing)}: no such run is here.")
    tests = sum(one is not None and one.p is not None for one in found.values())
    if any(one is not None and one.told == "not testable" for one in found.values()):
        blocks.append("Not testable: the same difference in every seed, so that there is no spread to hold it against.")
    if tests > 1:
        blocks.append(
            f"A difference counts as more or less where a paired t-test over the seeds has p < {LEVEL:g} and its mean "
            f"exceeds its standard deviation. Of {tests} such tests about {LEVEL * tests:.1f} come out so by chance."
        )
    return Section("headline", "What came out", blocks + _savings(group, methods, watts))


def _verdicts(methods: list[str], references: list[str], found: dict[tuple[str, str], Difference | None]) -> list[str]:
    """A sentence for each reference at equal steps."""
    sentences = []
    for reference in (name for name in references if name != "full"):
        said: dict[str, list[str]] = {}
        for method in methods:
            one = found[method, reference]
            if method not in REFERENCES and one is not None and one.steps:
                said.setdefault(one.told, []).append(method)
        parts = [
            f"{told}: {listed(said[told])}"
            for told in ("more", "not told apart", "not testable", "less")
            if told in said
        ]
        if parts:
            sentences.append(f"Against {reference} at equal steps — {'; '.join(parts)}.")
    if any(one is not None and one.seeds < 2 for one in found.values()):
        sentences.append("With one seed there is no spread, and a difference cannot be told from chance.")
    return sentences


def _accuracies(group: Group, references: list[str], found: dict[tuple[str, str], Difference | None]) -> Table:
    rows: list[list[str | Cell]] = []
    tuned = any("finetuned_accuracy_mean" in line for line in group.result["summary"])
    for line in group.result["summary"]:
        method, count = line["method"], sum(row["method"] == line["method"] for row in group.result["runs"])
        row: list[str | Cell] = [method, percent(line["accuracy_mean"], line["accuracy_std"], count, 2)]
        if tuned:
            row.append(percent(line["finetuned_accuracy_mean"], line["finetuned_accuracy_std"], count, 2))
        rows.append([*row, f"{line['steps']:,}", *(_told(found[method, other]) for other in references)])
    if untrained := group.result.get("untrained"):
        empty = ["–"] * (1 + len(references))
        names = ["accuracy", "finetuned_accuracy"][: 1 + tuned]
        rows.append(["untrained", *(_moments([one[name] for one in untrained]) for name in names), *empty])
    head = ["method", f"test {group.metric}, %", *["fine-tuned, %"] * tuned, "steps"]
    seeds = len({row["seed"] for row in group.result["runs"]})
    what = f"Means over {seeds} seeds ± standard deviation" if seeds > 1 else "One seed"
    caption = f"{what}; differences are in points, seed by seed"
    return Table(caption, [*head, *(f"minus {name}" for name in references)], rows)


def _told(one: Difference | None) -> str | Cell:
    if one is None:
        return "–"
    mean = f"{round(100 * one.mean, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no minus before nothing
    return Cell(f"{mean} ± {100 * one.std:.2f}\n{one.told}", _MARKS.get(one.told, "")) if one.seeds > 1 else mean


def _savings(group: Group, methods: list[str], watts: float | None) -> list[Any]:
    found = {method: saving(group, method, watts) for method in methods}
    if not any(found.values()):
        return ["What was saved cannot be said: there is no run of full to compare with."]
    rows = []
    for method, one in found.items():
        if one is not None:
            cells = [
                _share(one.samples),
                _share(one.time),
                f"{one.seconds:,.1f} s".replace("-", "−"),
                _energy(one.watt_hours),
            ]
            rows.append([method, *cells, "scored first" if one.scored else "–"])
    note = (
        "Time is that of training and selecting, without evaluation; runs side by side slow each other down. Energy is "
        f"time × {power(group, watts)[1]}, and was not measured. A minus sign: more than full took."
    )
    head = ["method", "samples saved", "time saved", "seconds saved", "energy saved, estimate", "scoring"]
    return [Table("Saved against full per run, scoring and selecting included", head, rows), note]


def against_budget(group: Group) -> Section:
    """Accuracy against samples trained; where there is a validation split, along the way too."""
    summary = group.result["summary"]
    told = f"Test {group.metric} against samples trained. " + "; ".join(
        f"{line['method']} {100 * line['accuracy_mean']:.2f} % at {line['samples']:,} samples" for line in summary
    )
    title = f"Test {group.metric} against samples trained"
    shown = [Chart("accuracy", title, told, charts.accuracy(group))]
    blocks: list[Any] = [
        "Dots are single seeds, bars one standard deviation; methods of one budget stand side by side."
    ]
    if any("scoring_samples" in line for line in summary):
        blocks.append("Dotted: with the run on all the data that scores for static methods; it serves all of a seed.")
    validated = [line["method"] for line in summary if _validated(group, line["method"])]
    if validated:
        lines, x = [], []
        for method in validated:
            mine = group.of(method)
            values = [statistics.fmean(100 * one["val_accuracy"] for one in epoch) for epoch in _epochs(mine)]
            trained = [statistics.fmean(one["samples"] for one in epoch) for epoch in _epochs(mine)]
            lines.append((method, charts.colors(group)[method], values))
            x.append([sum(trained[: place + 1]) for place in range(len(trained))])
        said = "; ".join(f"{name} ends at {values[-1]:.2f} %" for name, _, values in lines)
        figure = charts.over_epochs(lines, "validation, %", x)
        shown.append(Chart("validation", "On the validation split, along the way", f"Mean over seeds: {said}", figure))
    return Section("budget", "Accuracy against budget", [*blocks, Charts(shown)])


def per_epoch(group: Group) -> Section:
    """Samples and learning rate of every epoch."""
    title = "Samples and learning rate per epoch"
    if not any(run.history for run in group.runs):
        return Section("epochs", title, [_unrecorded("the epochs' history")])
    shown, blocks, color = [], [], charts.colors(group)
    for column, heading in (("samples", "samples trained"), ("lr", "learning rate")):
        found = curves(group, column)
        lines = [(_label(methods), color[methods[0]], values) for methods, values in found]
        said = "; ".join(f"{label}: from {_number(values[0])} to {_number(values[-1])}" for label, _, values in lines)
        figure = charts.over_epochs(lines, heading)
        shown.append(Chart(f"{column}_per_epoch", heading.capitalize(), f"{heading} by epoch. {said}", figure))
        most = max(len(values) for _, _, values in lines)
        rows = [
            [str(epoch), *(_number(values[epoch]) if epoch < len(values) else "–" for _, _, values in lines)]
            for epoch in range(most)
        ]
        blocks.append(Table(f"Numbers: {heading}", ["epoch", *(label for label, _, _ in lines)], rows, folded=True))
    blocks.insert(0, Charts(shown))
    return Section(
        "epochs",
        title,
        [
            "Means over seeds; methods with the same curve share a line. The learning rate is that of the last step.",
            *blocks,
        ],
    )


def configuration(group: Group) -> Section:
    """Checks, settings, and every run."""
    rows = [[check.what, Cell(check.state, _MARKS.get(check.state, "")), check.detail] for check in checks(group)]
    blocks: list[Any] = [Table("Checks of the records", ["check", "state", "what was found"], rows)]
    stored = [computed(run.settings) for run in group.runs if run.settings]
    if not stored:
        blocks.append(_unrecorded("the settings"))
    else:
        rows = [
            [name.replace("_", "-"), _plain(stored[0][name]), "" if stored[0][name] == usual else "set"]
            for name, usual in computed({}).items()
            if all(one[name] == stored[0][name] for one in stored) and _meant(name, stored[0]["task"])
        ]
        blocks.append(Table("Settings that all runs share", ["setting", "value", "not the default"], rows, folded=True))
    names = ("seed", "accuracy", "samples", "steps", "seconds", "reached_keep")
    rows = [[row["method"], *(_number(row[name]) for name in names)] for row in group.result["runs"]]
    blocks.append(Table("All runs", ["method", *(name.replace("_", " ") for name in names)], rows, folded=True))
    return Section("configuration", "Configuration and checks", blocks)


def _meant(setting: str, task: str) -> bool:
    """Whether a task has this setting."""
    entry = Settings.__dataclass_fields__.get(setting)
    of = {"Language": task.startswith("glue/"), "Contrastive": task == "contrastive"}
    return entry is not None and of.get(entry.metadata["panel"], True)


def _validated(group: Group, method: str) -> bool:
    mine = group.of(method)
    return bool(mine) and all(run.history and "val_accuracy" in run.history[-1] for run in mine)


def _epochs(mine: list[Any]) -> list[tuple[Any, ...]]:
    return list(zip(*(run.history for run in mine), strict=False))


def _label(methods: list[str]) -> str:
    return ", ".join(methods[:4]) + (f" and {len(methods) - 4} more" if len(methods) > 4 else "")


def _moments(values: list[float]) -> str:
    return percent(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values), 2)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %".replace("-", "−")


def _energy(watt_hours: float) -> str:
    kilo = abs(watt_hours) >= 1000
    return f"{watt_hours / 1000 if kilo else watt_hours:,.2g} {'kWh' if kilo else 'Wh'}".replace("-", "−")


def _number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _plain(value: Any) -> str:
    return (
        "none"
        if value is None or value == ""
        else " ".join(map(str, value))
        if isinstance(value, list | tuple)
        else str(value)
    )


def _unrecorded(what: str) -> str:
    return f"Not recorded by this run: {what}."
