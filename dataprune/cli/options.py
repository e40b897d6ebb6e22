"""Options that several commands have, and the engine that they choose."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError, check_known


def out_path(text: str) -> Path:
    """The value of --out: a path that has a name, and one that can be printed and written into results."""
    if not text.strip():
        raise typer.BadParameter("it names nothing: give a path, or leave --out out")
    if text.encode(errors="replace") != os.fsencode(text):
        raise typer.BadParameter(f"{text!a} is not UTF-8: choose another name")
    return Path(text)


def option(help: str, *names: str, **more: Any) -> Any:
    """An option with its help text, its names where they differ from the parameter's, and more for `typer.Option`."""
    return typer.Option(*names, help=help, **more)


out_option = partial(option, parser=out_path, metavar="<path>")
machine_option = partial(option, rich_help_panel="Machine")

Out = Annotated[Path | None, out_option("Folder of the results; the same call continues there.")]

AsJson = Annotated[bool, option("Print the result as JSON on stdout.", "--json")]

Seeds = Annotated[int, option("Runs per method; they use the seeds from --seed on.", min=1)]

Engine = Annotated[
    str,
    machine_option(
        "local: one run after another, or --jobs at a time; ray: spread the runs over a Ray cluster (needs the "
        "extra ray)."
    ),
]

Address = Annotated[
    str | None,
    machine_option(
        "Address of the Ray cluster (with --engine ray); by default RAY_ADDRESS, else a new one on this machine."
    ),
]

Jobs = Annotated[
    int | None,
    machine_option("Runs at a time, each in its own process; 1 by default, with --engine ray as many as fit.", min=1),
]

OF_CONTRASTIVE = ("views", "temperature", "dim", "projection", "score_on", "gather")  # of contrastive learning alone
OF_TASKS = ("task", "max_length", *OF_CONTRASTIVE)
OF_STEPS = ("steps", "count_forwards")  # when a run stops, which sweeps decide themselves


def choose_engine(name: str, address: str | None, jobs: int | None) -> Any:
    """The engine of a sweep that --engine, --address and --jobs name."""
    if uses_ray(name):
        from ..lab.sweeps.engine_ray import on_ray

        return on_ray(address, jobs)
    if address is not None:
        raise UsageError("--address names a Ray cluster: add --engine ray")
    from ..lab.sweeps import engines

    return engines.local if jobs in (None, 1) else engines.processes(jobs)


def uses_ray(engine: str) -> bool:
    """Whether an engine is Ray; raises UsageError for an unknown engine, or where Ray is not installed."""
    check_known(engine, ("local", "ray"), what="engine")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray: pip install -c constraints.txt -e '.[ray]'")
    return engine == "ray"


def split_names(text: str | None) -> list[str]:
    """Split a comma-separated option into names."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def split_numbers(option: str, text: str | None) -> tuple[float, ...]:
    """Parse the comma-separated numbers of an option."""
    try:
        return tuple(float(number) for number in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{option} takes comma-separated numbers, got {text!r}") from None
