"""What is claimed of each method beside what was measured: paired differences at equal steps and equal compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from .compute import compute
from .document import pipe_table
from .formatting import counted
from .pack import Entry
from .significance import critical, moments

REFERENCES = ("short", "rs2")
_FILE = Path(__file__).with_name("claims.yaml")
_SAME = 0.01  # relative difference of compute that counts as none
_HEAD = ("equal steps, − short", "− rs2", "equal FLOPs, − short", "saved at equal accuracy", "FLOPs", "seconds", "runs")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """What its authors claim of a method, and what others reported."""

    method: str  # as comparisons name it
    source: str
    claim: str | None = None  # None: its authors claim nothing about pruning
    others: str | None = None  # None: no report was found
    reported: str | None = None  # who the others are


class Setting(NamedTuple):
    """Runs on the same data at the same budget, by method and seed."""

    name: str
    keep: float
    noise: float  # share of random labels
    equal: str  # "steps" or "flops": what all runs but `full` have in common
    rows: Mapping[str, Mapping[int, Row]]


@dataclass(frozen=True)
class Mean:
    """A mean over settings of differences that are paired by seed, with its 95 % interval."""

    mean: float
    low: float | None  # None where no setting has two seeds
    high: float | None
    least: float  # of the settings' means
    most: float
    settings: int
    seeds: tuple[int, int]  # fewest and most of a setting

    @classmethod
    def of(cls, differences: Sequence[Sequence[float]]) -> Mean | None:
        """Over settings with at least one pair each; None without a setting.

        All settings count alike. The interval is of the mean over these settings, not over others: Student's t with the
        settings' own variances and Satterthwaite's degrees of freedom. A setting of one seed has the mean variance of
        the others.
        """
        if not differences:
            return None
        means, counts = [fmean(values) for values in differences], [len(values) for values in differences]
        variances = [moments(values)[1] ** 2 for values in differences if len(values) > 1]
        mean, half = fmean(means), None
        if variances:
            known = iter(variances)
            parts = [(next(known) if count > 1 else fmean(variances)) / count for count in counts]
            lost = sum(part**2 / (count - 1) for part, count in zip(parts, counts) if count > 1)
            error = math.sqrt(sum(parts)) / len(means)
            half = critical(0.975, sum(parts) ** 2 / lost) * error if lost else 0.0
        low, high = (None, None) if half is None else (mean - half, mean + half)
        return cls(mean, low, high, min(means), max(means), len(means), (min(counts), max(counts)))


def known() -> list[Claim]:
    """The claims in the package's file, in its order."""
    entries = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return [Claim(method, **fields) for method, fields in entries.items()]


def settings(entries: Sequence[Entry]) -> list[Setting]:
    """Settings that have `short` or `rs2`: of comparisons, of savings, and of a paper's arms without options."""
    found = [setting for entry in entries for setting in _settings(entry)]
    return [setting for setting in found if any(name in setting.rows for name in REFERENCES)]


def measure(entries: Sequence[Entry], claims: Sequence[Claim] | None = None) -> list[dict[str, Any]]:
    """A line for each claim, by default for all that are known.

    Returns:
        Lines with the fields of `Claim`; `measured`, None or a dict of `steps` and `flops` (differences at equal steps
        and at equal compute, each by "clean" and "noisy" labels and by reference: a `Mean` as a dict, or None),
        `compute` and `seconds` (relative to `short`, scoring included, mean over settings; None where not known); and
        `saved`, what `dataprune saving` says, a list of `name`, `saved`, `low`, `high` and `beyond_short`.
    """
    found, lines = settings(entries), []
    for claim in known() if claims is None else claims:
        of = [setting for setting in found if claim.method in setting.rows]
        measured = _measured(claim.method, of) if of else None
        lines.append({**asdict(claim), "measured": measured, "saved": _saved(claim.method, entries)})
    return lines


