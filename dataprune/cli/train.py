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
        help="With --selection: E trains for --epochs, P for --epochs / keep (as many samples as full data).",
        rich_help_panel="Pruning",
    ),
]

SmallBatches = Annotated[
    bool,
    typer.Option(
        "--small-batches",
        help="With --selection: halve the batch size at 20 % kept or less, quarter it at 10 % or less (TDDS).",
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
    """Train one model with one pruning method, or on a coreset (--selection).

    The same command continues an interrupted run. To use several processes: torchrun -m dataprune train. Reported
    seconds cover training, selection and --recalibrate-bn; evaluation is listed apart, and writing checkpoints is not
    counted.
    """
    from ..lab.training.select import adapted

    if settings.task == "contrastive":
        raise UsageError(
            "contrastive learning has a command of its own: dataprune pretrain; then `train --init FOLDER` fine-tunes"
        )
    settings, data = adapted(settings, strategy=strategy, small_batches=small_batches)
    key = settings.key()  # first: it refuses a coreset that cannot be read
    name = _coreset_method(settings.selection) or settings.method
    out = out or Path("runs") / f"train-{plain(settings.data)}-{name}-seed{settings.seed}-{key}"
    carry_out(settings, out, data, json_)


def _coreset_method(path: str | None) -> str:
    """The method that selected a coreset; empty where there is none, or its file does not say."""
    from ..selection import Selection

    return "" if path is None else str(Selection.metadata(path).get("method", ""))
