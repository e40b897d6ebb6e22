"""Choose rows of a file of chats, and write the subset."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import files, finetuning
from ...coresets.budget import count_of
from ...dynamics.table import write_table
from ...errors import DataError, UsageError, check_known
from ...hashing import uniform
from ..report.compute import scoring_compute
from . import report, rows, scoring
from .chats import Chat
from .model import NO_TEMPLATE, Model, Tokens
from .scoring import Cost, Ifd, Length, Rds, Scorer

METHODS = ("random", "length", "rds", "ifd")
COLUMNS = {"random": "random", "length": "tokens", "rds": "similarity", "ifd": "ifd"}


@dataclass(frozen=True)
class Request:
    """What to choose from, and how."""

    data: Path
    method: str
    keep: float
    out: Path
    queries: Path | None = None
    model: str | None = None
    seed: int = 0
    max_length: int = 2048
    batch_size: int = 8
    device: str | None = None
    skip_broken: bool = False


def select(request: Request, *, on_part: Callable[[int, int], None] = lambda done, of: None) -> dict[str, Any]:
    """Choose rows of a file, and write them with their scores and a report.

    Returns:
        Counts, costs and the files written, as `--json` prints them.
    Raises:
        UsageError, DataError, CheckpointError: naming the option, the row, or what the folder was scored with.
    """
    _check(request)
    found = rows.find(request.data)
    scan = rows.scan(found, skip_broken=request.skip_broken)
    usable = scan.usable
    if not usable.any():
        remark = f" ({scan.first_problem})" if scan.broken else ""
        raise DataError(f"{request.data} holds no row to choose from{remark}")
    kept = _count(request.keep, int(usable.sum()))
    notes: list[str] = []
    values, cost = _scores(request, found, scan, notes, on_part)
    order, column = _order(request, values, usable, kept)
    del values
    (request.out / "scores.npy").unlink(missing_ok=True)  # the parts hold them
    unscored = int((np.isnan(column) & usable).sum())
    fields = _summary(request, scan, column, order[:kept], cost, unscored)
    _notes(request, scan, column, unscored, kept, notes)
    result = {**fields, "notes": notes, "files": _write(request, found, scan, column, order, kept)}
    chosen = report.examples(rows.read_chats(found), order, kept, column)
    files.write_text(request.out / "report.md", report.markdown(result, chosen))
    files.write_json(request.out / "selection.json", result)
    return result


def _check(request: Request) -> None:
    check_known(request.method, METHODS, what="method of --task sft")
    if request.method == "rds" and request.queries is None:
        raise UsageError(
            "--method rds chooses what is near to queries: add --queries, a file of a few dozen target chats"
        )
    if request.method != "rds" and request.queries is not None:
        raise UsageError(f"--queries belongs to method rds; this call selects with {request.method}")
    if request.method == "random" and request.model is not None:
        raise UsageError("--method random reads no model: leave --model out")
    if request.method != "random" and request.model is None:
        use = {"length": "whose tokens are counted", "rds": "that embeds the rows", "ifd": "whose losses are compared"}
        raise UsageError(f"--method {request.method} needs --model, the one {use[request.method]}")
    if request.out.exists() and not request.out.is_dir():
        raise UsageError(f"--out {request.out} is a file: with --task sft it names a folder")


def _count(keep: float, size: int) -> int:
    try:
        return count_of(size, keep)
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def _scores(
    request: Request, found: Sequence[Path], scan: rows.Scan, notes: list[str], on_part: Callable[[int, int], None]
) -> tuple[np.ndarray, Cost]:
    """(width, N) scores."""
    if request.method == "random":
        scoring.identify(request.out, {"method": request.method, "data": _identity(request.data, found)})
        return uniform(request.seed, 0, torch.arange(scan.size)).numpy()[None], Cost()
    identity = {"method": request.method, "data": _identity(request.data, found), "model": request.model}
    identity |= {"max_length": request.max_length}
    scorer: Scorer
    if request.method == "length":
        tokens = Tokens(str(request.model), request.max_length)
        identity |= {"tokenizer": len(tokens.tokenizer)}
        scorer = Length(tokens)
    else:
        if request.queries is not None:
            identity |= {"queries": _identity(request.queries, rows.find(request.queries))}
        queries = _queries(request, notes)
        model = Model(
            str(request.model),
            causal=request.method == "ifd",
            max_length=request.max_length,
            batch_size=request.batch_size,
            device=request.device,
        )
        identity |= {"weights": model.digest()}
        if not model.tokens.templated:
            notes.append(NO_TEMPLATE.format(model=request.model))
        scorer = Ifd(model) if request.method == "ifd" else Rds(model, queries)
    scoring.identify(request.out, identity)
    chats = rows.read_chats(found)
    return scoring.score(chats, scorer, request.out, scan.size, skip_broken=request.skip_broken, on_part=on_part)


def _queries(request: Request, notes: list[str]) -> list[Chat]:
    """The chats of --queries; an answer is not needed."""
    if request.queries is None:
        return []
    found = rows.find(request.queries)
    scan = rows.scan(found, skip_broken=request.skip_broken, answered=False)
    chats = [chat for _, chat, _ in rows.read_chats(found, answered=False) if chat is not None]
    if not chats:
        raise DataError(f"--queries {request.queries} holds no chat: give examples of what the model should learn")
    if scan.broken:
        notes.append(f"{len(scan.broken)} broken queries were skipped, the first: {scan.first_problem}")
    return chats


def _identity(path: Path, found: Sequence[Path]) -> str:
    return f"{path.name} ({rows.digest(found)})"


def _order(request: Request, values: np.ndarray, usable: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """All usable rows in the order in which they are kept, and one score of all rows, NaN of broken ones."""
    column = np.full(len(usable), np.nan, dtype=np.float32)
    positions = np.flatnonzero(usable)
    column[positions] = values.max(axis=0)[positions]
    scores = torch.from_numpy(column[positions])
    if request.method == "ifd":
        order = finetuning.by_ifd(scores, request.seed)
    else:
        order = finetuning.descending(scores, request.seed)
    if request.method == "rds":  # after the rows that are taken in turns, the others by their highest cosine
        # of all rows, as a memory-mapped table stays on disk; broken ones and those without a score are not taken
        count = min(kept, int((~np.isnan(column)).sum()))
        taken = finetuning.round_robin(torch.from_numpy(values), count, request.seed).numpy()
        others = positions[order.numpy()]
        return np.concatenate([taken, others[~np.isin(others, taken)]]), column
    return positions[order.numpy()], column


def _summary(
    request: Request, scan: rows.Scan, column: np.ndarray, chosen: np.ndarray, cost: Cost, unscored: int
) -> dict[str, Any]:
    letters, usable = np.asarray(scan.letters), scan.usable
    spent = scoring_compute({"scoring_forwarded_samples": cost.rows})
    return {
        "task": "sft",
        "method": request.method,
        "data": str(request.data),
        "queries": None if request.queries is None else str(request.queries),
        "model": request.model,
        "keep": request.keep,
        "seed": request.seed,
        "rows": int(usable.sum()),
        "kept": len(chosen),
        "broken": len(scan.broken),
        "unscored": unscored,
        "letters_of_answers": float(letters[usable].mean()),
        "letters_of_kept_answers": float(letters[chosen].mean()),
        "score_of_kept": [_number(each) for each in _range(column[chosen])],
        "score_of_all": [_number(each) for each in _range(column[usable])],
        "forwarded_rows": cost.rows,
        "forwarded_tokens": cost.tokens,
        "scoring_compute": spent,
        "scoring_share": spent / int(usable.sum()),
        "seconds": cost.seconds,
    }


def _range(values: np.ndarray) -> list[float]:
    """Lowest, median and highest."""
    known = values[~np.isnan(values)]
    return [float(np.quantile(known, q)) for q in (0, 0.5, 1)] if len(known) else []


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _notes(request: Request, scan: rows.Scan, column: np.ndarray, unscored: int, kept: int, notes: list[str]) -> None:
    usable = scan.usable
    if scan.broken:
        notes.append(f"{len(scan.broken)} broken rows were skipped, the first: {scan.first_problem}")
    if unscored:
        why = "their prompt fills --max-length" if request.method == "ifd" else "no token of theirs is known"
        notes.append(f"{unscored} rows have no score ({why}, or they do not fit the chat template) and come last")
    if request.method == "ifd" and (above := int((column[usable] > 1).sum())):
        used = ", and some are kept" * (kept > int((column[usable] <= 1).sum()))
        text = f"{above} rows have an answer that is less likely after its prompt (IFD above 1)"
        notes.append(f"{text}; they come after the others{used}")


def _write(
    request: Request, found: Sequence[Path], scan: rows.Scan, column: np.ndarray, order: np.ndarray, kept: int
) -> dict[str, str]:
    out, chosen = request.out, order[:kept]
    names = {"ids": "ids.txt", "scores": f"ranking.{'parquet' if find_spec('pyarrow') else 'csv'}"}
    names |= {"subset": "subset.jsonl", "report": "report.md"}
    paths = {name: out / file for name, file in names.items()}
    files.write_text(paths["ids"], "".join(f"{position}\n" for position in np.sort(chosen)))
    rank = np.zeros(scan.size, dtype=np.int64)  # 0: broken
    rank[order] = np.arange(1, len(order) + 1)
    columns = {"index": np.arange(scan.size), COLUMNS[request.method]: column, "rank": rank}
    columns["kept"] = ((rank > 0) & (rank <= kept)).astype(np.int64)
    write_table(paths["scores"], columns, {"method": request.method, "keep": request.keep, "seed": request.seed})
    keep = np.zeros(scan.size, dtype=np.bool_)
    keep[chosen] = True
    part = out / "subset.jsonl.part"
    with open(part, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(row.as_line() + "\n" for row in rows.read(found) if keep[row.position])
    part.replace(paths["subset"])
    return {name: str(path) for name, path in paths.items()}
