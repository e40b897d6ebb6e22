"""The command line. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
except ImportError as error:  # the core installs without the command line's packages
    raise SystemExit(f"the command line needs {error.name}: pip install 'dataprune[cli]'") from None

from .errors import UsageError, suggest
from .shell import Debug, Group, first_rank, reported, takes_settings
from .training.settings import CONTRASTIVE, Settings

MAIN_METHODS = "full,short,rs2,random,loss,infobatch,emp,memory"
_OF_CONTRASTIVE = ("views", "temperature", "dim", "score_on", "gather")
_OF_TASKS = ("task", "max_length", *_OF_CONTRASTIVE)
_OF_CLASSES = ("selection", "label_noise", "label_smoothing", "shift", "shift_mode", "flip", "recalibrate_bn")
_WIDTH = 160  # of tables where the output is no terminal

app = typer.Typer(
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train on fewer samples at the same accuracy. `dataprune compare` without options shows what it does.",
)

Out = Annotated[Path | None, typer.Option(help="Folder of the results; a new call with the same goes on there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Methods = Annotated[
    str, typer.Option(help="Comma-separated; `short` is all data for as many steps as the pruned runs.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each method, from --seed on.")]
Anneal = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of full epochs at the end, for all pruned methods.")
]
TuneLr = Annotated[
    str | None,
    typer.Option(help="Comma-separated learning rates: each method takes the best on the validation split."),
]


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
ScoreEpochs = Annotated[
    int | None, typer.Option(min=1, help="Epochs of the run that scores for static methods; --epochs by default.")
]

FinetuneAfter = Annotated[
    int,
    typer.Option(
        help="Of --task contrastive: also train on all labels for so many epochs, from each encoder and from scratch."
    ),
]

Engine = Annotated[
    str,
    typer.Option(
        help="local: the runs one after another, or --jobs side by side; ray: spread over a Ray cluster "
        "(pip install 'dataprune[ray]').",
        rich_help_panel="Machine",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="With --engine ray: of the cluster; by default RAY_ADDRESS, else a Ray of its own on this machine.",
        rich_help_panel="Machine",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Runs side by side, each in a process of its own; 1 by default, with ray as many as there is room for.",
        rich_help_panel="Machine",
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

Candidates = Annotated[
    str,
    typer.Option(
        help="Comma-separated methods that may be advised, beside rs2; infobatch is left out where it cannot reach the "
        "budget."
    ),
]

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


def main() -> None:
    """Entry point: exit codes 0, 1 (failed), 2 (usage)."""
    app()


def _show_version(value: bool) -> None:
    if value:
        from . import __version__

        print(f"dataprune {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command()
@takes_settings(without=("statistics", *_OF_CONTRASTIVE))
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
    from .training.coreset import adapted

    if settings.task == "contrastive":
        raise UsageError("contrastive learning is `dataprune pretrain`; `train --init FOLDER` goes on from it")
    settings, data = adapted(settings, strategy=strategy, small_batches=small_batches)
    out = out or Path("runs") / f"train-{_plain(settings.data)}-{settings.method}-seed{settings.seed}-{settings.key()}"
    _fitted(settings, out, data, json_)


@app.command()
@takes_settings(without=("task", "max_length", "statistics", "init", *_OF_CLASSES), defaults=CONTRASTIVE)
def pretrain(settings: Settings, out: Out = None, json_: AsJson = False) -> None:
    """Learn features without labels, contrastively (SimCLR), on fewer samples.

    `dataprune train --init FOLDER` goes on from them. The record's accuracy is that of a linear classifier of the
    features, knn_accuracy that of their nearest neighbours, both on the test set; with --val-fraction the history has
    the neighbours' accuracy of every epoch.
    """
    out = out or Path("runs") / f"pretrain-{_plain(settings.data)}-{settings.method}-{settings.seed}-{settings.key()}"
    _fitted(settings, out, None, json_)


@app.command()
@takes_settings(without=("method", "selection", "keep", "budget", "steps", "init", "track", *_OF_TASKS))
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
    from .dynamics import STATISTICS
    from .training.setup import recordable

    names = settings.statistics
    if not names:
        names = ",".join(recordable(settings))
        short = [name for name in STATISTICS if name not in recordable(settings)]
        _note(f"{', '.join(short)} need more than {settings.epochs} epochs and are left out" if short else None)
    settings = replace(settings, method="full", statistics=names)
    out = out or Path("runs") / f"score-{_plain(settings.data)}-seed{settings.seed}-{settings.key()}"
    _fitted(settings, out, None, json_)


@app.command()
def select(
    scores: Annotated[
        Path,
        typer.Option(
            help="Folder of `dataprune score`; or a table of scores (.parquet, .csv); or features (.safetensors)."
        ),
    ],
    method: Annotated[str, typer.Option(help="Static method; `dataprune methods` lists them.")],
    keep: Annotated[float, typer.Option(help="Fraction kept, in (0, 1].")],
    statistic: Annotated[str | None, typer.Option(help="The score that top, bottom or stratified reads.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="none, mean-one (scaled to mean 1: where the method has weights the default) or raw."),
    ] = None,
    balance: Annotated[str | None, typer.Option(help="none, or class: as many of every class.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is random.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option(help="A parameter of the selector, as name=value (cutoff=0.3); repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; in the folder of the scores by default.")] = None,
    json_: AsJson = False,
    debug: Debug = False,
) -> None:
    """Choose a coreset from scores, or from what the scored model makes of the data.

    `dataprune train --selection FILE` trains on it.
    """
    with reported(debug):
        from .selection import Selection
        from .training import coreset

        options = _options_of(method, option or [], statistic=statistic, weights=weights, balance=balance)
        selection, metadata = coreset.select(method, scores, keep=keep, seed=seed, options=options)
        folder = scores if scores.is_dir() else scores.parent
        named = "".join(f"-{_plain_text(f'{name}{value}')}" for name, value in sorted(options.items()))
        out = out or folder / f"{method}-keep{keep:g}-seed{seed}{named}.safetensors"
        coreset.write(out, selection, metadata)
        stored = Selection.metadata(out)
        if json_:
            print(json.dumps({"path": str(out), "samples": len(selection.index), **stored}))
            return
        total = metadata["size"]
        print(f"{method}: {len(selection.index):,} of {total:,} samples in {metadata['seconds']:.1f} s")
        if not bool((selection.weight == 1).all()):
            print(f"weights: {float(selection.weight.min()):.3g} to {float(selection.weight.max()):.3g}")
        kept = [(count / size, name, count, size) for name, count, size in stored.get("retention", [])]
        if kept:
            low, high = min(kept), max(kept)
            ends = [f"{share:.1%} (class {name}: {count} of {size})" for share, name, count, size in (low, high)]
            print(f"kept per class: {ends[0]} to {ends[1]}")
        print(f"coreset: {out}")


@app.command()
@takes_settings(without=("method", "selection", "steps", "statistics", "init", "track"))
def compare(
    settings: Settings,
    methods: Methods = MAIN_METHODS,
    seeds: Seeds = 3,
    anneal: Anneal = 0.0,
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

    All pruned methods run one schedule: the first epoch full, then --keep. Every run but `full` trains the same number
    of optimizer steps. Static methods (`dataprune methods`) are scored in one run on all the data per seed; its cost
    stands beside theirs. Writes compare.json, the figure accuracy.svg and accuracy.png, the report (report.html,
    report.md and figures/), and a folder for each run. The seconds are those of training and selection, of
    --recalibrate-bn too, without evaluation.

    Side by side (--jobs, --engine ray) the records are the same but for the seconds, and a run that fails does not stop
    the others. A Ray cluster gets the data from here and sends the records back; where --out is on a file system that
    its machines share, runs that were interrupted go on from their last checkpoints.
    """
    _require_drawing()
    where = _engine(engine, address, jobs)
    from .report import tables
    from .report.figures import accuracy_against_samples
    from .training.compare import Comparison
    from .training.compare import compare as carry_out
    from .training.setup import load_data

    comparison = Comparison(
        settings,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        seeds=range(settings.seed, settings.seed + seeds),
        anneal=anneal,
        learning_rates=_numbers("--tune-lr", tune_lr),
        score_epochs=score_epochs,
        finetune_epochs=finetune_epochs,
    )
    comparison.validate()
    out = out or Path("runs") / f"compare-{_plain(settings.data)}-{_comparison_key(comparison)}"
    data = load_data(settings)
    if first_rank():
        _note(data.note)
    with _bar(comparison.epochs(len(data.train)), "epochs") as bar:

        def report(method: str, seed: int, line: dict[str, Any]) -> None:
            bar.update(1)
            bar.set_postfix(method=method, seed=seed)

        result = carry_out(comparison, out, data=data, report=report, engine=where)
    if not first_rank():
        return
    figures = accuracy_against_samples(result, out / "accuracy")
    page = _reported(out, data)
    if json_:
        print(json.dumps(result))
        return
    console = _console()
    console.print(tables.comparison(result))
    written = [f"results: {out / 'compare.json'}", f"figure: {figures[0]}", *([f"report: {page}"] if page else [])]
    console.print(", ".join(written), soft_wrap=True, highlight=False)


