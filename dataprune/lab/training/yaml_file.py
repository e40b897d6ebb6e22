"""Options from a YAML file. Imports no torch: the command line reads it first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import UsageError, needs
from .settings import require


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a YAML file of lines `key: value`, without aliases, a few of which can stand for gigabytes."""
    with needs("reading a YAML file needs PyYAML", "cli", UsageError):
        import yaml
    try:
        text = path.read_text(encoding="utf-8")
        aliases = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text))
        require(not aliases, f"{path} has an alias (*name): write its value out")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    values = {} if values is None else values
    require(isinstance(values, dict), f"{path} must have lines of the form option: value")
    return values
