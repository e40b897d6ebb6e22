"""dataprune train."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from ..errors import UsageError
from ..lab.training.settings import ONLINE, Settings
from .options import OF_CONTRASTIVE, AsJson, Out, option
from .output import default_out
from .runs import train_run
from .settings_options import takes_settings


@takes_settings(without=("statistics", *OF_CONTRASTIVE))
def train(
    ctx: typer.Context,
    settings: Settings,
    online: Annotated[
        str | None,
        option(
            "In place of --method: read super-batches of --batch-size / --keep samples, score them by a forward pass, "
            "and train --batch-size of each: uniform, loss, memory, divbs or window.",
            rich_help_panel="Pruning",
        ),
    ] = None,
    strategy: Annotated[
        str,
        option(
            "With --selection: E trains for --epochs, P for --epochs / keep (as many samples as full data).",
            rich_help_panel="Pruning",
        ),
    ] = "E",
    small_batches: Annotated[
        bool,
        option(
            "With --selection: halve the batch size at 20 % kept or less, quarter it at 10 % or less (TDDS).",
            "--small-batches",
            rich_help_panel="Pruning",
        ),
    ] = False,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Train one model with one pruning method, or on a coreset (--selection).

    The same command continues an interrupted run. To use several processes: torchrun -m dataprune train. Reported
    seconds cover training, selection and --recalibrate-bn; evaluation is listed apart, and writing checkpoints is not
    counted.
    """
    if online is not None:
        settings = _choosing_online(ctx, settings, online)
    from ..lab.training.select import adapted
    from ..selection import Selection

    if settings.task == "contrastive":
        raise UsageError(
            "contrastive learning has a command of its own: dataprune pretrain; then `train --init FOLDER` fine-tunes"
        )
    data = None
    if strategy != "E" or small_batches:
        settings, data = adapted(settings, strategy=strategy, small_batches=small_batches)
    key = settings.key()  # first: it refuses a coreset that cannot be read
    coreset = {} if settings.selection is None else Selection.metadata(settings.selection)
    method = str(coreset.get("method", "")) or settings.method
    out = out or default_out("train", settings.data, method, f"seed{settings.seed}", key)
    train_run(settings, out, json_, data)


def _choosing_online(ctx: typer.Context, settings: Settings, online: str) -> Settings:
    source = ctx.get_parameter_source("method")
    if source is not None and source.name != "DEFAULT":
        raise UsageError(f"--online {online} takes the place of --method: leave --method {settings.method} out")
    return replace(settings, method=ONLINE + online)
