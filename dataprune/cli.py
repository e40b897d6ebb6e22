"""The command line. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional, get_type_hints

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:  # the core installs without the command line's packages
    raise SystemExit(f"the command line needs {error.name}: pip install 'dataprune[cli]'") from None

from .errors import UsageError, suggest
from .training.settings import Settings

MAIN_METHODS = "full,short,rs2,random,loss,infobatch,emp,memory"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train on fewer samples at the same accuracy. `dataprune compare` without options shows what it does.",
)

Out = Annotated[Optional[Path], typer.Option(help="Folder of the results; a new call with the same goes on there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Entry point: exit codes 0, 1 (failed), 2 (usage)."""
    app()


def version(value: bool) -> None:
    if value:
        from . import __version__

        print(f"dataprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make a YAML file's values the defaults of the command's options."""
    if path is None:
        return None
    import yaml

    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path} must hold option: value pairs")
    known = {parameter.name for parameter in ctx.command.params}
    defaults = {}
    for name, value in values.items():
        key = str(name).replace("-", "_").lstrip("_")
        if key not in known:
            raise typer.BadParameter(f"{path}: {suggest(str(name), sorted(map(str, known)), what='option')}")
        defaults[key] = (
            ",".join(map(str, value)) if isinstance(value, list) and key in ("methods", "tune_lr") else value
        )
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def takes_settings(without: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every field of Settings but some; it is called with `settings` and its own options."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(Settings)
        shared = []
        for entry in dataclasses.fields(Settings):
            if entry.name in without:
                continue
            text, panel = entry.metadata["help"], entry.metadata["panel"]
            annotation: Any = list[str] if entry.name == "option" else hints[entry.name]
            default = list(entry.default) if entry.name == "option" else entry.default  # type: ignore[call-overload]
            annotation = Annotated[annotation, typer.Option(help=text, rich_help_panel=panel)]
            shared.append(
                inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
        own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "settings"]
        config = inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Optional[Path],
                typer.Option(
                    help="YAML file with options by name; the command line overrides it.",
                    is_eager=True,
                    callback=_read_config,
                ),
            ],
        )

        def wrapped(**values: Any) -> None:
            values.pop("config")
            debug = values.pop("debug")
            with reported(debug):
                chosen = {p.name: values.pop(p.name) for p in shared}
                chosen["option"] = tuple(chosen.get("option") or ())
                command(settings=Settings(**chosen), **values)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
        wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, config, debug, *shared)]
        )
        wrapped.__annotations__ = {p.name: p.annotation for p in (*own, config, debug, *shared)}
        return wrapped

    return decorate


@app.command()
@takes_settings(without=())
def train(settings: Settings, out: Out = None, json_: AsJson = False) -> None:
    """Train one model with one pruning method.

    An interrupted run goes on where it was when the same command is given again. Several processes: start it with
    torchrun -m dataprune train.
    """
    from .training.fit import fit

    out = out or Path("runs") / f"train-{_plain(settings.data)}-{settings.method}-seed{settings.seed}-{settings.key()}"
    settings.validate()
    with _bar(settings.epochs, "epochs") as bar:

        def report(line: dict[str, Any]) -> None:
            bar.update(line["epoch"] + 1 - bar.n)
            bar.set_postfix(loss=f"{line['loss']:.3f}" if line["loss"] is not None else "-", samples=line["samples"])

        metrics = fit(settings, out, report=report)
    if not _first_rank():
        return
    if json_:
        print(json.dumps(metrics))
        return
    print(
        f"{metrics['method']}: accuracy {metrics['accuracy']:.4f}, {metrics['samples']:,} samples in {metrics['steps']:,} "
        f"steps, {metrics['seconds']:.1f} s (selecting {metrics['select_seconds']:.2f} s)\nrun: {out}"
    )


