"""dataprune select."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import UsageError, check_known
from ..lab.training.settings import Settings
from .options import AsJson, option, out_option
from .output import default_out, file_name, print_json, print_lines

if TYPE_CHECKING:
    from ..selection import Selection

sft_option = partial(option, rich_help_panel="With --task sft")

_SUFFIXES = (".safetensors", ".csv", ".json", ".parquet", ".txt")


def select(
    method: Annotated[
        str, option("Static method; `dataprune methods` lists them. With --task sft: random, length, rds or ifd.")
    ],
    keep: Annotated[float, option("Fraction kept, in (0, 1]; or, from 2 on, how many samples.")],
    scores: Annotated[
        Path | None,
        option("Folder of `dataprune score`, or a table of scores (.parquet, .csv), or features (.safetensors)."),
    ] = None,
    task: Annotated[
        str | None, option("sft: choose what to fine-tune on, from --data; by default a coreset by --scores.")
    ] = None,
    statistic: Annotated[str | None, option("Score that top, bottom or stratified reads.")] = None,
    weights: Annotated[
        str | None,
        option(
            "none, raw, or mean-one (scaled to mean 1), the default where the method has weights. By scores a batch "
            "takes the mean of its own, as in TDDS's code; with paper and paper-raw every sample has its own (Eq. 13)."
        ),
    ] = None,
    balance: Annotated[str | None, option("none, or class: keep equal numbers per class.")] = None,
    seed: Annotated[int, option("Random seed.", min=0)] = 0,
    model: Annotated[
        str | None,
        option(
            "The scoring run's model, where that is a module:function: a folder alone imports no code. With --task sft "
            "what transformers loads, a folder or a name on the hub."
        ),
    ] = None,
    option: Annotated[
        list[str] | None, option("Parameter of the method, as name=value (cutoff=0.3); repeatable.")
    ] = None,
    data: Annotated[Path | None, sft_option("Chats: a file of JSON lines or parquet, or a folder of these.")] = None,
    queries: Annotated[Path | None, sft_option("Chats of the target, which rds chooses for.")] = None,
    max_length: Annotated[int | None, sft_option("Tokens of a chat that are read; 2048 by default.", min=2)] = None,
    batch_size: Annotated[int | None, sft_option("Chats that are scored at a time; 8 by default.", min=1)] = None,
    device: Annotated[str | None, sft_option("Device that scores; by default the GPU where there is one.")] = None,
    skip_broken: Annotated[
        bool | None, sft_option("Leave out broken rows and chats without answers, and count them.", "--skip-broken")
    ] = None,
    out: Annotated[
        Path | None,
        out_option(
            "File to write: .safetensors (which `train --selection` reads), or index and weight as .csv, .json or "
            ".parquet, or index as .txt. By default a .safetensors file beside the scores. With --task sft a "
            "folder, in which the same call continues."
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Select a coreset by scores, or by features of the model that scored.

    `dataprune train --selection FILE` trains on it. With --task sft choose what to fine-tune a language model on from a
    file of chats, before training: the subset, a ranking with scores, and a report go into the folder --out.
    """
    sft = dict(data=data, queries=queries, max_length=max_length, batch_size=batch_size, device=device,
               skip_broken=skip_broken)  # fmt: skip
    sft = {name: value for name, value in sft.items() if value is not None}
    coreset_only = {"scores": scores, "statistic": statistic, "weights": weights, "balance": balance, "option": option}
    keep = int(keep) if keep > 1 and keep.is_integer() else keep
    if task is not None:
        check_known(task, ("sft",), what="task of select")
        _refuse([name for name, value in coreset_only.items() if value], "choose a coreset, not what to fine-tune on")
        _select_sft(method, keep, seed=seed, model=model, out=out, json_=json_, **sft)
        return
    _refuse(list(sft), "belong to --task sft")
    if scores is None:
        raise UsageError("give --scores, of which a coreset is selected, or --task sft with --data")
    from ..lab.training import select as coreset

    if out is not None:
        _check_suffix(out)
    options = _options(method, option or [], statistic=statistic, weights=weights, balance=balance)
    selection, metadata = coreset.select(method, scores, keep=keep, seed=seed, options=options, model=model)
    if out is None:
        parts = [method, f"keep{keep:g}", f"seed{seed}"]
        parts += [file_name(f"{name}{value}") for name, value in sorted(options.items())]
        out = (scores if scores.is_dir() else scores.parent) / f"{'-'.join(parts)}.safetensors"
    labels = metadata["labels"]
    retention = {} if labels is None else selection.retention(labels)
    notes = {name: value for name, value in metadata.items() if name != "labels"}
    if retention:
        notes["retention"] = [[label, *counts] for label, counts in retention.items()]
    if out.suffix == ".safetensors":
        coreset.write(out, selection, metadata)
    else:
        _export(out, selection, notes)
    if json_:
        print_json({"path": str(out), "samples": len(selection), **notes})
        return
    print(f"{method}: {len(selection):,} of {metadata['size']:,} samples in {metadata['seconds']:.1f} s")
    if not bool((selection.weight == 1).all()):
        by_batch = ", of which a batch takes the mean" * selection.by_batch
        print(f"weights: {float(selection.weight.min()):.3g} to {float(selection.weight.max()):.3g}{by_batch}")
    if retention:
        shares = [(count / size, label, count, size) for label, (count, size) in retention.items()]
        low, high = (
            f"{share:.1%} (class {label}: {count} of {size})"
            for share, label, count, size in (min(shares), max(shares))
        )
        print(f"kept per class: {low} to {high}")
    print(f"coreset: {out}")


