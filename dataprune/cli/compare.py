"""dataprune compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..lab.training.settings import Settings
from .options import (
    OF_STEPS,
    Address,
    AsJson,
    Engine,
    Jobs,
    Out,
    Seeds,
    choose_engine,
    option,
    split_names,
    split_numbers,
)
from .output import console, default_out, note, print_json, print_lines, require_drawing
from .runs import run_sweep
from .settings_options import takes_settings

METHODS = "full,short,rs2,random,loss,infobatch,emp,memory,learnability"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist

# Job of a call without --data. Sizes and budget were chosen by `full` and `short` alone: of the settings tried, those
# with the largest difference against its standard error over seeds. The results are in experiments/results/demo_*.json.
MAIN_JOB: dict[str, dict[str, Any]] = {
    "digits": {"test_size": 1000, "epochs": 20, "keep": 0.05, "seeds": 10},
    "fashion-mnist": {"train_size": 3000, "epochs": 10, "keep": 0.1, "batch_size": 64, "seeds": 3},
}


@takes_settings(without=("method", "selection", *OF_STEPS, "statistics", "init", "track"))
def compare(
    ctx: typer.Context,
    settings: Settings,
    methods: Annotated[
        str,
        option(
            "Comma-separated methods; `short` trains on all data for as many steps as the pruned runs, online:NAME "
            "chooses inside every batch (NAME: uniform, loss, memory, divbs, window)."
        ),
    ] = METHODS,
    seeds: Seeds = 3,
    tune_lr: Annotated[
        str | None,
        option("Comma-separated learning rates; each method uses the one with the best validation accuracy."),
    ] = None,
    score_epochs: Annotated[
        int | None, option("Epochs of the scoring run of static methods; --epochs by default.", min=1)
    ] = None,
    score_model: Annotated[
        str | None, option("Model of the scoring run of static methods; --model by default.")
    ] = None,
    equal: Annotated[
        str,
        option(
            "What all runs but `full` have in common: `steps`, optimizer steps; or `flops`, the compute of these steps "
            "with scoring included, so that a method that scores takes fewer."
        ),
    ] = "steps",
    finetune_epochs: Annotated[
        int,
        option(
            "With --task contrastive: also fine-tune each encoder, and one from scratch, on all labels for this "
            "many epochs."
        ),
    ] = 0,
    engine: Engine = "local",
    address: Address = None,
    jobs: Jobs = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Compare methods at equal compute, over several seeds.

    Without --data and --task it runs the main job: a comparison of about a minute, on Fashion-MNIST where Debian's
    package dataset-fashion-mnist is installed, else on scikit-learn's digits.

    All pruned runs share one schedule (--warmup, --keep, --anneal). Every run except `full` takes the same number
    of optimizer steps, or with --equal flops the same compute. One scoring run per seed, on all the data, serves all
    static methods (`dataprune methods`); its cost is listed with theirs. FLOPs are shares of those of `full`, scoring
    included: a sample that is only forwarded counts as a third of a trained one, and evaluation is not counted. Seconds
    cover training, selection and --recalibrate-bn, not evaluation. Writes compare.json, accuracy.svg, accuracy.png, the
    report (report.html, report.md and figures/) and a folder per run.

    With --jobs or --engine ray the records differ only in seconds, and a failed run does not stop the others. A Ray
    cluster receives the data and returns the records; interrupted runs continue from their checkpoints if the machines
    share the file system of --out.
    """
    settings, seeds = _main_job(ctx, settings, seeds)
    require_drawing()
    sweep_engine = choose_engine(engine, address, jobs)
    from ..lab.report import plots, tables
    from ..lab.sweeps.compare import Comparison
    from ..lab.sweeps.sweep import carry_out
    from ..lab.training.build import load_data

    comparison = Comparison(
        settings,
        methods=split_names(methods),
        seeds=range(settings.seed, settings.seed + seeds),
        learning_rates=split_numbers("--tune-lr", tune_lr),
        score_epochs=score_epochs,
        score_model=score_model,
        equal=equal,
        finetune_epochs=finetune_epochs,
    )
    out = out or default_out("compare", settings.data, comparison.key)
    data = load_data(settings)
    epochs = comparison.epochs(len(data.train))
    result = run_sweep(carry_out, comparison, out, data=data, epochs=epochs, engine=sweep_engine, quiet=json_)
    if result is None:
        return
    figures = plots.write(plots.accuracy(result), out / "accuracy")
    page = _write_report(out, data)
    if json_:
        print_json(result)
        return
    console().print(tables.comparison(result))
    written = [f"results: {out / 'compare.json'}", f"figure: {figures[0]}", *([f"report: {page}"] if page else [])]
    schedule = comparison.schedule(len(data.train))
    print_lines(f"schedule of all pruned runs: {schedule}", *_winner(result, out), ", ".join(written))


def _main_job(ctx: typer.Context, settings: Settings, seeds: int) -> tuple[Settings, int]:
    """Fill in the main job where the call names neither data nor task; options of the call override it."""

    def is_default(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source.name == "DEFAULT"

    if not all(map(is_default, ("data", "data_folder", "task"))):
        return settings, seeds
    name = "fashion-mnist" if FASHION_MNIST.is_dir() else "digits"
    job = {option: value for option, value in MAIN_JOB[name].items() if is_default(option)}
    if settings.budget is not None:
        job.pop("keep", None)
    seeds = job.pop("seeds", seeds)
    return replace(settings, data=name, **job), seeds


def _winner(result: dict[str, Any], out: Path) -> list[str]:
    """The method with the highest mean accuracy at equal steps or FLOPs, and the command that trains with it."""
    from ..files import read_json

    rows = [row for row in result["summary"] if row["method"] != "full"]
    if not rows:
        return []
    best = max(rows, key=lambda row: row["accuracy_mean"])["method"]
    seed = next(row["seed"] for row in result["runs"] if row["method"] == best)
    settings = Settings.of(read_json(out / "runs" / f"{best}-seed{seed}" / "config.json"))
    what = "all data for as many steps" if best == "short" else best
    equal = "FLOPs" if result.get("equal") == "flops" else "steps"
    return [f"highest mean accuracy at equal {equal}: {what}. To train with it: {settings.train_command()}"]


def _write_report(out: Path, data: Any) -> Path | None:
    """Write the report; an error becomes a note, since the comparison itself is finished."""
    from ..lab.report import page

    try:
        return page.write([out], out, data=data)[0]
    except Exception as error:
        note(f"the report could not be written ({error}); to write it later: dataprune report {out}")
        return None
