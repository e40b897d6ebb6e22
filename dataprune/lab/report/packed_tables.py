"""Markdown tables of packed experiments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from . import joint, reproductions, saving_part, tables
from .document import by_position, pipe_table
from .formatting import last_parts, mean_percent, share
from .pack import Entry

_SCORES = {"knn_accuracy": "nearest neighbours", "finetuned_accuracy": "fine-tuned", "val_accuracy": "validation"}
_HIDDEN = ("settings", "machine", "commit", "pilot")  # of scripts: not measured, or too long for a table


def markdown(title: str, entries: Sequence[Entry]) -> str:
    """The tables of all entries under one title."""
    parts = [f"# {title}", f"Generated from `{title}.json` by `dataprune pack`."]
    for entry in entries:
        text = _runs(entry) if entry.command == "train" else _TABLES[entry.command](entry.result or {})
        parts += [f"## {entry.name}", *filter(None, [_about(entry)]), text]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown of a table; a cell may hold Markdown, and | as a letter."""
    return pipe_table(*by_position([{name: cell.replace("|", "\\|") for name, cell in row.items()} for row in rows]))


def _about(entry: Entry) -> str:
    """Data, model, versions and hardware."""
    result = entry.result or {}
    machines = [result.get("machine"), *((run.metrics or {}).get("machine") for run in entry.runs)]
    machines = [machine for machine in machines if machine]
    parts = [last_parts(str(result[name])) for name in ("data", "model") if name in result]
    parts += [f"{result['epochs']} epochs"] if "epochs" in result else []
    parts += [f"keep {result['keep']:g}"] if isinstance(result.get("keep"), float) else []
    sources = [*machines, result, *result.get("rows", [])]
    for name in ("dataprune", "commit", "torch", "python"):
        values = sorted({str(source[name]) for source in sources if source.get(name)})
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
    names = {"scoring_seconds": "scoring seconds", "reached_keep": "kept"}
    lines = []
    for method, of_method in rows.items():
        line = {"method": f"`{method}`"} | {heading: mean_percent(of_method, name) for name, heading in scores.items()}
        line["seeds"] = str(len(of_method))
        for name, digits in costs.items():
            line[names.get(name, name)] = f"{fmean(row.get(name, 0) for row in of_method):{digits}}"
            shares = [row["flops"] for row in of_method if "flops" in row]
            if name == "steps" and shares:
                line["FLOPs"] = share(None if None in shares else fmean(shares))
        lines.append(line)
    if untrained := result.get("untrained"):
        cells = {heading: mean_percent(untrained, name) for name, heading in scores.items()}
        lines.append({"method": "untrained", **cells, "seeds": str(len(untrained))})
    return table(lines)


def _reproduction(result: Mapping[str, Any]) -> str:
    _, _, text = reproductions.table(result).partition("\n")  # its title is that of the file
    return text.replace("\n## ", "\n### ")


def _advice(result: Mapping[str, Any]) -> str:
    advice = result["advice"]
    saved = [advice["saving"]["sentence"]] if "saving" in advice else []
    return "\n\n".join([pipe_table(*tables.advice_rows(result)), advice["sentence"], *saved])


def _saving(result: Mapping[str, Any]) -> str:
    texts = [saving_part.sentence(result), *saving_part.remarks(result)]
    parts = [table(saving_part.table_rows(result)), " ".join(texts), table(saving_part.cell_rows(result))]
    return "\n\n".join(filter(None, parts))


def _script(result: Mapping[str, Any]) -> str:
    summarized = {name: result[name] for name in ("summary", "result") if name in result}
    return table([{"value": name, "measured": text} for name, text in _leaves(summarized or result)])


def _runs(entry: Entry) -> str:
    rows = []
    for run in entry.runs:
        metrics = run.metrics or {}
        row = {"run": run.path, **{name: str(metrics.get(name, "–")) for name in ("method", "seed")}}
        row["accuracy, %"] = f"{100 * metrics['accuracy']:.2f}" if metrics.get("accuracy") is not None else "–"
        for name, digits in {"samples": ",", "steps": ",", "seconds": ".1f"}.items():
            row[name] = f"{metrics[name]:{digits}}" if name in metrics else "–"
        rows.append(row)
    return table(rows)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names that lead to the values of nested objects, and the values; a list of numbers is one value."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = {str(next(iter(nested.values()))): nested for nested in value}
    if isinstance(value, Mapping):
        for key, nested in value.items():
            if key not in _HIDDEN:
                yield from _leaves(nested, f"{name}, {key}" if name else key)
    else:
        values = value if isinstance(value, list) else [value]
        yield name, ", ".join(f"{number:.4g}" if isinstance(number, float) else str(number) for number in values)


_TABLES = {
    "compare": _comparison,
    "saving": _saving,
    "reproduce": _reproduction,
    "joint": lambda result: table(joint.differences(result).rows),
    "advise": _advice,
    "script": _script,
}
