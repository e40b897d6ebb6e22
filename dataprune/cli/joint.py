"""dataprune joint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..lab.training.settings import Settings
from .options import OF_TASKS, AsJson, Out
from .output import console, note, numbers, plain, progress_bar, require_drawing
from .shell import first_rank, takes_settings

Ratios = Annotated[str, typer.Option(help="Comma-separated fractions of the data that models are trained on.")]

Amounts = Annotated[str, typer.Option(help="Comma-separated shares of the weights that are pruned.")]

DataMethod = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated dynamic methods (emp, rs2 ...) in place of the coresets; a ratio is their keep."
    ),
]

FinetuneOn = Annotated[
    str, typer.Option(help="all: the whole data; coreset: what the model was trained on, in the same way.")
]


@takes_settings(
    without=("method", "selection", "keep", "budget", "steps", "statistics", "epochs", "init", "track", *OF_TASKS)
)
def joint(
    settings: Settings,
    ratios: Ratios = "0.1,0.2,0.3,0.4,0.5",
    amounts: Amounts = "0,0.2,0.4,0.6,0.8",
    seeds: Annotated[int, typer.Option(min=1, help="Times that all stages are carried out, from --seed on.")] = 3,
    score_epochs: Annotated[int, typer.Option(help="Epochs in which forgetting is counted.")] = 10,
    epochs: Annotated[int, typer.Option(help="Epochs of training on a coreset, and of the base.")] = 10,
    finetune_epochs: Annotated[int, typer.Option(help="Epochs after pruning.")] = 10,
    finetune_on: FinetuneOn = "all",
    finetune_lr: Annotated[float | None, typer.Option(help="Peak rate of fine-tuning; --lr by default.")] = None,
    scope: Annotated[str, typer.Option(help="Weights are ranked within a layer, or global: all together.")] = "layer",
    data_method: DataMethod = None,
    reinitialize: Annotated[
        bool, typer.Option("--reinitialize", help="Keep the masks alone: fine-tune from new random weights.")
    ] = False,
    save_models: Annotated[
        bool, typer.Option("--save-models", help="Keep the final weights of the cells that this call makes.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Train nothing: show the finished grid in --out, and draw its figures.")
    ] = False,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Prune the data and then the network, and compare with pruning the network alone.

    Per seed: count how often a training run forgets each sample; train new models on the most forgotten, the least
    forgotten and random samples, and one on all the data (the base); prune the smallest weights; fine-tune with the
    pruned ones held at zero. Writes joint.json after every cell, four figures, and a folder for each run. Pruned
    weights save neither time nor memory here: FLOPs count them as if zeros were free.
    """
    require_drawing()
    from ..lab.report import joint_plots, tables
    from ..lab.sweeps.joint.grid import Grid
    from ..lab.sweeps.joint.run import joint as carry_out
    from ..lab.sweeps.joint.run import load
    from ..lab.training.setup import load_data

    grid = Grid(
        replace(settings, epochs=epochs),
        ratios=numbers("--ratios", ratios),
        amounts=numbers("--amounts", amounts),
        seeds=range(settings.seed, settings.seed + seeds),
        data_methods=[name.strip() for name in (data_method or "").split(",") if name.strip()],
        score_epochs=score_epochs,
        finetune_epochs=finetune_epochs,
        finetune_on=finetune_on,
        finetune_lr=finetune_lr,
        scope=scope,
        reinitialize=reinitialize,
    )
    grid.validate()
    out = out or Path("runs") / f"joint-{plain(settings.data)}-{grid.key()}"
    if table:
        result = load(out)
    else:
        data = load_data(settings)
        if first_rank():
            note(data.note)
        with progress_bar(grid.epochs(), "epochs") as bar:

            def report(name: str, line: dict[str, Any]) -> None:
                bar.update(1)
                bar.set_postfix(run=name)

            result = carry_out(grid, out, data=data, report=report, save_models=save_models)
    if not first_rank():
        return
    shown = tables.joint(result)  # refuses a grid that is not finished
    drawn = joint_plots.draw(result, out)
    if json_:
        print(json.dumps(result))
        return
    console().print(shown)
    where = ", ".join(str(path) for path in drawn if path.suffix == ".svg")
    print(f"results: {out / 'joint.json'}, figures: {where}")
