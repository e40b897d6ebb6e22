"""The application: its commands, in the order in which --help lists them."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich.markup import escape

from .advise import advise
from .claims import claims
from .compare import compare
from .errors import Group, reports_errors
from .joint import joint
from .methods import list_methods
from .options import option
from .pack import pack
from .pretrain import pretrain
from .report import report
from .reproduce import reproduce
from .saving import saving
from .score import score
from .select import select
from .train import train

app = typer.Typer(
    cls=Group,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train PyTorch models on fewer samples. Start with `dataprune compare`, which needs no options.",
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
        bool, option("Show the version and exit.", "--version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


_COMMANDS = (
    train, pretrain, score, select, compare, saving, advise, joint, list_methods, claims, report, pack, reproduce,
)  # fmt: skip
for command in _COMMANDS:
    # lines of a paragraph are joined, so that the terminal wraps them once, at its own width
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    text = "\n\n".join(escape(" ".join(paragraph.split())) for paragraph in paragraphs)
    app.command(command.__name__.removeprefix("list_"), help=text)(reports_errors(command))
