"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path | None, typer.Option(help="Folder of the results; a new call with the same goes on there.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

Seeds = Annotated[int, typer.Option(min=1, help="Runs of each method, from --seed on.")]

Engine = Annotated[
    str,
    typer.Option(
        help="local: the runs one after another, or --jobs side by side; ray: spread over a Ray cluster "
        "(pip install 'dataprune[ray]').",
        rich_help_panel="Machine",
    ),
]

Address = Annotated[
    str | None,
    typer.Option(
        help="With --engine ray: of the cluster; by default RAY_ADDRESS, else a Ray of its own on this machine.",
        rich_help_panel="Machine",
    ),
]

Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Runs side by side, each in a process of its own; 1 by default, with ray as many as there is room for.",
        rich_help_panel="Machine",
    ),
]

OF_CONTRASTIVE = ("views", "temperature", "dim", "score_on", "gather")  # settings of contrastive learning alone
OF_TASKS = ("task", "max_length", *OF_CONTRASTIVE)
