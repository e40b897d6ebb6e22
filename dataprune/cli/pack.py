"""dataprune pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import out_option


def pack(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Folders of compare, saving, train, joint, advise, reproduce ..."),
    ],
    out: Annotated[
        Path | None, out_option("JSON file to write; by default FOLDER.json, or the common start of several names.")
    ] = None,
) -> None:
    """Pack results and runs into one JSON file, with their tables as Markdown beside it.

    The file has the shared settings once and a line per run: differing settings, versions, hardware, seed, samples,
    steps, seconds, accuracies, and the epochs in columns. `dataprune report` and `dataprune reproduce` read it.
    Weights, scores and selected positions stay in the folders.
    """
    from ..lab.report import pack as packing

    files = packing.pack(folders, out or folders[0].parent / f"{packing.name_of(folders)}.json")
    print(f"packed: {files[0]} ({files[0].stat().st_size / 1000:,.0f} kB), tables: {files[1]}")
