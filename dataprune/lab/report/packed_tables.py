"""Markdown tables of packed experiments."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import reproductions
from .pack import Entry
from .tables import last_parts, percent

_HIDDEN = ("settings", "machine", "pilot")  # of scripts: not measured, or too long for a table


def markdown(title: str, entries: Sequence[Entry]) -> str:
    """The tables of all entries under one title."""
    parts = [f"# {title}", f"Generated from `{title}.json` by `dataprune pack`."]
    for entry in entries:
        parts += [f"## {entry.name}", *filter(None, [_about(entry)]), _TABLES[entry.command](entry)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _about(entry: Entry) -> str:
    """Data, model, versions and hardware."""
    result = entry.result or {}
    machines = [result.get("machine"), *((record.metrics or {}).get("machine") for record in entry.runs)]
    machines = [machine for machine in machines if machine]
    parts = [last_parts(str(result[name])) for name in ("data", "model") if name in result]
    parts += [f"{result['epochs']} epochs"] if "epochs" in result else []
    parts += [f"keep {result['keep']:g}"] if isinstance(result.get("keep"), float) else []
    for name in ("dataprune", "torch", "python"):
        values = sorted({str(machine[name]) for machine in machines if name in machine})
        parts += [f"{name} {', '.join(values)}"] if values else []
    if machines:
        hardware = sorted({f"{machine['device']} ({machine['hardware']})" for machine in machines})
        parts.append(", ".join(hardware))
    return "; ".join(parts) + "." if parts else ""


def _comparison(entry: Entry) -> str:
    assert entry.result is not None
    rows, seeds = entry.result["runs"], {}
    for row in rows:
        seeds.setdefault(row["method"], []).append(row)
    names = {"accuracy": entry.result.get("metric", "accuracy"), "knn_accuracy": "nearest neighbours"}
    names |= {"finetuned_accuracy": "fine-tuned", "val_accuracy": "validation"}
    names = {name: f"{text}, %" for name, text in names.items() if any(name in row for row in rows)}
    scored = any("scoring_seconds" in row for row in rows)
    head = ["method", *names.values(), "seeds", "samples", "steps", "seconds", *["scoring seconds"] * scored, "kept"]
    lines = []
    for method, records in seeds.items():
        cells = [_moments([row[name] for row in records if name in row]) for name in names]
        cells += [str(len(records)), *(f"{_mean(records, name):,.0f}" for name in ("samples", "steps"))]
        cells.append(f"{_mean(records, 'seconds'):.1f}")
        cells += [f"{_mean(records, 'scoring_seconds'):.1f}"] * scored
        lines.append([f"`{method}`", *cells, f"{_mean(records, 'reached_keep'):.3g}"])
    if untrained := entry.result.get("untrained"):
        cells = [_moments([row[name] for row in untrained if name in row]) for name in names]
        lines.append(["untrained", *cells, str(len(untrained)), *["–"] * (len(head) - len(cells) - 2)])
    return table(head, lines)


def _reproduction(entry: Entry) -> str:
    assert entry.result is not None
    _, _, text = reproductions.table(entry.result).partition("\n")  # its title is that of the file
    return text.replace("\n## ", "\n### ")


def _joint(entry: Entry) -> str:
    assert entry.result is not None
    seeds = len(entry.result["grid"]["seeds"])
    rows = []
    for line in entry.result["summary"]:
        difference = f"{100 * line['difference_mean']:+.2f}".replace("-", "−")
        difference += f" ± {100 * line['difference_std']:.2f}" if seeds > 1 else ""
        p = "–" if line["p"] is None else f"{line['p']:.2g}"
        values = [percent(line[f"{name}_mean"], line[f"{name}_std"], seeds, 2) for name in ("base", "accuracy")]
        flops = f"{line['flops'] / line['base_flops']:.2f}"
        rows.append([line["arm"], f"{line['ratio']:g}", f"{line['amount']:g}", *values, difference, p, flops])
    head = ["arm", "ratio", "amount", "base, %", "accuracy, %", "difference, points", "p", "FLOPs of the base's"]
    return table(head, rows)


def _advice(entry: Entry) -> str:
    assert entry.result is not None
    rows = []
    for line in entry.result["lines"]:
        cells = [f"{100 * line['accuracy']:.2f}"]
        for name in ("short", "rs2"):
            difference = line[name]
            cells.append(
                "–" if difference is None else f"{100 * difference['mean']:+.2f} ± {100 * difference['error']:.2f}"
            )
        rows.append([f"`{line['method']}`", *cells])
    head = ["method", "accuracy, %", "above `short`, points", "above `rs2`, points"]
    return table(head, rows) + f"\n\n{entry.result['advice']['sentence']}"


def _script(entry: Entry) -> str:
    result = entry.result or {}
    summarized = [name for name in ("summary", "result") if name in result]
    values = {name: result[name] for name in summarized} or result
    return table(["value", "measured"], [[name, text] for name, text in _leaves(values)])


def _runs(entry: Entry) -> str:
    rows = []
    for record in entry.runs:
        metrics = record.metrics or {}
        value = metrics.get("accuracy")
        cells = [f"{100 * value:.2f}" if value is not None else "–"]
        cells += [f"{metrics[name]:,}" if name in metrics else "–" for name in ("samples", "steps")]
        cells.append(f"{metrics['seconds']:.1f}" if "seconds" in metrics else "–")
        rows.append([record.path, str(metrics.get("method", "–")), str(metrics.get("seed", "–")), *cells])
    return table(["run", "method", "seed", "accuracy, %", "samples", "steps", "seconds"], rows)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Values of nested objects with the names that lead to them; a list of numbers is one value."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = {str(next(iter(nested.values()))): nested for nested in value}
    if isinstance(value, Mapping):
        for key, nested in value.items():
            if key not in _HIDDEN:
                yield from _leaves(nested, f"{name}, {key}" if name else key)
    else:
        values = value if isinstance(value, list) else [value]
        yield name, ", ".join(f"{number:.4g}" if isinstance(number, float) else str(number) for number in values)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(row.get(name, 0) for row in rows) / len(rows)


def _moments(values: Sequence[float]) -> str:
    """Mean and sample standard deviation in percent."""
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return percent(statistics.fmean(values), deviation, len(values), 2)


_TABLES = {
    "compare": _comparison,
    "reproduce": _reproduction,
    "joint": _joint,
    "advise": _advice,
    "script": _script,
    "train": _runs,
}
