"""The application: help, version, imports."""

from __future__ import annotations

import inspect

import typer
from command_line import call, run

import dataprune
from dataprune.cli import app


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['dataprune', {}]\n"
        "from dataprune.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('heavy:', [name for name in ('torch', 'numpy', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    for arguments in ("'--help'", "'compare', '--help'"):
        done = run("-c", code.format(arguments))
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_no_arguments_show_the_help_and_version_the_version() -> None:
    result = call()
    assert result.exit_code == 0 and "compare" in result.stdout
    assert call("--version").stdout == f"dataprune {dataprune.__version__}\n"


def test_every_option_has_a_help_text() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            if parameter.annotation is not typer.Context:
                assert parameter.annotation.__metadata__[0].help, parameter.name


def test_help_has_a_short_name_and_shows_brackets() -> None:
    for command in ([], ["compare"], ["select"]):
        assert call(*command, "-h").stdout == call(*command, "--help").stdout != ""
    for command in app.registered_commands:  # markup of rich is escaped: no text is swallowed
        assert command.callback is not None and command.help is not None
        text = " ".join(call(command.name, "--help").stdout.split())
        assert " ".join((inspect.getdoc(command.callback) or "").split())[:60] in text


def test_long_help_is_wrapped_once() -> None:
    for command in app.registered_commands:
        for paragraph in (command.help or "").split("\n\n"):
            assert "\n" not in paragraph
