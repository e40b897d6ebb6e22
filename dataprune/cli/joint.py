"""dataprune joint."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from ..errors import UsageError
from ..files import read_json
from ..lab.training.settings import Settings
from .options import (
    OF_STEPS,
    OF_TASKS,
    Address,
    AsJson,
    Engine,
    Jobs,
    Out,
    choose_engine,
    option,
    split_names,
    split_numbers,
)
from .output import console, default_out, first_rank, print_json, require_drawing
from .runs import run_sweep
from .settings_options import takes_settings


@takes_settings(
    without=("method", "selection", "keep", "budget", *OF_STEPS, "statistics", "epochs", "init", "track", *OF_TASKS)
)
def joint(
    settings: Settings,
    ratios: Annotated[str, option("Comma-separated fractions of the data to train on.")] = "0.1,0.2,0.3,0.4,0.5",
    amounts: Annotated[str, option("Comma-separated shares of the weights to prune.")] = "0,0.2,0.4,0.6,0.8",
    seeds: Annotated[int, option("Repetitions of all stages; they use the seeds from --seed on.", min=1)] = 3,
    score_epochs: Annotated[int, option("Epochs of the run that counts forgetting.")] = 10,
    epochs: Annotated[int, option("Epochs of training on a coreset, and of the base model.")] = 10,
    finetune_epochs: Annotated[int, option("Epochs of fine-tuning after weights are pruned.")] = 10,
    finetune_on: Annotated[
        str, option("Data of fine-tuning: all, or coreset: the data that the model was trained on.")
    ] = "all",
    finetune_lr: Annotated[float | None, option("Peak learning rate of fine-tuning; --lr by default.")] = None,
    scope: Annotated[str, option("Rank weights within each layer (layer), or all together (global).")] = "layer",
    data_method: Annotated[
        str | None,
        option(
            "Comma-separated dynamic methods (memory, rs2 ...) to use instead of coresets; each ratio is their --keep."
        ),
    ] = None,
    reinitialize: Annotated[
        bool, option("Keep only the masks: fine-tune from new random weights.", "--reinitialize")
    ] = False,
    save_models: Annotated[
        bool, option("Save the final weights of every model that this call trains.", "--save-models")
    ] = False,
    table: Annotated[
        bool, option("Train nothing: show the finished grid in --out and draw its figures.", "--table")
    ] = False,
    engine: Engine = "local",
    address: Address = None,
    jobs: Jobs = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Prune first the data, then the network; compare with pruning the network alone.

    For each seed: count how often a training run forgets each sample; train new models on the most forgotten, the least
    forgotten and random samples, and one on all the data (the base); prune the smallest weights; fine-tune while pruned
    weights stay zero. Writes joint.json after every cell, four figures, and a folder per run. Zeros save neither time
    nor memory here; the FLOPs in the table count them as free.
    """
    require_drawing()
    sweep_engine = choose_engine(engine, address, jobs)
    from ..lab.report import joint as grids
    from ..lab.report import tables
    from ..lab.sweeps.joint.grid import Grid
    from ..lab.sweeps.sweep import carry_out
    from ..lab.training.build import load_data

    grid = Grid(
        replace(settings, epochs=epochs),
        ratios=split_numbers("--ratios", ratios),
        amounts=split_numbers("--amounts", amounts),
        seeds=range(settings.seed, settings.seed + seeds),
        data_methods=split_names(data_method),
        score_epochs=score_epochs,
        finetune_epochs=finetune_epochs,
        finetune_on=finetune_on,
        finetune_lr=finetune_lr,
        scope=scope,
        reinitialize=reinitialize,
        save_models=save_models,
    )
    out = out or default_out("joint", settings.data, grid.key)
    file = out / "joint.json"
    if table:
        if not file.exists():
            raise UsageError(f"{file} does not exist: run the command without --table first")
        result = read_json(file) if first_rank() else None
    else:
        data, epochs = load_data(settings), grid.epochs()
        result = run_sweep(carry_out, grid, out, data=data, epochs=epochs, engine=sweep_engine, quiet=json_)
    if result is None:
        return
    shown = tables.joint(result)  # refuses a grid that is not finished
    drawn = grids.draw(result, out)
    if json_:
        print_json(result)
        return
    console().print(shown)
    figures = ", ".join(str(path) for path in drawn if path.suffix == ".svg")
    print(f"results: {file}, figures: {figures}")
