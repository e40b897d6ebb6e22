"""dataprune pack."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shell import Debug, reported


def pack(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Folders that compare, train, joint, advise, reproduce ... wrote."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The JSON file; FOLDER.json by default, of several what their names begin with.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write results and runs as one JSON file, and their tables beside it as Markdown.

    The file has the settings that all runs share once, and a line for each run: what differs, versions, hardware, seed,
    samples, steps, seconds, accuracies, and its epochs in columns. `dataprune report` and `dataprune reproduce` read
    it. Weights, scores and the positions of selected samples stay in the folders.
    """
    with reported(debug):
        from ..lab.report import pack as packing

        files = packing.pack(folders, out or folders[0].parent / f"{packing.name_of(folders)}.json")
        print(f"packed: {files[0]} ({files[0].stat().st_size / 1000:,.0f} kB), tables: {files[1]}")
