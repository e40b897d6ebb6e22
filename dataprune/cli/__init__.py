"""The command line. Nothing heavy is imported before a command runs."""

import io
import sys

try:
    import rich  # noqa: F401
    import typer  # noqa: F401
except ImportError as error:  # the core installs without the command line's packages
    raise SystemExit(f"the command line needs {error.name}: pip install -c constraints.txt -e '.[cli]'") from None

from .app import app


def main() -> None:
    """Run the command line: exit codes 0, 1 (failed), 2 (wrong call), 130 (Ctrl-C), 143 (SIGTERM, with --jobs)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no result is lost because a terminal cannot show its letters
    app()