@app.command()
@takes_settings(
    without=("method", "selection", "keep", "steps", "statistics", "val_fraction", "track", *_OF_TASKS[1:]),
    defaults={"budget": 0.3},
)
def advise(
    settings: Settings,
    candidates: Candidates = "infobatch,loss,emp,memory",
    seeds: Annotated[int, typer.Option(help="Pilots of each method, from --seed on; at least 2.")] = 3,
    pilot_size: Annotated[int, typer.Option(help="Samples that a pilot trains on, at most.")] = 4000,
    pilot_epochs: Annotated[
        int | None, typer.Option(help="Epochs of a pilot; by default those planned, at most 20 or 2 / budget.")
    ] = None,
    same_steps: Annotated[
        bool,
        typer.Option(
            "--same-steps", help="Smaller batches in the pilots, so that they take as many steps as the planned run."
        ),
    ] = False,
    jobs: Jobs = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:
    """Say whether pruning pays for a run that is planned, and which method does, by short pilots.

    The options are those of the planned run; --budget is the fraction of a full run's samples that it may train.
    Pilots of all candidates train on a part of its training set with the same budget, and are judged by another part:
    the test set is not read. A method is advised where it is better than `short` (all data for as many steps) and than
    `rs2` with a probability of 0.95 each; where none is, all data for fewer steps is as good. Writes advice.json and a
    folder of `compare` for each seed; the same call goes on where it stopped. docs/advise.md says what it cannot know.
    """
    from .report import tables
    from .training.advice import Pilot
    from .training.advice import advise as carry_out
    from .training.setup import load_data

    where = _engine("local", None, jobs)
    pilot = Pilot(
        settings,
        candidates=[name.strip() for name in candidates.split(",") if name.strip()],
        seeds=range(settings.seed, settings.seed + seeds),
        size=pilot_size,
        epochs=pilot_epochs,
        same_steps=same_steps,
    )
    pilot.validate()
    chosen = (pilot.candidates, seeds, pilot_size, pilot_epochs, same_steps)
    key = hashlib.sha256(repr(chosen).encode()).hexdigest()[:4]
    out = out or Path("runs") / f"advise-{_plain(settings.data)}-{settings.key()[:8]}{key}"
    data = load_data(settings)
    if first_rank():
        _note(data.note)
    with _bar(len(pilot.methods(len(data.train))) * seeds * pilot.pilot_epochs(), "epochs") as bar:

        def report(method: str, seed: int, line: dict[str, Any]) -> None:
            bar.update(1)
            bar.set_postfix(method=method, seed=seed)

        result = carry_out(pilot, out, data=data, report=report, engine=where)
    if not first_rank():
        return
    if json_:
        print(json.dumps(result))
        return
    console = _console()
    console.print(tables.advice(result))
    advice = result["advice"]
    lines = (tables.pilots(result), "", advice["sentence"], advice["command"], f"results: {out / 'advice.json'}")
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


@app.command()
@takes_settings(
    without=("method", "selection", "keep", "budget", "steps", "statistics", "epochs", "init", "track", *_OF_TASKS)
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
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("the figures need matplotlib: pip install 'dataprune[cli]'")
    from .report import figures, tables
    from .training.joint import joint as carry_out
    from .training.joint import load
    from .training.joint_grid import Grid
    from .training.setup import load_data

    grid = Grid(
        replace(settings, epochs=epochs),
        ratios=_numbers("--ratios", ratios),
        amounts=_numbers("--amounts", amounts),
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
    out = out or Path("runs") / f"joint-{_plain(settings.data)}-{grid.key()}"
    if table:
        result = load(out)
    else:
        data = load_data(settings)
        if first_rank():
            _note(data.note)
        with _bar(grid.epochs(), "epochs") as bar:

            def report(name: str, line: dict[str, Any]) -> None:
                bar.update(1)
                bar.set_postfix(run=name)

            result = carry_out(grid, out, data=data, report=report, save_models=save_models)
    if not first_rank():
        return
    shown = tables.joint(result)  # refuses a grid that is not finished
    drawn = [
        figures.joint_fine_tuning(result, out / "fine_tuning")[0],
        figures.joint_stages(result, out / "before_and_after")[0],
        figures.joint_flops(result, out / "flops")[0],
        figures.joint_sparsity(result, out / "sparsity")[0],
    ]
    if json_:
        print(json.dumps(result))
        return
    _console().print(shown)
    where = ", ".join(str(path) for path in drawn)
    print(f"results: {out / 'joint.json'}, figures: {where}")


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A table or figure, or a YAML file of your own; without it they are listed.")
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="smoke: seconds, shows that it runs; cpu: where two cores show an effect; paper: its setting."
        ),
    ] = "cpu",
    model: Annotated[str | None, typer.Option(help="Folder or hub name of the encoder, for language tasks.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="In place of the file's.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; by default one for each CPU core, one on a GPU.")
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Folder of the runs; runs of equal settings serve all tables and figures.")
    ] = Path("runs/reproduce/cache"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; runs/reproduce/NAME-SCALE by default.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Carry out a table or a figure of a paper: result.json, table.md, and a figure, ours beside the paper's.

    Interrupted, it goes on where it was when the command is given again.
    """
    with reported(debug):
        from . import reproduction

        if name is None:
            for known in reproduction.available():
                print(f"{known:26} {reproduction.source(known)}")
            return
        out = out or Path("runs") / "reproduce" / f"{Path(name).stem}-{scale}"
        with _bar(0, "epochs") as bar:

            def report(run: str, *rest: Any) -> None:
                bar.update(1)
                bar.set_postfix(run=run)

            files = reproduction.reproduce(
                name, scale, out, cache, overrides={"model": model, "seeds": seeds}, jobs=jobs, report=report
            )
        if first_rank():
            table = out / "table.md"
            if table.exists():
                print(table.read_text(encoding="utf-8"))
            print("results: " + ", ".join(str(file) for file in files))


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Folders of `dataprune compare` and `dataprune train`.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; by default the folder itself, of several the folder report/.")
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(
            help="What a processor draws, for the estimate of energy; by default 65 for a CPU, 400 for a GPU."
        ),
    ] = None,
    json_: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write what runs came to as one HTML page that loads nothing.

    Accuracy against full, short and rs2 with the spread over seeds, what was saved, how often samples were selected, by
    which scores, of which classes, what they look like, and whether the records agree. Writes report.html, report.md
    and figures/*.png. Runs that differ in nothing but method, seed and what is kept are compared with each other.
    """
    with reported(debug):
        _require_drawing()
        from .report import page

        out = out or (folders[0] if len(folders) == 1 else Path("report"))
        files = page.write(folders, out, watts=watts)
        if json_:
            print(json.dumps({"page": str(files[0]), "markdown": str(files[1])}))
        else:
            print(f"report: {files[0]}, as Markdown: {files[1]}")


@app.command("methods")
def list_methods(json_: AsJson = False, debug: Debug = False) -> None:
    """List the pruning methods, what they keep, and where they come from.

    Dynamic ones select anew in every epoch (`train`, `compare`); static ones once, from a scoring run (`select`,
    `compare`).
    """
    with reported(debug):
        from . import coresets
        from .methods import METHODS
        from .report import tables

        rows = []
        own: dict[str, Any]
        for name, recipe in METHODS.items():
            rule, source = (inspect.getdoc(recipe) or "").split("Source:", 1)
            given = recipe.__kwdefaults__ or {}
            own = {key: value for key, value in given.items() if key not in ("keep", "budget", "seed", "balance")}
            keeps = " ".join(rule.split("\n\n", 1)[0].split())
            source = " ".join(source.split())
            rows.append({"method": name, "kind": "dynamic", "keeps": keeps, "source": source, "defaults": own})
        for name, method in coresets.METHODS.items():
            own = {} if method.statistic in (None, name) else {"statistic": method.statistic}
            row = {"method": name, "kind": "static", "keeps": method.keeps, "source": method.source, "defaults": own}
            rows.append(row)
        if json_:
            print(json.dumps(rows))
        else:
            _console().print(tables.methods(rows))


def _fitted(settings: Settings, out: Path, data: Any, json_: bool) -> None:
    """Carry a run out, with a bar, and print its record."""
    from .integrations.trackers import Followed
    from .training.fit import fit

    done = (out / "metrics.json").exists()
    names = settings.track if first_rank() else ""
    with _bar(settings.epochs, "epochs") as bar, Followed(names, out, settings.as_dict()) as followed:

        def report(line: dict[str, Any]) -> None:
            followed.catch_up()
            bar.update(line["epoch"] + 1 - bar.n)
            bar.set_postfix(loss=f"{line['loss']:.3f}" if line["loss"] is not None else "-", samples=line["samples"])

        metrics = fit(settings, out, data=data, report=report)
        followed.catch_up()  # of a run that was finished before
    if not first_rank():
        return
    _note(metrics.get("note"))
    _note(f"this run was finished before, its record is read from {out}" if done else None)
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
        _require_ray()
        from .training.ray_pass import on_ray

        spread = on_ray(address, jobs)
    elif address is not None or jobs is not None:
        raise UsageError("--address and --jobs are for --engine ray")
    from .training.one_pass import score as carry_out

    out = out or Path("runs") / f"score-{_plain(settings.data)}-by-{_plain(str(run))}"
    record = carry_out(settings, run, out, spread=spread)
    if json_:
        print(json.dumps(record))
        return
    print(f"{record['samples']:,} samples in {record['seconds']:.1f} s")
    print(f"scores: {record['scores']} ({','.join(record['statistics'])})")


def _options_of(method: str, texts: list[str], **given: Any) -> dict[str, Any]:
    """Options of a selector: name=value, METHOD.name=value, and those with a flag of their own."""
    settings = Settings(option=tuple(texts))
    settings.validate()
    options = settings.options()
    for owner in options:
        if owner not in ("", method):
            raise UsageError(f"--option {owner}.{next(iter(options[owner]))} is not for {method}, which is selected by")
    flags = {name: value for name, value in given.items() if value is not None}
    return options.get("", {}) | options.get(method, {}) | flags


def _engine(name: str, address: str | None, jobs: int | None) -> Any:
    """Where a comparison's runs are carried out."""
    if name not in ("local", "ray"):
        raise UsageError(suggest(name, ["local", "ray"], what="engine"))
    if name == "ray":
        _require_ray()
        from .training.ray_engine import on_ray

        return on_ray(address, jobs)
    if address is not None:
        raise UsageError("--address is that of a Ray cluster: add --engine ray")
    from .training import engines

    return engines.local if jobs in (None, 1) else engines.processes(jobs)


def _require_drawing() -> None:
    for name in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"figures and report need {name}: pip install 'dataprune[cli]'")


def _reported(out: Path, data: Any) -> Path | None:
    """The report of a comparison that is written already: whatever goes wrong here must not lose it."""
    from .report import page

    try:
        return page.write([out], out, data=data)[0]
    except Exception as error:
        _note(f"the report could not be written ({error}); once that is mended: dataprune report {out}")
        return None


def _require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--engine ray needs Ray: pip install 'dataprune[ray]'")


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{option} takes comma-separated numbers, got {text!r}") from None


def _comparison_key(comparison: Any) -> str:
    parts = (
        comparison.settings.key(),
        *comparison.methods,
        len(comparison.seeds),
        comparison.anneal,
        *comparison.learning_rates,
        *([] if comparison.score_epochs is None else ["scoring", comparison.score_epochs]),
        *(["fine-tuning", comparison.finetune_epochs] if comparison.finetune_epochs else []),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def _plain(name: str) -> str:
    return _plain_text(Path(name).resolve().name)


def _plain_text(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def _note(text: str | None) -> None:
    if text:
        print(f"note: {text}", file=sys.stderr)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _bar(total: int, unit: str) -> Any:
    from tqdm import tqdm

    # None: where stderr is a terminal
    return tqdm(total=total, unit=f" {unit}", disable=None if first_rank() else True, leave=False)
