"""dataprune score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from ..errors import UsageError
from ..lab.training.settings import Settings, flag
from .options import OF_STEPS, OF_TASKS, Address, AsJson, Out, machine_option, option, uses_ray
from .output import default_out, folder_name, note, print_json
from .runs import train_run
from .settings_options import takes_settings


@takes_settings(
    without=("method", "selection", "keep", "budget", "warmup", "anneal", *OF_STEPS, "init", "track", *OF_TASKS)
)
def score(
    settings: Settings,
    init: Annotated[
        Path | None, option("Skip training: score in one pass with the model of this folder of `dataprune train`.")
    ] = None,
    engine: Annotated[
        str, machine_option("With --init: local, or ray: spread the pass over a Ray cluster (needs the extra ray).")
    ] = "local",
    address: Address = None,
    jobs: Annotated[
        int | None,
        machine_option(
            "With --engine ray: copies of the model; by default one per GPU, or one per core without GPUs.", min=1
        ),
    ] = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Score every sample by its training dynamics, or score a parquet folder in one pass (--init).

    Trains once on all the data. Writes scores.parquet (scores.csv without pyarrow): one row per sample, in dataset
    order; and the trained model, from which `dataprune select` extracts features. Set a statistic's parameters with
    --option NAME.parameter=value (tdds.window=5). The same command continues an interrupted run.

    With --init the given run's model scores the parquet files in --data in one pass, a few images in memory at a time.
    Such a pass computes el2n, entropy, least_confidence, margin, loss and grand. `dataprune select --scores FILE` reads
    the table. A model of your own, module:function, is imported only if --model names it again.
    """
    if init is not None:
        _score_in_one_pass(settings, init, engine, address, jobs, out, json_)
        return
    if engine != "local" or address is not None or jobs is not None:
        raise UsageError(
            "--engine, --address and --jobs need --init RUN, a pass that can be spread; "
            "a scoring run that trains is a single run"
        )
    from ..dynamics import STATISTICS
    from ..lab.training.build import recordable

    names = settings.statistics
    if not names:
        recorded = recordable(settings)
        names = ",".join(recorded)
        left_out = [name for name in STATISTICS if name not in recorded]
        note(f"{', '.join(left_out)} left out: they need more than {settings.epochs} epochs" if left_out else None)
    settings = replace(settings, method="full", statistics=names)
    train_run(settings, out or default_out("score", settings.data, f"seed{settings.seed}", settings.key()), json_)


def _score_in_one_pass(
    settings: Settings, run: Path, engine: str, address: str | None, jobs: int | None, out: Path | None, json_: bool
) -> None:
    spread = None
    if uses_ray(engine):
        from ..lab.training.score_pass import on_ray

        spread = on_ray(address, jobs)
    elif address is not None or jobs is not None:
        raise UsageError("--address and --jobs need --engine ray")
    from ..lab.training import score_pass

    given, defaults = vars(settings), vars(Settings(method=settings.method))
    model = settings.model if ":" in settings.model else None
    for name in given:
        if given[name] != defaults[name] and name not in ("data", "statistics", "device", model and "model"):
            raise UsageError(
                f"{flag(name)} is for training, and --init scores with a model as it was trained: leave it out"
            )
    out = out or default_out("score", settings.data, "by", folder_name(str(run)))
    names, device = settings.statistic_names, settings.device
    record = score_pass.score(settings.data, names, run, out, device=device, model=model, spread=spread)
    if json_:
        print_json(record)
        return
    print(f"{record['samples']:,} samples in {record['seconds']:.1f} s")
    print(f"scores: {record['scores']} ({','.join(record['statistics'])})")
