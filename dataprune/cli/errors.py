"""Errors, warnings and interruptions of commands: a line on stderr and an exit code."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import UsageError
from .options import option
from .output import first_rank

INTERRUPTED = 130  # exit code of a process that Ctrl-C ended: 128 + SIGINT
INTERRUPTION = (
    "interrupted: run the same command again to continue from the last checkpoint; a run that has none yet starts over"
)

Debug = Annotated[bool, option("Show the traceback of an error.", "--debug")]


class Group(TyperGroup):
    """Command group that reports usage errors in one line on stderr, as all other errors."""

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Run a command and exit with its code."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **more)
        try:
            code = super().main(*args, standalone_mode=False, **more)
            if sys.stdout is not None:
                sys.stdout.flush()
        except Exception as error:
            if _of_stdout(error):  # from --help or --version
                sys.exit(1)
            if not hasattr(error, "format_message"):  # not a usage error
                raise
            where = getattr(getattr(error, "ctx", None), "command_path", None)
            _print_error(error.format_message() + (f" (see {where} --help)" if where else ""))  # type: ignore[attr-defined]
            code = getattr(error, "exit_code", 2)
        sys.exit(code if isinstance(code, int) else 0)


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Add --debug to a command, and report its errors and warnings in lines."""
    parameters = inspect.signature(command, eval_str=True).parameters.values()

    @functools.wraps(command)
    def wrapped(debug: bool, **values: Any) -> None:
        with _reported(debug):
            command(**values)

    return declared(wrapped, [*parameters, keyword("debug", Debug, False)])


def declared(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Give a function the parameters that typer turns into options."""
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A keyword parameter of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


@contextmanager
def _reported(debug: bool) -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code: 2 for a wrong call, 130 for Ctrl-C, 1 for the rest.

    Warnings become lines, too, each text once.
    """
    shown = set()

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        # the library names an argument where the command line has an option
        text = _line(str(message)).replace("warmup=0", "--warmup 0")
        if first_rank() and text not in shown:
            print(f"warning: {text}", file=sys.stderr)
        shown.add(text)

    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = show
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            if first_rank():
                print(INTERRUPTION, file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if _of_stdout(error):
                raise typer.Exit(1) from None
            if debug:
                raise
            usage = isinstance(error, UsageError)
            _print_error(describe(error), all_ranks=not usage)
            raise typer.Exit(2 if usage else 1) from None


def _of_stdout(error: Exception) -> bool:
    """Whether stdout cannot be written, as on a full disk; then print so, and drop what is left in its buffer."""
    if not isinstance(error, BrokenPipeError):
        # an error of a file names it: in `filename`, or in our own text
        if not isinstance(error, OSError) or error.filename or error.strerror != os.strerror(error.errno or 0):
            return False
        try:
            print(flush=True)
            return False
        except OSError:
            pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter fails to flush it
    what = "was closed" if isinstance(error, BrokenPipeError) else f"failed ({error.strerror})"
    _print_error(f"stdout {what} before all was printed; results are written, and the same call prints them")
    return True


def describe(error: BaseException) -> str:
    """The text of an error, with its type where the text alone says too little."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error)
    if not text or not isinstance(error, ValueError | RuntimeError | TypeError | OSError | ImportError):
        return f"{type(error).__name__}: {text}".rstrip(": ")  # the text of a KeyError is only the key
    return text


def _print_error(text: str, *, all_ranks: bool = False) -> None:
    if all_ranks or first_rank():
        print(f"error: {_line(text)}", file=sys.stderr)


def _line(text: str) -> str:
    return " ".join(text.split())
