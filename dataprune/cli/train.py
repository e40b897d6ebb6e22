"""dataprune train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..lab.training.settings import Settings
from .options import OF_CONTRASTIVE, AsJson, Out
from .output import plain
from .shell import takes_settings
from .training_run import carry_out

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
    carry_out(settings, out, data, json_)
