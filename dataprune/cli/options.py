"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path | None, typer.Option(help="Folder of the results; the same call continues there.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

Seeds = Annotated[int, typer.Option(min=1, help="Runs per method; they use the seeds from --seed on.")]

Engine = Annotated[
    str,
    typer.Option(
        help="local: one run after another, or --jobs at a time; ray: spread the runs over a Ray cluster (needs the "
        "extra ray).",
        rich_help_panel="Machine",
    ),
]

Address = Annotated[
    str | None,
    typer.Option(
        help="Address of the Ray cluster (with --engine ray); by default RAY_ADDRESS, else a new one on this machine.",
        rich_help_panel="Machine",
    ),
]

Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Runs at a time, each in its own process; 1 by default, with --engine ray as many as fit.",
        rich_help_panel="Machine",
    ),
]

OF_CONTRASTIVE = ("views", "temperature", "dim", "score_on", "gather")  # settings of contrastive learning alone
OF_TASKS = ("task", "max_length", *OF_CONTRASTIVE)
