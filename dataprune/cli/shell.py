"""Options generated from `Settings`, options read from a YAML file, and errors in one line."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.markup import escape
from typer.core import TyperGroup

from ..errors import UsageError, suggest
from ..lab.training.settings import Settings, defaults_of

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_NOT_IN_FILES = ("config", "debug", "help", "json_")  # parameters that a YAML file cannot set
_LISTS = (
    "methods",
    "statistics",
    "tune-lr",
    "ratios",
    "amounts",
    "data-method",
    "candidates",
)  # comma-separated options
INTERRUPTED = 130  # exit code of a process that Ctrl-C ended: 128 + SIGINT


class Group(TyperGroup):
    """Command group that reports usage errors in one line on stderr, as all other errors."""

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Run a command and exit with its code."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **more)
        try:
            code = super().main(*args, standalone_mode=False, **more)
        except Exception as error:
            if not hasattr(error, "format_message"):  # not a usage error
                raise
            where = getattr(getattr(error, "ctx", None), "command_path", None)
            _print_error(error.format_message() + (f" (see {where} --help)" if where else ""))  # type: ignore[attr-defined]
            code = getattr(error, "exit_code", 2)
        sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def reported(debug: bool) -> Iterator[None]:
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
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            if first_rank():
                print("interrupted: run the same command again to continue from the last checkpoint", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if debug:
                raise
            usage = isinstance(error, UsageError)
            _print_error(_text(error), all_ranks=not usage)
            raise typer.Exit(2 if usage else 1) from None


def takes_settings(
    without: tuple[str, ...], defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for every field of Settings to a command, which receives them as its argument `settings`.

    Args:
        without: fields that get no option.
        defaults: the command's own defaults, also for fields without an option.
    """
    fixed = {name: value for name, value in (defaults or {}).items() if name in without}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(Settings)
        shared = []
        for entry in dataclasses.fields(Settings):
            if entry.name in without or not entry.metadata["panel"]:
                continue
            annotation: Any = list[str] if entry.name == "option" else hints[entry.name]
            default: Any = [] if entry.name == "option" else (defaults or {}).get(entry.name, entry.default)
            option = typer.Option(
                help=escape(entry.metadata["help"]),
                rich_help_panel=entry.metadata["panel"],
                callback={"option": _joined, "task": _choose_task}.get(entry.name),
                is_eager=entry.name == "task",
            )
            shared.append(_keyword(entry.name, Annotated[annotation, option], default))
        own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "settings"]
        file = typer.Option(
            help="Read options by name from this YAML file; the command line overrides them.",
            is_eager=True,
            callback=_read_config,
        )
        call = [_keyword("config", Annotated[Path | None, file], None), _keyword("debug", Debug, False)]

        def wrapped(**values: Any) -> None:
            values.pop("config")
            with reported(values.pop("debug")):
                chosen = {p.name: values.pop(p.name) for p in shared}
                chosen["option"] = tuple(chosen["option"] or ())
                command(settings=Settings(**{**fixed, **chosen}), **values)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *call, *shared)]
        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate


def first_rank() -> bool:
    """Whether this process prints for all processes of torchrun; does not need torch."""
    return os.environ.get("RANK", "0") == "0"


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Use the values of a YAML file as defaults of the command's options."""
    if path is None:
        return None
    try:
        import yaml
    except ImportError:
        raise typer.BadParameter(
            "reading a YAML file needs PyYAML: pip install -c constraints.txt -e '.[cli]'"
        ) from None
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {path}: {_text(error)}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path} must have lines of the form option: value")
    command = ctx.command
    known = _options(command)
    defaults = {}
    for name, value in values.items():
        key = str(name).strip().lstrip("-").replace("_", "-")
        if key not in known:
            raise typer.BadParameter(f"{path}: {_unknown(ctx, key, known)}")
        defaults[known[key]] = _plain(path, key, value)
    _choose_task(ctx, str(defaults.get("task", "")))
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def _choose_task(ctx: typer.Context, task: str) -> str:
    """Use a task's defaults for the command; a YAML file overrides them."""
    ctx.default_map = {**defaults_of(task), **(ctx.default_map or {})}
    return task


def _joined(ctx: typer.Context, texts: list[str] | None) -> list[str]:
    """Merge `--option` of the YAML file and of the command line, which wins where both set a name."""
    from_file = (ctx.default_map or {}).get("option") or []
    return list({text.split("=", 1)[0].replace("-", "_"): text for text in [*from_file, *(texts or [])]}.values())


def _options(command: Any) -> dict[str, str]:
    """Map the option names that a YAML file may set to parameter names."""
    return {p.opts[0].lstrip("-"): p.name for p in command.params if p.name not in _NOT_IN_FILES}


def _unknown(ctx: typer.Context, key: str, known: Mapping[str, str]) -> str:
    siblings = getattr(getattr(ctx.parent, "command", None), "commands", {})
    owners = [name for name, other in siblings.items() if name != ctx.info_name and key in _options(other)]
    if owners:
        return (
            f"{key!r} is an option of `{owners[0]}`, not of `{ctx.info_name}`: use the file with "
            f"`dataprune {owners[0]}`, or remove the line"
        )
    return suggest(key, sorted(known), what="option")


def _plain(path: Path, key: str, value: Any) -> Any:
    """Convert a value of a YAML file to what the option parses."""
    if key == "option":
        if isinstance(value, dict):
            value = [f"{name}={str(item).lower() if isinstance(item, bool) else item}" for name, item in value.items()]
        return [value] if isinstance(value, str) else value
    if isinstance(value, list) and key in _LISTS:
        return ",".join(map(str, value))
    if isinstance(value, list | dict):
        raise typer.BadParameter(f"{path}: {key} takes a single value, got {value!r}")
    # a lone number is a list of length one, which click must get as text
    return str(value) if key in _LISTS and value is not None else value


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _print_error(text: str, *, all_ranks: bool = False) -> None:
    if all_ranks or first_rank():
        print(f"error: {_line(text)}", file=sys.stderr)


def _line(text: str) -> str:
    return " ".join(text.split())


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = str(error)
    if not text or not isinstance(error, ValueError | RuntimeError | TypeError | OSError | ImportError):
        return f"{type(error).__name__}: {text}".rstrip(": ")  # the text of a KeyError is only the key
    return text
