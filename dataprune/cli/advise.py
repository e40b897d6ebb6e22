"""dataprune advise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from ..lab.training.settings import Settings
from .engine import choose_engine
from .options import OF_TASKS, AsJson, Jobs, Out
from .output import console, note, plain, progress_of_runs
from .shell import first_rank, takes_settings

Candidates = Annotated[
    str,
    typer.Option(
        help="Comma-separated methods that may be advised, beside rs2; infobatch is left out where it cannot reach the "
        "budget."
    ),
]


@takes_settings(
    without=("method", "selection", "keep", "steps", "statistics", "val_fraction", "anneal", "track", *OF_TASKS[1:]),
    defaults={"budget": 0.3},
)
def advise(
    settings: Settings,
    candidates: Candidates = "infobatch,loss,emp,memory",
    seeds: Annotated[int, typer.Option(help="Pilots of each method, from --seed on; at least 2.")] = 3,
    pilot_size: Annotated[int, typer.Option(help="Samples that a pilot trains on, at most.")] = 4000,
    pilot_epochs: Annotated[
        int | None, typer.Option(help="Epochs of a pilot; by default those planned, at most 20 or 2 / budget.")
    ] = None,
    same_steps: Annotated[
        bool, typer.Option(help="Pilots have smaller batches, so that they take as many steps as the planned run.")
    ] = True,
    jobs: Jobs = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Say whether pruning pays for a run that is planned, and which method does, by short pilots.

    The options are those of the planned run; --budget is the fraction of a full run's samples that it may train.
    Pilots of all candidates train on a part of its training set with the same budget, and are judged by another part:
    the test set is not read. The method with the highest mean is advised, or all data for as many steps (`short`) where
    none is above that, with the probability of being better than `short` and than random choice (`rs2`). Writes
    advice.json and a folder of `compare` for each seed; the same call goes on where it stopped, and with more --seeds
    adds theirs. docs/advise.md says what it cannot know.
    """
    from ..lab.report import tables
    from ..lab.sweeps.advise import Pilot
    from ..lab.sweeps.advise import advise as carry_out
    from ..lab.training.setup import load_data

    where = choose_engine("local", None, jobs)
    pilot = Pilot(
        settings,
        candidates=[name.strip() for name in candidates.split(",") if name.strip()],
        seeds=range(settings.seed, settings.seed + seeds),
        size=pilot_size,
        epochs=pilot_epochs,
        same_steps=same_steps,
    )
    pilot.validate()
    chosen = (pilot.candidates, pilot_size, pilot_epochs, same_steps)
    key = hashlib.sha256(repr(chosen).encode()).hexdigest()[:4]
    out = out or Path("runs") / f"advise-{plain(settings.data)}-{settings.key()[:8]}{key}"
    data = load_data(settings)
    if first_rank():
        note(data.note)
    with progress_of_runs(len(pilot.methods(len(data.train))) * seeds * pilot.pilot_epochs()) as report:
        result = carry_out(pilot, out, data=data, report=report, engine=where)
    if not first_rank():
        return
    if json_:
        print(json.dumps(result))
        return
    terminal = console()
    terminal.print(tables.advice(result))
    advice = result["advice"]
    lines = (tables.pilots(result), "", advice["sentence"], advice["command"], f"results: {out / 'advice.json'}")
    terminal.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
