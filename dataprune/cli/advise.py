"""dataprune advise."""

from __future__ import annotations

from typing import Annotated

from ..lab.training.settings import Settings
from .options import OF_STEPS, OF_TASKS, AsJson, Jobs, Out, choose_engine, option, split_names
from .output import console, default_out, print_json, print_lines
from .runs import run_sweep
from .settings_options import takes_settings


@takes_settings(
    without=("method", "selection", "keep", *OF_STEPS, "statistics", "val_fraction", "anneal", "track", *OF_TASKS[1:]),
    defaults={"budget": 0.3},
)
def advise(
    settings: Settings,
    candidates: Annotated[
        str,
        option("Comma-separated methods to try beside rs2; infobatch is left out where it cannot reach the budget."),
    ] = "infobatch,loss,emp,memory,learnability",
    seeds: Annotated[int, option("Pilots per method, at least 2; they use the seeds from --seed on.")] = 3,
    pilot_size: Annotated[int, option("Largest training set of a pilot, in samples.")] = 4000,
    pilot_epochs: Annotated[
        int | None, option("Epochs of a pilot; by default those planned, but at most 20 or 2 / budget.")
    ] = None,
    same_steps: Annotated[
        bool, option("Shrink the batches of pilots, so that they take as many steps as the planned run.")
    ] = True,
    margin: Annotated[
        float,
        option("Points of accuracy that a method may lose and be level with full; 0: do not estimate what is saved."),
    ] = 0.3,
    jobs: Jobs = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Advise whether pruning pays for a planned run, and by which method, from short pilots.

    The options describe the planned run; --budget is the fraction of a full run's samples that it may train. Pilots of
    all candidates train on a part of its training set with that budget and are evaluated on another part; the test set
    is not read. Advised is the method with the highest mean, or all data for as many steps (`short`) where no method
    is above it, with the probability of being better than `short` and than random subsets (`rs2`). For it and for
    `short` further pilots, of `full` and of larger budgets, estimate how much of full training is saved at equal
    accuracy (surely less than --margin below); where so few seeds could not tell, none is run, and it says so. The
    pilots cost several times the planned run unless that is large: see the printed cost. Writes advice.json and a
    folder of `compare` per seed and budget; the same call continues, and more --seeds add to it.
    """
    from ..lab.report import tables
    from ..lab.sweeps.advise import Pilot
    from ..lab.sweeps.advise import advise as carry_out
    from ..lab.training.build import load_data

    engine = choose_engine("local", None, jobs)
    pilot = Pilot(
        settings,
        candidates=split_names(candidates),
        seeds=range(settings.seed, settings.seed + seeds),
        size=pilot_size,
        epochs=pilot_epochs,
        same_steps=same_steps,
        margin=margin,
    )
    out = out or default_out("advise", settings.data, pilot.key)
    data = load_data(settings)
    epochs = len(pilot.methods(len(data.train))) * seeds * pilot.pilot_epochs()
    result = run_sweep(carry_out, pilot, out, data=data, epochs=epochs, engine=engine, quiet=json_)
    if result is None:
        return
    if json_:
        print_json(result)
        return
    console().print(tables.advice(result))
    advice = result["advice"]
    saved = [advice["saving"]["sentence"]] if "saving" in advice else []
    sentences = (tables.pilots(result), "", advice["sentence"], *saved, advice["command"])
    print_lines(*sentences, f"results: {out / 'advice.json'}")
