"""dataprune report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, option, out_option
from .output import print_json, require_drawing


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS...",
            help="Folders of compare, saving, train or joint, folders above them, files of `dataprune pack`.",
        ),
    ],
    out: Annotated[
        Path | None,
        out_option("Folder to write to; by default the given folder; report/ for several, or a packed file."),
    ] = None,
    watts: Annotated[
        float | None,
        option("Power of the processor in watts, to estimate energy; by default 65 for a CPU, 400 for a GPU."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Write a report on runs: one self-contained HTML page.

    Shows the result in a sentence, accuracy against samples, differences over seeds, the compute saved, how often
    samples were selected, their scores, classes and pictures, and consistency checks of the records. Runs that differ
    only in method, seed and keep are compared with each other. Writes report.html, report.md and figures/*.png.
    """
    require_drawing()
    from ..lab.report import page

    out = out or (folders[0] if len(folders) == 1 and folders[0].is_dir() else Path("report"))
    files = page.write(folders, out, watts=watts)
    if json_:
        print_json({"page": str(files[0]), "markdown": str(files[1])})
    else:
        print(f"report: {files[0]}, as Markdown: {files[1]}")
