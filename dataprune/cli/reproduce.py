"""dataprune reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import progress_bar
from .shell import Debug, first_rank, reported


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A table or figure, or a YAML file of your own; without it they are listed.")
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="smoke: seconds, shows that it runs; cpu: where two cores show an effect; paper: its setting."
        ),
    ] = "cpu",
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the encoder, for language tasks.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="In place of the file's.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; by default one for each CPU core, one on a GPU.")
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Folder of the runs; runs of equal settings serve all tables and figures.")
    ] = Path("runs/reproduce/cache"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; runs/reproduce/NAME-SCALE by default.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Carry out a table or a figure of a paper: result.json, table.md, and a figure, ours beside the paper's.

    Where networks are pruned, too, it writes joint.json, table.md and four figures; what is a script writes its own
    files. Interrupted, it goes on where it was when the command is given again.
    """
    with reported(debug):
        from ..lab.sweeps import papers

        if name is None:
            for known in papers.available():
                source, claim = papers.about(known)
                print(f"{known}: {source}\n    {claim}")
            return
        out = out or Path("runs") / "reproduce" / f"{Path(name).stem}-{scale}"
        with progress_bar(0, "epochs") as bar:

            def report(run: str, *rest: Any) -> None:
                bar.update(1)
                bar.set_postfix(run=run)

            files = papers.reproduce(
                name, scale, out, cache, overrides={"model": model, "seeds": seeds}, jobs=jobs, report=report
            )
        if first_rank():
            table = out / "table.md"
            if table.exists():
                print(table.read_text(encoding="utf-8"))
            print("results: " + ", ".join(str(file) for file in files))
