"""dataprune compare."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..lab.training.settings import Settings
from .engine import choose_engine
from .options import Address, AsJson, Engine, Jobs, Out, Seeds
from .output import console, note, numbers, plain, progress_of_runs, require_drawing
from .shell import first_rank, takes_settings

MAIN_METHODS = "full,short,rs2,random,loss,infobatch,emp,memory"

Methods = Annotated[
    str, typer.Option(help="Comma-separated; `short` is all data for as many steps as the pruned runs.")
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


@takes_settings(without=("method", "selection", "steps", "statistics", "init", "track"))
def compare(
    settings: Settings,
    methods: Methods = MAIN_METHODS,
    seeds: Seeds = 3,
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

    All pruned methods run one schedule (--warmup, --keep, --anneal). Every run but `full` trains the same number of
    optimizer steps. Static methods (`dataprune methods`) are scored in one run on all the data per seed; its cost
    stands beside theirs. Writes compare.json, the figure accuracy.svg and accuracy.png, the report (report.html,
    report.md and figures/), and a folder for each run. The seconds are those of training and selection, of
    --recalibrate-bn too, without evaluation.

    Side by side (--jobs, --engine ray) the records are the same but for the seconds, and a run that fails does not stop
    the others. A Ray cluster gets the data from here and sends the records back; where --out is on a file system that
    its machines share, runs that were interrupted go on from their last checkpoints.
    """
    require_drawing()
    where = choose_engine(engine, address, jobs)
    from ..lab.report import plots, tables
    from ..lab.sweeps.compare import Comparison
    from ..lab.sweeps.compare import compare as carry_out
    from ..lab.training.setup import load_data

    comparison = Comparison(
        settings,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        seeds=range(settings.seed, settings.seed + seeds),
        learning_rates=numbers("--tune-lr", tune_lr),
        score_epochs=score_epochs,
        finetune_epochs=finetune_epochs,
    )
    comparison.validate()
    out = out or Path("runs") / f"compare-{plain(settings.data)}-{_comparison_key(comparison)}"
    data = load_data(settings)
    if first_rank():
        note(data.note)
    with progress_of_runs(comparison.epochs(len(data.train))) as report:
        result = carry_out(comparison, out, data=data, report=report, engine=where)
    if not first_rank():
        return
    figures = plots.write(plots.accuracy(result), out / "accuracy")
    page = _reported(out, data)
    if json_:
        print(json.dumps(result))
        return
    terminal = console()
    schedule = comparison.schedule(len(data.train))
    terminal.print(f"schedule of all pruned runs: {schedule}", soft_wrap=True, highlight=False)
    terminal.print(tables.comparison(result))
    written = [f"results: {out / 'compare.json'}", f"figure: {figures[0]}", *([f"report: {page}"] if page else [])]
    terminal.print(", ".join(written), soft_wrap=True, highlight=False)


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
        *comparison.learning_rates,
        *([] if comparison.score_epochs is None else ["scoring", comparison.score_epochs]),
        *(["fine-tuning", comparison.finetune_epochs] if comparison.finetune_epochs else []),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