def _select_sft(
    method: str, keep: float, *, seed: int, model: str | None, out: Path | None, json_: bool, **options: Any
) -> None:
    """Choose what to fine-tune on, and print the counts."""
    if "data" not in options:
        raise UsageError("--task sft chooses from --data: give a file of chats, JSON lines or parquet")
    from ..lab.finetuning import report
    from ..lab.finetuning.select import Request
    from ..lab.finetuning.select import select as choose

    data = options.pop("data")
    out = out or default_out("sft", str(data), method)

    def on_part(done: int, of: int) -> None:
        print(f"part {done} of {of} scored", file=sys.stderr)

    request = Request(data, method, keep, out, model=model, seed=seed, **options)
    result = choose(request, **({} if json_ else {"on_part": on_part}))
    if json_:
        print_json(result)
    else:
        print_lines(*report.lines(result))


def _refuse(names: list[str], why: str) -> None:
    """Raise UsageError for options of the other task."""
    if names:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise UsageError(f"{given}: such options {why}; leave them out")


def _options(method: str, texts: list[str], **flags: Any) -> dict[str, Any]:
    """Options of a method: name=value, METHOD.name=value, and those with a flag of their own."""
    options = Settings(option=tuple(texts)).options()
    for owner in options:
        if owner not in ("", method):
            name = next(iter(options[owner]))
            raise UsageError(f"--option {owner}.{name} belongs to method {owner}; this call selects with {method}")
    flags = {name: value for name, value in flags.items() if value is not None}
    return options.get("", {}) | options.get(method, {}) | flags


def _check_suffix(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder: --out names a file")
    if path.suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise UsageError(f"--out {path}: the suffix says the format, one of {known}; got {path.suffix!r}")


def _export(path: Path, selection: Selection, notes: dict[str, Any]) -> None:
    """Write positions and weights in the format that the suffix names."""
    from ..dynamics.table import write_table
    from ..files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"index": selection.index.numpy(), "weight": selection.weight.numpy()}
    if path.suffix == ".txt":
        write_text(path, "".join(f"{position}\n" for position in columns["index"]))
    elif path.suffix == ".json":
        write_text(path, json.dumps({**notes, **{name: column.tolist() for name, column in columns.items()}}) + "\n")
    else:
        write_table(path, columns, notes)
