"""Options generated from `Settings`, with defaults from the task and from a YAML file."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.markup import escape
from typer.core import TyperGroup

from ..errors import UsageError, suggest
from ..lab.training.settings import Settings, defaults_of
from ..lab.training.yaml_file import read_yaml
from .errors import declared, keyword
from .options import option

_NOT_IN_FILES = ("config", "debug", "help", "json_")  # parameters that a YAML file cannot set
_LISTS = (
    "methods",
    "statistics",
    "tune-lr",
    "ratios",
    "amounts",
    "data-method",
    "candidates",
    "track",
    "budgets",
)  # with commas


def takes_settings(
    without: tuple[str, ...], defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add --config and an option for every field of Settings to a command, which receives `settings`.

    Args:
        without: fields that get no option.
        defaults: the command's own defaults, also for fields without an option.
    """
    defaults = defaults or {}
    fixed = {name: value for name, value in defaults.items() if name in without}
    hints = get_type_hints(Settings)
    options = [
        _option(field, hints[field.name], defaults.get(field.name, field.default))
        for field in dataclasses.fields(Settings)
        if field.name not in without and field.metadata["panel"]
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapped(config: Path | None, **values: Any) -> None:
            fields = {option.name: values.pop(option.name) for option in options}
            fields["option"] = tuple(fields["option"] or ())
            command(settings=Settings(**fixed, **fields), **values)

        parameters = dict(inspect.signature(command, eval_str=True).parameters)
        del parameters["settings"]
        return declared(wrapped, [*parameters.values(), keyword("config", _Config, None), *options])

    return decorate


def _option(field: dataclasses.Field, kind: Any, default: Any) -> inspect.Parameter:
    """The parameter of a command for a field of Settings."""
    if field.name == "option":
        kind, default = list[str], []
    info = option(
        escape(field.metadata["help"]),
        rich_help_panel=field.metadata["panel"],
        callback={"option": _merge_options, "task": _choose_task}.get(field.name),
        is_eager=field.name == "task",
    )
    return keyword(field.name, Annotated[kind, info], default)


def _choose_task(ctx: typer.Context, task: str) -> str:
    """Use a task's defaults for the command; a YAML file overrides them."""
    ctx.default_map = {**defaults_of(task), **(ctx.default_map or {})}
    return task


def _merge_options(ctx: typer.Context, texts: list[str] | None) -> list[str]:
    """Merge `--option` of the YAML file and of the command line, which wins where both set a name."""
    from_file = (ctx.default_map or {}).get("option") or []
    return list({text.split("=", 1)[0].replace("-", "_"): text for text in [*from_file, *(texts or [])]}.values())


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Use the values of a YAML file as defaults of the command's options."""
    if path is None:
        return None
    known = _options_in_files(ctx.command)
    defaults = {}
    try:
        values = read_yaml(path)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None
    for name, value in values.items():
        key = str(name).strip().lstrip("-").replace("_", "-")
        if key not in known:
            raise typer.BadParameter(f"{path}: {_unknown(ctx, key, known)}")
        defaults[known[key]] = _parsed(path, key, value)
    _choose_task(ctx, str(defaults.get("task", "")))
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


_Config = Annotated[
    Path | None,
    option(
        "Read options by name from this YAML file; the command line overrides them.",
        is_eager=True,
        callback=_read_config,
    ),
]


def _options_in_files(command: Any) -> dict[str, str]:
    """Map the option names that a YAML file may set to parameter names."""
    return {p.opts[0].lstrip("-"): p.name for p in command.params if p.name not in _NOT_IN_FILES}


def _unknown(ctx: typer.Context, key: str, known: Mapping[str, str]) -> str:
    """The message for an option that the command does not have."""
    group = ctx.find_root().command
    commands = group.commands if isinstance(group, TyperGroup) else {}
    owners = [name for name, other in commands.items() if name != ctx.info_name and key in _options_in_files(other)]
    if owners:
        return (
            f"{key!r} is an option of `{owners[0]}`, not of `{ctx.info_name}`: use the file with "
            f"`dataprune {owners[0]}`, or remove the line"
        )
    return suggest(key, sorted(known), what="option")


def _parsed(path: Path, key: str, value: Any) -> Any:
    """Convert a value of a YAML file to what the option parses."""
    if key == "option":
        if isinstance(value, dict):
            value = [f"{name}={str(item).lower() if isinstance(item, bool) else item}" for name, item in value.items()]
        return [value] if isinstance(value, str) else value
    if isinstance(value, list) and key in _LISTS:
        return ",".join(map(str, value))
    if isinstance(value, list | dict):
        raise typer.BadParameter(f"{path}: {key} takes a single value, got {value!r}")
    # a lone number is a list of length one, which the option must get as text
    return str(value) if key in _LISTS and value is not None else value
