"""dataprune saving."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..lab.training.settings import Settings
from .options import (
    OF_STEPS,
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
from .output import console, default_out, print_json, print_lines, require_drawing
from .runs import run_sweep
from .settings_options import takes_settings


@takes_settings(without=("method", "selection", "keep", "budget", *OF_STEPS, "statistics", "init", "track"))
def saving(
    settings: Settings,
    names: Annotated[
        str | None,
        option("Comma-separated methods beside full; by default short,rs2 and the task's default.", "--methods"),
    ] = None,
    budgets: Annotated[
        str | None,
        option(
            "Comma-separated shares of full's steps; by default those of 0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.85 that the "
            "schedule can reach."
        ),
    ] = None,
    margin: Annotated[float, option("Points of accuracy that a method may lose and be level with full.")] = 0.3,
    seeds: Annotated[int, option("Runs per method and budget, at least 2; they use the seeds from --seed on.")] = 3,
    max_seeds: Annotated[
        int | None, option("Runs where it is close, beside each method's smallest level budget; 3 times --seeds.")
    ] = None,
    longer: Annotated[
        float,
        option("Train full also for so many times the epochs, to show whether more would help; 0 leaves it out."),
    ] = 1.5,
    score_epochs: Annotated[
        int | None, option("Epochs of the scoring run of static methods; --epochs by default.", min=1)
    ] = None,
    score_model: Annotated[
        str | None, option("Model of the scoring run of static methods; --model by default.")
    ] = None,
    cache: Annotated[
        Path | None, option("Folder of the runs, which several calls can share; by default that of the results.")
    ] = None,
    engine: Engine = "local",
    address: Address = None,
    jobs: Jobs = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Say how much less can be trained at equal accuracy.

    For each method the smallest budget at which it is level with full: surely (95 %, one-sided, paired by seed) less
    than --margin below it, there and at all larger budgets. What it saves is what full computes beyond that, with the
    scoring of static methods and an interval by bootstrap over seeds; where the runs cannot tell, it says so.

    Seeds are added on either side of each method's smallest level budget until that is settled, or there are
    --max-seeds. A saving means little while full still gains from more epochs, so full is also trained for --longer
    times the epochs, and the output says what that gives. Writes saving.json, saving.svg and saving.png; the same call
    continues, and other methods, budgets and more seeds can be added to its folder. `dataprune report` shows it.
    """
    require_drawing()
    sweep_engine = choose_engine(engine, address, jobs)
    from ..lab.report import plots, saving_part, tables
    from ..lab.sweeps.saving import Saving, until_settled
    from ..lab.training.build import load_data

    sweep = Saving(
        settings,
        methods=["short", "rs2", settings.method] if names is None else split_names(names),
        budgets=None if budgets is None else split_numbers("--budgets", budgets),
        seeds=seeds,
        most=max(seeds, 3 * seeds if max_seeds is None else max_seeds),
        margin=margin,
        longer=longer,
        score_epochs=score_epochs,
        score_model=score_model,
    )
    out = out or default_out("saving", settings.data, sweep.key)
    data = load_data(settings)
    epochs = sweep.epochs(len(data.train))
    result = run_sweep(
        until_settled, sweep, out, data=data, epochs=epochs, engine=sweep_engine, quiet=json_, cache=cache
    )
    if result is None:
        return
    files = plots.write(saving_part.figure(result), out / "saving")
    if json_:
        print_json(result)
        return
    console().print(tables.saving(result))
    remarks = saving_part.remarks(result)
    print_lines(saving_part.sentence(result), *remarks, f"results: {out / 'saving.json'}, figure: {files[0]}")
