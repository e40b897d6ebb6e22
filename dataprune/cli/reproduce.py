"""dataprune reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import option, out_option
from .output import first_rank
from .progress import training_progress


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="Table or figure to reproduce, or your own YAML file; by default list them.")
    ] = None,
    scale: Annotated[
        str, option("smoke: runs in seconds; cpu: shows the effect on two cores; paper: the paper's setting.")
    ] = "cpu",
    model: Annotated[str | None, option("Pretrained encoder of language tasks: a folder or hub name.")] = None,
    seeds: Annotated[int | None, option("Number of seeds; that of the file by default.", min=1)] = None,
    jobs: Annotated[int | None, option("Runs at a time; by default one per CPU core, or one on a GPU.", min=1)] = None,
    cache: Annotated[
        Path, option("Folder of the runs, which all tables and figures with the same settings share.")
    ] = Path("runs/reproduce/cache"),
    out: Annotated[Path | None, out_option("Folder of the results; runs/reproduce/NAME-SCALE by default.")] = None,
) -> None:
    """Reproduce a table or figure of a paper, with its published numbers beside.

    Writes result.json, table.md and a figure; experiments that prune networks write joint.json, table.md and four
    figures; scripts write their own files. The same command continues an interrupted reproduction.
    """
    from ..lab.sweeps import papers

    if name is None:
        for available in papers.available():
            source, claim = papers.about(available)
            print(f"{available}: {source}\n    {claim}")
        return
    out = out or Path("runs") / "reproduce" / f"{Path(name).stem}-{scale}"
    with training_progress(0, several=True) as progress:
        files = papers.reproduce(name, scale, out, cache, seeds=seeds, model=model, jobs=jobs, report=progress)
    if first_rank():
        table = out / "table.md"
        if table.exists():
            print(table.read_text(encoding="utf-8"))
        print("results: " + ", ".join(str(file) for file in files))
