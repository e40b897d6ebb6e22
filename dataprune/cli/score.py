"""dataprune score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError, suggest
from ..lab.training.settings import Settings
from .options import OF_TASKS, Address, AsJson, Out
from .output import note, plain, require_ray
from .shell import takes_settings
from .training_run import carry_out

Init = Annotated[
    Path | None,
    typer.Option(help="Train nothing: score in one pass of the model of this run, a folder of `dataprune train`."),
]

PassEngine = Annotated[
    str,
    typer.Option(
        help="With --init: local, or ray: read, decode and score on a Ray cluster (pip install 'dataprune[ray]').",
        rich_help_panel="Machine",
    ),
]

PassJobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --engine ray: copies of the model; by default as many as there are GPUs, or else cores.",
        rich_help_panel="Machine",
    ),
]


@takes_settings(
    without=("method", "selection", "keep", "budget", "warmup", "anneal", "steps", "init", "track", *OF_TASKS)
)
def score(
    settings: Settings,
    init: Init = None,
    engine: PassEngine = "local",
    address: Address = None,
    jobs: PassJobs = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Train once on all the data, and score every sample by its training dynamics.

    Writes scores.parquet (scores.csv without pyarrow), a row per sample in dataset order, beside the trained model,
    from which `dataprune select` takes features. Parameters of a statistic are given as --option NAME.parameter=value
    (tdds.window=5). An interrupted run goes on where it was when the same command is given again.

    With --init nothing is trained: that run's model scores a folder of parquet files (--data) in one pass, a few images
    in memory at a time; --engine ray spreads the pass over a cluster. Such a pass has el2n, entropy, least_confidence,
    margin, loss and grand; `dataprune select --scores FILE` reads the table.
    """
    if init is not None:
        _pass(settings, init, engine, address, jobs, out, json_)
        return
    if engine != "local" or address is not None or jobs is not None:
        raise UsageError(
            "--engine, --address and --jobs spread one pass of a trained model over parquet files: add --init RUN; "
            "a run that records training dynamics is one run"
        )
    from ..dynamics import STATISTICS
    from ..lab.training.setup import recordable

    names = settings.statistics
    if not names:
        names = ",".join(recordable(settings))
        short = [name for name in STATISTICS if name not in recordable(settings)]
        note(f"{', '.join(short)} need more than {settings.epochs} epochs and are left out" if short else None)
    settings = replace(settings, method="full", statistics=names)
    out = out or Path("runs") / f"score-{plain(settings.data)}-seed{settings.seed}-{settings.key()}"
    carry_out(settings, out, None, json_)


def _pass(
    settings: Settings, run: Path, engine: str, address: str | None, jobs: int | None, out: Path | None, json_: bool
) -> None:
    """Score by one pass of a trained model."""
    if engine not in ("local", "ray"):
        raise UsageError(suggest(engine, ["local", "ray"], what="engine"))
    spread = None
    if engine == "ray":
        require_ray()
        from ..lab.training.score_pass_ray import on_ray

        spread = on_ray(address, jobs)
    elif address is not None or jobs is not None:
        raise UsageError("--address and --jobs are for --engine ray")
    from ..lab.training.score_pass import score as score_in_one_pass

    out = out or Path("runs") / f"score-{plain(settings.data)}-by-{plain(str(run))}"
    record = score_in_one_pass(settings, run, out, spread=spread)
    if json_:
        print(json.dumps(record))
        return
    print(f"{record['samples']:,} samples in {record['seconds']:.1f} s")
    print(f"scores: {record['scores']} ({','.join(record['statistics'])})")
