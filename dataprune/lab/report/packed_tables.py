"""Markdown tables of packed experiments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from . import joint, reproductions
from .document import pipe_table
from .formatting import last_parts, mean_percent
from .pack import Entry

_SCORES = {"knn_accuracy": "nearest neighbours", "finetuned_accuracy": "fine-tuned", "val_accuracy": "validation"}
_HIDDEN = ("settings", "machine", "pilot")  # of scripts: not measured, or too long for a table


def markdown(title: str, entries: Sequence[Entry]) -> str:
    """The tables of all entries under one title."""
    parts = [f"# {title}", f"Generated from `{title}.json` by `dataprune pack`."]
    for entry in entries:
        text = _runs(entry) if entry.command == "train" else _TABLES[entry.command](entry.result or {})
        parts += [f"## {entry.name}", *filter(None, [_about(entry)]), text]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown of a table; a cell may hold Markdown, and | as a letter."""
    escaped = [[cell.replace("|", "\\|") for cell in cells] for cells in (head, *rows)]
    return pipe_table(escaped[0], escaped[1:])


def _about(entry: Entry) -> str:
    """Data, model, versions and hardware."""
    result = entry.result or {}
    machines = [result.get("machine"), *((run.metrics or {}).get("machine") for run in entry.runs)]
    machines = [machine for machine in machines if machine]
    parts = [last_parts(str(result[name])) for name in ("data", "model") if name in result]
    parts += [f"{result['epochs']} epochs"] if "epochs" in result else []
    parts += [f"keep {result['keep']:g}"] if isinstance(result.get("keep"), float) else []
    for name in ("dataprune", "torch", "python"):
        values = sorted({str(machine[name]) for machine in machines if name in machine})
        parts += [f"{name} {', '.join(values)}"] if values else []
    hardware = sorted({f"{machine['device']} ({machine['hardware']})" for machine in machines})
    parts += [", ".join(hardware)] if hardware else []
    return "; ".join(parts) + "." if parts else ""


def _comparison(result: Mapping[str, Any]) -> str:
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in result["runs"]:
        rows[row["method"]].append(row)
    scores = {"accuracy": result.get("metric", "accuracy"), **_SCORES}
    scores = {name: f"{text}, %" for name, text in scores.items() if any(name in row for row in result["runs"])}
    costs = {"samples": ",.0f", "steps": ",.0f", "seconds": ".1f", "scoring_seconds": ".1f", "reached_keep": ".3g"}
    if not any("scoring_seconds" in row for row in result["runs"]):
        del costs["scoring_seconds"]
    lines = []
    for method, of_method in rows.items():
        cells = [mean_percent(of_method, name) for name in scores]
        means = [f"{fmean(row.get(name, 0) for row in of_method):{digits}}" for name, digits in costs.items()]
        lines.append([f"`{method}`", *cells, str(len(of_method)), *means])
    if untrained := result.get("untrained"):
        cells = [mean_percent(untrained, name) for name in scores]
        lines.append(["untrained", *cells, str(len(untrained)), *["–"] * len(costs)])
    names = {"scoring_seconds": "scoring seconds", "reached_keep": "kept"}
    return table(["method", *scores.values(), "seeds", *(names.get(name, name) for name in costs)], lines)


def _reproduction(result: Mapping[str, Any]) -> str:
    _, _, text = reproductions.table(result).partition("\n")  # its title is that of the file
    return text.replace("\n## ", "\n### ")


def _joint(result: Mapping[str, Any]) -> str:
    differences = joint.differences(result)
    return table(differences.head, differences.rows)


def _advice(result: Mapping[str, Any]) -> str:
    rows = []
    for line in result["lines"]:
        cells = [
            f"{100 * line[name]['mean']:+.2f} ± {100 * line[name]['error']:.2f}" if line[name] else "–"
            for name in ("short", "rs2")
        ]
        rows.append([f"`{line['method']}`", f"{100 * line['accuracy']:.2f}", *cells])
    head = ["method", "accuracy, %", "above `short`, points", "above `rs2`, points"]
    return table(head, rows) + f"\n\n{result['advice']['sentence']}"


def _script(result: Mapping[str, Any]) -> str:
    summarized = {name: result[name] for name in ("summary", "result") if name in result}
    return table(["value", "measured"], list(_leaves(summarized or result)))


def _runs(entry: Entry) -> str:
    rows = []
    for run in entry.runs:
        metrics = run.metrics or {}
        value = metrics.get("accuracy")
        cells = [str(metrics.get(name, "–")) for name in ("method", "seed")]
        cells.append("–" if value is None else f"{100 * value:.2f}")
        cells += [f"{metrics[name]:,}" if name in metrics else "–" for name in ("samples", "steps")]
        rows.append([run.path, *cells, f"{metrics['seconds']:.1f}" if "seconds" in metrics else "–"])
    return table(["run", "method", "seed", "accuracy, %", "samples", "steps", "seconds"], rows)


def _leaves(value: Any, name: str = "") -> Iterator[list[str]]:
    """Names that lead to the values of nested objects, and the values; a list of numbers is one value."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = {str(next(iter(nested.values()))): nested for nested in value}
    if isinstance(value, Mapping):
        for key, nested in value.items():
            if key not in _HIDDEN:
                yield from _leaves(nested, f"{name}, {key}" if name else key)
    else:
        values = value if isinstance(value, list) else [value]
        yield [name, ", ".join(f"{number:.4g}" if isinstance(number, float) else str(number) for number in values)]


_TABLES = {"compare": _comparison, "reproduce": _reproduction, "joint": _joint, "advise": _advice, "script": _script}
