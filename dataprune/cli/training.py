"""train, pretrain and score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError, suggest
from ..lab.training.settings import CONTRASTIVE, Settings
from .app import app
from .options import OF_CONTRASTIVE, OF_TASKS, Address, AsJson, Out
from .output import note, plain, progress_bar, require_ray
from .shell import first_rank, takes_settings

_OF_CLASSES = ("selection", "label_noise", "label_smoothing", "shift", "shift_mode", "flip", "recalibrate_bn")

Strategy = Annotated[
    str,
    typer.Option(
        help="With --selection: E trains --epochs on the coreset, P 1 / keep times as many.", rich_help_panel="Pruning"
    ),
]

SmallBatches = Annotated[
    bool,
    typer.Option(
        "--small-batches",
        help="With --selection: half the batch size where 20 % or less is kept, a quarter at 10 % or less (TDDS).",
        rich_help_panel="Pruning",
    ),
]

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


@app.command()
@takes_settings(without=("statistics", *OF_CONTRASTIVE))
def train(
    settings: Settings,
    strategy: Strategy = "E",
    small_batches: SmallBatches = False,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Train one model with one pruning method, or on a coreset with --selection.

    An interrupted run goes on where it was when the same command is given again. Several processes: start it with
    torchrun -m dataprune train. The seconds are those of training and selection, of --recalibrate-bn too; evaluation is
    listed apart, and writing checkpoints counts in neither.
    """
    from ..lab.training.select import adapted

    if settings.task == "contrastive":
        raise UsageError("contrastive learning is `dataprune pretrain`; `train --init FOLDER` goes on from it")
    settings, data = adapted(settings, strategy=strategy, small_batches=small_batches)
    out = out or Path("runs") / f"train-{plain(settings.data)}-{settings.method}-seed{settings.seed}-{settings.key()}"
    _fitted(settings, out, data, json_)


@app.command()
@takes_settings(without=("task", "max_length", "statistics", "init", *_OF_CLASSES), defaults=CONTRASTIVE)
def pretrain(settings: Settings, out: Out = None, json_: AsJson = False) -> None:
    """Learn features without labels, contrastively (SimCLR), on fewer samples.

    `dataprune train --init FOLDER` goes on from them. The record's accuracy is that of a linear classifier of the
    features, knn_accuracy that of their nearest neighbours, both on the test set; with --val-fraction the history has
    the neighbours' accuracy of every epoch.
    """
    out = out or Path("runs") / f"pretrain-{plain(settings.data)}-{settings.method}-{settings.seed}-{settings.key()}"
    _fitted(settings, out, None, json_)


@app.command()
@takes_settings(without=("method", "selection", "keep", "budget", "steps", "init", "track", *OF_TASKS))
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
    _fitted(settings, out, None, json_)


def _fitted(settings: Settings, out: Path, data: Any, json_: bool) -> None:
    """Carry a run out, with a bar, and print its record."""
    from ..integrations.trackers import Followed
    from ..lab.training.run import fit

    done = (out / "metrics.json").exists()
    names = settings.track if first_rank() else ""
    with progress_bar(settings.epochs, "epochs") as bar, Followed(names, out, settings.as_dict()) as followed:

        def report(line: dict[str, Any]) -> None:
            followed.catch_up()
            bar.update(line["epoch"] + 1 - bar.n)
            bar.set_postfix(loss=f"{line['loss']:.3f}" if line["loss"] is not None else "-", samples=line["samples"])

        metrics = fit(settings, out, data=data, report=report)
        followed.catch_up()  # of a run that was finished before
    if not first_rank():
        return
    note(metrics.get("note"))
    note(f"this run was finished before, its record is read from {out}" if done else None)
    if json_:
        print(json.dumps(metrics))
        return
    accuracy = (
        "not tested"
        if metrics["accuracy"] is None
        else f"{metrics.get('metric', 'accuracy')} {metrics['accuracy']:.4f}"
    )
    if "knn_accuracy" in metrics:
        accuracy = f"linear probe {metrics['accuracy']:.4f}, nearest neighbours {metrics['knn_accuracy']:.4f}"
    print(
        f"{metrics['method']}: {accuracy}, {metrics['samples']:,} samples in {metrics['steps']:,} steps, "
        f"{metrics['seconds']:.1f} s (selecting {metrics['select_seconds']:.2f} s)\nrun: {out}"
    )
    if "scores" in metrics:
        print(f"scores: {out / metrics['scores']} ({settings.statistics})")


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
    from ..lab.training.score_pass import score as carry_out

    out = out or Path("runs") / f"score-{plain(settings.data)}-by-{plain(str(run))}"
    record = carry_out(settings, run, out, spread=spread)
    if json_:
        print(json.dumps(record))
        return
    print(f"{record['samples']:,} samples in {record['seconds']:.1f} s")
    print(f"scores: {record['scores']} ({','.join(record['statistics'])})")
