"""The command line. Nothing heavy is imported before a command runs."""

try:
    import rich  # noqa: F401
    import typer  # noqa: F401
except ImportError as error:  # the core installs without the command line's packages
    raise SystemExit(f"the command line needs {error.name}: pip install 'dataprune[cli]'") from None

from .app import app
from .pack import pack

app.command()(pack)


def main() -> None:
    """Entry point: exit codes 0, 1 (failed), 2 (usage)."""
    app()
