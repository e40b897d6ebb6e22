"""dataprune select."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..lab.training.settings import Settings
from .options import AsJson
from .output import plain_text
from .shell import Debug, reported


def select(
    scores: Annotated[
        Path,
        typer.Option(
            help="Folder of `dataprune score`; or a table of scores (.parquet, .csv); or features (.safetensors)."
        ),
    ],
    method: Annotated[str, typer.Option(help="Static method; `dataprune methods` lists them.")],
    keep: Annotated[float, typer.Option(help="Fraction kept, in (0, 1].")],
    statistic: Annotated[str | None, typer.Option(help="The score that top, bottom or stratified reads.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="none, mean-one (scaled to mean 1: where the method has weights the default) or raw."),
    ] = None,
    balance: Annotated[str | None, typer.Option(help="none, or class: as many of every class.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is random.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option(help="A parameter of the selector, as name=value (cutoff=0.3); repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; in the folder of the scores by default.")] = None,
    json_: AsJson = False,
    debug: Debug = False,
) -> None:
    """Choose a coreset from scores, or from what the scored model makes of the data.

    `dataprune train --selection FILE` trains on it.
    """
    with reported(debug):
        from ..lab.training import select as coreset
        from ..selection import Selection

        options = _options_of(method, option or [], statistic=statistic, weights=weights, balance=balance)
        selection, metadata = coreset.select(method, scores, keep=keep, seed=seed, options=options)
        folder = scores if scores.is_dir() else scores.parent
        named = "".join(f"-{plain_text(f'{name}{value}')}" for name, value in sorted(options.items()))
        out = out or folder / f"{method}-keep{keep:g}-seed{seed}{named}.safetensors"
        coreset.write(out, selection, metadata)
        stored = Selection.metadata(out)
        if json_:
            print(json.dumps({"path": str(out), "samples": len(selection.index), **stored}))
            return
        total = metadata["size"]
        print(f"{method}: {len(selection.index):,} of {total:,} samples in {metadata['seconds']:.1f} s")
        if not bool((selection.weight == 1).all()):
            print(f"weights: {float(selection.weight.min()):.3g} to {float(selection.weight.max()):.3g}")
        kept = [(count / size, name, count, size) for name, count, size in stored.get("retention", [])]
        if kept:
            low, high = min(kept), max(kept)
            ends = [f"{share:.1%} (class {name}: {count} of {size})" for share, name, count, size in (low, high)]
            print(f"kept per class: {ends[0]} to {ends[1]}")
        print(f"coreset: {out}")


def _options_of(method: str, texts: list[str], **given: Any) -> dict[str, Any]:
    """Options of a selector: name=value, METHOD.name=value, and those with a flag of their own."""
    settings = Settings(option=tuple(texts))
    settings.validate()
    options = settings.options()
    for owner in options:
        if owner not in ("", method):
            raise UsageError(f"--option {owner}.{next(iter(options[owner]))} is not for {method}, which is selected by")
    flags = {name: value for name, value in given.items() if value is not None}
    return options.get("", {}) | options.get(method, {}) | flags
