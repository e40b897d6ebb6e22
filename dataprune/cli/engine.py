"""Choice of the engine that carries out the runs of a sweep."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError, suggest
from .output import require_ray


def choose_engine(name: str, address: str | None, jobs: int | None) -> Any:
    """The engine that --engine, --address and --jobs name.

    Raises:
        UsageError: for an unknown engine, an address without Ray, or Ray where it is not installed.
    """
    require_engine(name)
    if name == "ray":
        require_ray()
        from ..lab.sweeps.engine_ray import on_ray

        return on_ray(address, jobs)
    if address is not None:
        raise UsageError("--address names a Ray cluster: add --engine ray")
    from ..lab.sweeps import engines

    return engines.local if jobs in (None, 1) else engines.processes(jobs)


def require_engine(name: str) -> None:
    """Raise UsageError unless an engine has this name."""
    if name not in ("local", "ray"):
        raise UsageError(suggest(name, ["local", "ray"], what="engine"))
