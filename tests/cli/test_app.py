"""The application: help, version, imports."""

from __future__ import annotations

import inspect

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


def test_every_option_explains_itself() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            assert parameter.annotation.__metadata__[0].help, parameter.name