@app.command()
@takes_settings(without=("method", "steps"))
def compare(
    settings: Settings,
    methods: Annotated[str, typer.Option(help="Comma-separated; `short` is all data for as many steps as the pruned runs.")] = MAIN_METHODS,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, from --seed on.")] = 3,
    anneal: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of full epochs at the end, for all pruned methods.")] = 0.0,
    tune_lr: Annotated[Optional[str], typer.Option(help="Comma-separated learning rates: each method takes the best on the validation split.")] = None,
    out: Out = None,
    json_: AsJson = False,
) -> None:  # fmt: skip
    """Compare methods at equal compute, over several seeds.

    All pruned methods run one schedule: the first epoch full, then --keep. Every run but `full` trains the same number of
    optimizer steps. Writes compare.json, the figure accuracy.svg and accuracy.png, and a folder for each run.
    """
    from .report.figures import accuracy_against_samples
    from .training.compare import Comparison
    from .training.compare import compare as carry_out

    try:
        rates = tuple(float(text) for text in tune_lr.split(",")) if tune_lr else ()
    except ValueError:
        raise UsageError(f"--tune-lr takes comma-separated numbers, got {tune_lr!r}") from None
    comparison = Comparison(
        settings,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        seeds=range(settings.seed, settings.seed + seeds),
        anneal=anneal,
        learning_rates=rates,
    )
    comparison.validate()
    out = out or Path("runs") / f"compare-{_plain(settings.data)}-{_comparison_key(comparison)}"
    console = Console()
    total = len(comparison.methods) * len(comparison.seeds) * (1 + len(rates) / len(comparison.seeds))
    with _bar(round(total * settings.epochs), "epochs") as bar:

        def report(method: str, seed: int, line: dict[str, Any]) -> None:
            bar.update(1)
            bar.set_postfix(method=method, seed=seed)

        result = carry_out(comparison, out, report=report)
    figures = accuracy_against_samples(result, out / "accuracy")
    if json_:
        print(json.dumps(result))
        return
    console.print(_table(result))
    console.print(f"results: {out / 'compare.json'}, figure: {figures[0]}", soft_wrap=True, highlight=False)


@app.command("methods")
def list_methods(json_: AsJson = False, debug: Debug = False) -> None:
    """List the pruning methods, what they keep, and where they come from."""
    with reported(debug):
        from .methods import METHODS

        rows = []
        for name, recipe in METHODS.items():
            text = inspect.getdoc(recipe) or ""
            rule, source = text.split("\n\n", 1)[0].replace("\n", " "), text.split("Source:", 1)[1]
            own = {
                k: v for k, v in (recipe.__kwdefaults__ or {}).items() if k not in ("keep", "budget", "seed", "balance")
            }
            rows.append({"method": name, "keeps": rule, "source": " ".join(source.split()), "defaults": own})
        if json_:
            print(json.dumps(rows))
            return
        table = Table(title="Pruning methods", show_lines=True)
        for heading in ("method", "keeps", "defaults", "source"):
            table.add_column(heading)
        for row in rows:
            defaults = ", ".join(f"{key}={value}" for key, value in row["defaults"].items())
            table.add_row(row["method"], row["keeps"], defaults, row["source"])
        Console().print(table)


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code: 2 where the call was wrong, 1 for the rest."""

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
            raise typer.Exit(1) from None
        except Exception as error:
            if debug:
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"error: {text}", file=sys.stderr)
            raise typer.Exit(2 if isinstance(error, UsageError) else 1) from None


def _table(result: dict[str, Any]) -> Table:
    keep, seeds = result["keep"], len({row["seed"] for row in result["runs"]})
    table = Table(
        title=f"{result['data']}, {result['model']}: {result['epochs']} epochs, keep {keep:.3g} (pruned {1 - keep:.0%}), {seeds} seeds"
    )
    table.add_column("method")
    headings = ["accuracy %", "samples", "steps", "seconds", "speed-up", "reached keep"]
    tuned = "val_accuracy_mean" in result["summary"][0]
    if tuned:
        headings.insert(1, "validation %")
    for heading in headings:
        table.add_column(heading, justify="right")
    for line in result["summary"]:
        mine = [row for row in result["runs"] if row["method"] == line["method"]]
        cells = [
            f"{100 * line['accuracy_mean']:.2f} ± {100 * line['accuracy_std']:.2f}",
            f"{line['samples']:,}",
            f"{line['steps']:,}",
            f"{line['seconds']:.2f}",
            "-" if line["speedup"] is None else f"{line['speedup']:.2f}x",
            f"{sum(row['reached_keep'] for row in mine) / len(mine):.3f}",
        ]
        if tuned:
            cells.insert(1, f"{100 * line['val_accuracy_mean']:.2f}")
        table.add_row(line["method"], *cells)
    return table


def _comparison_key(comparison: Any) -> str:
    import hashlib

    parts = (
        comparison.settings.key(),
        *comparison.methods,
        len(comparison.seeds),
        comparison.anneal,
        *comparison.learning_rates,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in Path(name).name)


def _first_rank() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _bar(total: int, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit=f" {unit}", disable=None if _first_rank() else True, leave=False)