def rows(lines: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table; a cell may have several lines."""
    table = []
    for line in lines:
        claim = f"{line['claim'] or 'nothing'} ({line['source']})"
        others = f"{line['others']} ({line['reported']})" if line["others"] else "none found"
        table.append([line["method"], claim, others, *_cells(line)])
    return ["method", "claimed", "others report", *_HEAD], table


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    head, table = rows(lines)
    cells = [[f"`{name}`", *(cell.replace("|", "\\|").replace("\n", "<br>") for cell in rest)] for name, *rest in table]
    return pipe_table(head, cells)


# -- from results to settings ----------------------------------------------------------------------------------------


def _settings(entry: Entry) -> list[Setting]:
    result = entry.result or {}
    if entry.command == "reproduce":
        return _panels(entry.name, result)
    if "runs" not in result:
        return []
    noise = next((run.settings["label_noise"] for run in entry.runs if run.settings), 0.0)
    groups: dict[float, list[Row]] = {}
    for row in result["runs"]:
        groups.setdefault(row.get("budget", result.get("keep", 1.0)), []).append(row)
    equal = result.get("equal", "steps")
    return [Setting(entry.name, keep, noise, equal, _by_method(runs, "method")) for keep, runs in groups.items()]


def _panels(name: str, result: Mapping[str, Any]) -> list[Setting]:
    """A setting for each panel and budget of a paper's table, with the arms that are a method without options."""
    plan = result.get("plan", {})
    plain = [arm for arm, own in plan.get("arms", {}).items() if not own]
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in result["rows"]:
        if row["arm"] in plain:
            groups.setdefault((row["panel"], row["keep"]), []).append(row)
    found = []
    for (panel, keep), runs in groups.items():
        noise = (plan["settings"] | plan["panels"][panel]).get("label-noise", 0.0)
        found.append(Setting(f"{name}, {panel}", keep, noise, "steps", _by_method(runs, "arm")))
    return found


def _by_method(runs: Sequence[Row], column: str) -> dict[str, dict[int, Row]]:
    result: dict[str, dict[int, Row]] = {}
    for row in runs:
        result.setdefault(row[column], {})[row["seed"]] = row
    return result


def _saved(method: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What `dataprune saving` says of a method, by entry."""
    savings = [(entry.name, line) for entry in entries for line in (entry.result or {}).get("saving", [])]
    columns = ("saved", "low", "high", "beyond_short")
    own = [(name, line) for name, line in savings if line["method"] == method]
    return [{"name": name, **{column: line.get(column) for column in columns}} for name, line in own]


# -- from settings to lines ------------------------------------------------------------------------------------------


def _measured(method: str, found: Sequence[Setting]) -> dict[str, Any]:
    labels: dict[str, Callable[[Setting], bool]] = {
        "clean": lambda setting: setting.noise == 0,
        "noisy": lambda setting: setting.noise > 0,
    }
    comparable = {"steps": _equal_steps, "flops": _equal_compute}
    differences = {
        equal: {
            kind: {
                reference: _mean([_paired(setting, method, reference, same) for setting in filter(of, found)])
                for reference in REFERENCES
            }
            for kind, of in labels.items()
        }
        for equal, same in comparable.items()
    }
    at_steps = [setting for setting in found if setting.equal == "steps"]
    return {
        **differences,
        "compute": _relative(at_steps, method, compute),
        "seconds": _relative(at_steps, method, lambda row: row["seconds"] + row.get("scoring_seconds", 0.0)),
    }


def _mean(differences: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    mean = Mean.of([values for values in differences if values])
    return None if mean is None else asdict(mean)


def _paired(setting: Setting, method: str, reference: str, same: Callable[[Setting, Row, Row], bool]) -> list[float]:
    """Differences in accuracy, of the seeds of both whose runs are comparable."""
    own, other = (setting.rows.get(name, {}) for name in (method, reference))
    pairs = [(own[seed], other[seed]) for seed in sorted(own.keys() & other.keys()) if method != reference]
    return [row["accuracy"] - base["accuracy"] for row, base in pairs if same(setting, row, base)]


def _equal_steps(setting: Setting, row: Row, base: Row) -> bool:
    return setting.equal == "steps" and row["steps"] == base["steps"]


def _equal_compute(setting: Setting, row: Row, base: Row) -> bool:
    """Whether two runs took the same compute: as planned, or because scoring costs nothing."""
    spent, other = compute(row), compute(base)
    return spent is not None and other is not None and math.isclose(spent, other, rel_tol=_SAME)


def _relative(found: Sequence[Setting], method: str, cost: Callable[[Row], float | None]) -> float | None:
    """Mean over settings of a cost relative to that of `short`; None where one is not known, or there is no `short`."""
    ratios = []
    for setting in found:
        if "short" not in setting.rows:
            continue
        costs = [[cost(row) for row in setting.rows[name].values()] for name in (method, "short")]
        if None in costs[0] + costs[1]:
            return None
        own, short = (fmean(value for value in values if value is not None) for values in costs)
        ratios.append(own / short)
    return fmean(ratios) if ratios else None


# -- cells -----------------------------------------------------------------------------------------------------------


def _cells(line: Mapping[str, Any]) -> list[str]:
    measured, saved = line["measured"], "\n".join(map(_saved_text, line["saved"])) or "not measured"
    if measured is None:
        return ["not measured"] * 3 + [saved, *["not measured"] * 2, "0"]
    steps, flops = (
        [_by_labels({kind: means[reference] for kind, means in measured[equal].items()}) for reference in REFERENCES]
        for equal in ("steps", "flops")
    )
    ratios = [measured[name] for name in ("compute", "seconds")]
    costs = ["not measured" if ratio is None else f"{ratio:.3g} × short" for ratio in ratios]
    at_flops = "the same" if flops[0] == steps[0] and flops[0] != "not measured" else flops[0]
    return [*steps, at_flops, saved, *costs, _runs(measured)]


def _by_labels(means: Mapping[str, Mapping[str, Any] | None]) -> str:
    names = {"clean": "", "noisy": "wrong labels "}
    texts = [names[kind] + _difference(mean) for kind, mean in means.items() if mean is not None]
    return "\n".join(texts) or "not measured"


def _difference(mean: Mapping[str, Any]) -> str:
    text = _points(mean["mean"])
    if mean["low"] is not None:
        text += f" ({_points(mean['low'])} to {_points(mean['high'])})"
    return text


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def _saved_text(line: Mapping[str, Any]) -> str:
    if line["saved"] is None:
        return f"{line['name']}: not told"
    whole = None not in (line["low"], line["high"])
    interval = f" ({100 * line['low']:.0f} to {100 * line['high']:.0f})" if whole else ""
    beyond = line["beyond_short"]
    more = f", {100 * beyond['saved']:+.0f} beyond short".replace("-", "−") if beyond else ""
    return f"{line['name']}: {100 * line['saved']:.0f} %{interval}{more}"


def _runs(measured: Mapping[str, Any]) -> str:
    means = [mean for kinds in measured["steps"].values() for mean in kinds.values() if mean is not None]
    if not means:
        return "0"
    count = sum(
        max((mean["settings"] for mean in kinds.values() if mean is not None), default=0)
        for kinds in measured["steps"].values()
    )
    low, high = min(mean["seeds"][0] for mean in means), max(mean["seeds"][1] for mean in means)
    return f"{counted(count, 'setting')}, {counted(low, 'seed') if low == high else f'{low} to {high} seeds'}"
