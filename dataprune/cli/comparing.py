"""compare and advise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError, suggest
from ..lab.training.settings import Settings
from .app import app
from .options import OF_TASKS, Address, AsJson, Jobs, Out, Seeds
from .output import console, note, numbers, plain, progress_bar, require_drawing, require_ray
from .shell import first_rank, takes_settings

MAIN_METHODS = "full,short,rs2,random,loss,infobatch,emp,memory"

Methods = Annotated[
    str, typer.Option(help="Comma-separated; `short` is all data for as many steps as the pruned runs.")
]

Anneal = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of full epochs at the end, for all pruned methods.")
]

TuneLr = Annotated[
    str | None,
    typer.Option(help="Comma-separated learning rates: each method takes the best on the validation split."),
]

ScoreEpochs = Annotated[
    int | None, typer.Option(min=1, help="Epochs of the run that scores for static methods; --epochs by default.")
]

FinetuneAfter = Annotated[
    int,
    typer.Option(
        help="Of --task contrastive: also train on all labels for so many epochs, from each encoder and from scratch."
    ),
]

Engine = Annotated[
    str,
    typer.Option(
        help="local: the runs one after another, or --jobs side by side; ray: spread over a Ray cluster "
        "(pip install 'dataprune[ray]').",
        rich_help_panel="Machine",
    ),
]

Candidates = Annotated[
    str,
    typer.Option(
        help="Comma-separated methods that may be advised, beside rs2; infobatch is left out where it cannot reach the "
        "budget."
    ),
]


@app.command()
@takes_settings(without=("method", "selection", "steps", "statistics", "init", "track"))
def compare(
    settings: Settings,
    methods: Methods = MAIN_METHODS,
    seeds: Seeds = 3,
    anneal: Anneal = 0.0,
    tune_lr: TuneLr = None,
    score_epochs: ScoreEpochs = None,
    finetune_epochs: FinetuneAfter = 0,
    engine: Engine = "local",
    address: Address = None,
    jobs: Jobs = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Compare methods at equal compute, over several seeds.

    All pruned methods run one schedule: the first epoch full, then --keep. Every run but `full` trains the same number
    of optimizer steps. Static methods (`dataprune methods`) are scored in one run on all the data per seed; its cost
    stands beside theirs. Writes compare.json, the figure accuracy.svg and accuracy.png, the report (report.html,
    report.md and figures/), and a folder for each run. The seconds are those of training and selection, of
    --recalibrate-bn too, without evaluation.

    Side by side (--jobs, --engine ray) the records are the same but for the seconds, and a run that fails does not stop
    the others. A Ray cluster gets the data from here and sends the records back; where --out is on a file system that
    its machines share, runs that were interrupted go on from their last checkpoints.
    """
    require_drawing()
    where = _engine(engine, address, jobs)
    from ..lab.report import tables
    from ..lab.report.figures import accuracy_against_samples
    from ..lab.sweeps.compare import Comparison
    from ..lab.sweeps.compare import compare as carry_out
    from ..lab.training.setup import load_data

    comparison = Comparison(
        settings,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        seeds=range(settings.seed, settings.seed + seeds),
        anneal=anneal,
        learning_rates=numbers("--tune-lr", tune_lr),
        score_epochs=score_epochs,
        finetune_epochs=finetune_epochs,
    )
    comparison.validate()
    out = out or Path("runs") / f"compare-{plain(settings.data)}-{_comparison_key(comparison)}"
    data = load_data(settings)
    if first_rank():
        note(data.note)
    with _followed(comparison.epochs(len(data.train))) as report:
        result = carry_out(comparison, out, data=data, report=report, engine=where)
    if not first_rank():
        return
    figures = accuracy_against_samples(result, out / "accuracy")
    page = _reported(out, data)
    if json_:
        print(json.dumps(result))
        return
    terminal = console()
    terminal.print(tables.comparison(result))
    written = [f"results: {out / 'compare.json'}", f"figure: {figures[0]}", *([f"report: {page}"] if page else [])]
    terminal.print(", ".join(written), soft_wrap=True, highlight=False)


@app.command()
@takes_settings(
    without=("method", "selection", "keep", "steps", "statistics", "val_fraction", "track", *OF_TASKS[1:]),
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

    where = _engine("local", None, jobs)
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
    with _followed(len(pilot.methods(len(data.train))) * seeds * pilot.pilot_epochs()) as report:
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


def _engine(name: str, address: str | None, jobs: int | None) -> Any:
    """Where a comparison's runs are carried out."""
    if name not in ("local", "ray"):
        raise UsageError(suggest(name, ["local", "ray"], what="engine"))
    if name == "ray":
        require_ray()
        from ..lab.sweeps.engine_ray import on_ray

        return on_ray(address, jobs)
    if address is not None:
        raise UsageError("--address is that of a Ray cluster: add --engine ray")
    from ..lab.sweeps import engines

    return engines.local if jobs in (None, 1) else engines.processes(jobs)


@contextmanager
def _followed(epochs: int) -> Iterator[Callable[[str, int, dict[str, Any]], None]]:
    """A bar over the epochs of all runs; gives what is called after each."""
    with progress_bar(epochs, "epochs") as bar:

        def report(method: str, seed: int, line: dict[str, Any]) -> None:
            bar.update(1)
            bar.set_postfix(method=method, seed=seed)

        yield report


def _reported(out: Path, data: Any) -> Path | None:
    """The report of a comparison that is written already: whatever goes wrong here must not lose it."""
    from ..lab.report import page

    try:
        return page.write([out], out, data=data)[0]
    except Exception as error:
        note(f"the report could not be written ({error}); once that is mended: dataprune report {out}")
        return None


def _comparison_key(comparison: Any) -> str:
    parts = (
        comparison.settings.key(),
        *comparison.methods,
        len(comparison.seeds),
        comparison.anneal,
        *comparison.learning_rates,
        *([] if comparison.score_epochs is None else ["scoring", comparison.score_epochs]),
        *(["fine-tuning", comparison.finetune_epochs] if comparison.finetune_epochs else []),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
