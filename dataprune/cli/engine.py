"""Where the runs of a comparison are carried out."""

from __future__ import annotations

from typing import Any

from ..errors import UsageError, suggest
from .output import require_ray


def choose_engine(name: str, address: str | None, jobs: int | None) -> Any:
    """Where a comparison's runs are carried out."""
    if name not in ("local", "ray"):
        raise UsageError(suggest(name, ["local", "ray"], what="engine"))
    if name == "ray":
        require_ray()
        from ..lab.sweeps.engine_ray import on_ray

        return on_ray(address, jobs)
    if address is not None:
        raise UsageError("--address is that of a Ray cluster: add --engine ray")
    from ..lab.sweeps import engines

    return engines.local if jobs in (None, 1) else engines.processes(jobs)
