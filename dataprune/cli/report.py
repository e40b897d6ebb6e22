"""dataprune report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson
from .output import require_drawing
from .shell import Debug, reported


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Folders of `dataprune compare` and `dataprune train`.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; by default the folder itself, of several the folder report/.")
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(
            help="What a processor draws, for the estimate of energy; by default 65 for a CPU, 400 for a GPU."
        ),
    ] = None,
    json_: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write what runs came to as one HTML page that loads nothing.

    Accuracy against full, short and rs2 with the spread over seeds, what was saved, how often samples were selected, by
    which scores, of which classes, what they look like, and whether the records agree. Writes report.html, report.md
    and figures/*.png. Runs that differ in nothing but method, seed and what is kept are compared with each other.
    """
    with reported(debug):
        require_drawing()
        from ..lab.report import page

        out = out or (folders[0] if len(folders) == 1 else Path("report"))
        files = page.write(folders, out, watts=watts)
        if json_:
            print(json.dumps({"page": str(files[0]), "markdown": str(files[1])}))
        else:
            print(f"report: {files[0]}, as Markdown: {files[1]}")
