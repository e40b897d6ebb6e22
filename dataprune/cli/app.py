"""The application: its commands, in the order in which --help lists them."""

from __future__ import annotations

from typing import Annotated

import typer

from .advise import advise
from .compare import compare
from .joint import joint
from .methods import list_methods
from .pretrain import pretrain
from .report import report
from .reproduce import reproduce
from .score import score
from .select import select
from .shell import Group
from .train import train

app = typer.Typer(
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train on fewer samples at the same accuracy. `dataprune compare` without options shows what it does.",
)


def _show_version(value: bool) -> None:
    if value:
        from .. import __version__

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


for command in (train, pretrain, score, select, compare, advise, joint):
    app.command()(command)
app.command("methods")(list_methods)
app.command()(report)
app.command()(reproduce)
