"""Train on fewer samples at the same accuracy.

    pruner = dataprune.emp(len(train_set), keep=0.3, epochs=200)
    loader = dataprune.prune_loader(loader, pruner)
    for epoch in range(200):
        for index, (x, y) in loader:
            logits = model(x)
            loss = pruner.loss(index, F.cross_entropy(logits, y, reduction="none"), logits, y)

Names are imported when they are first used, so that the command line's help does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import contrastive, coresets, criteria, dynamics, learning_rate, methods, network, policies, schedules
    from .errors import CheckpointError, DataError, PlanError, UsageError
    from .loading import Indexed, IndexedCollate, PruneSampler, prune_loader
    from .methods import (
        METHODS,
        elfl,
        emp,
        emp_contrastive,
        emp_reverse,
        epsilon_greedy,
        full,
        infobatch,
        loss,
        memory,
        random,
        rs2,
        static_random,
        ucb,
    )
    from .pruner import Pruner
    from .scores import ScoreBook
    from .selection import Selection, fingerprint

__version__ = "0.1.0"

_HOME = {
    "errors": ["CheckpointError", "DataError", "PlanError", "UsageError"],
    "loading": ["Indexed", "IndexedCollate", "PruneSampler", "prune_loader"],
    "methods": [
        "METHODS",
        "elfl",
        "emp",
        "emp_contrastive",
        "emp_reverse",
        "epsilon_greedy",
        "full",
        "infobatch",
        "loss",
        "memory",
        "random",
        "rs2",
        "static_random",
        "ucb",
    ],
    "pruner": ["Pruner"],
    "scores": ["ScoreBook"],
    "selection": ["Selection", "fingerprint"],
}
_MODULES = [
    "contrastive",
    "coresets",
    "criteria",
    "dynamics",
    "methods",
    "network",
    "policies",
    "learning_rate",
    "schedules",
]
_FROM = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "METHODS",
    "CheckpointError",
    "DataError",
    "Indexed",
    "IndexedCollate",
    "PlanError",
    "PruneSampler",
    "Pruner",
    "ScoreBook",
    "Selection",
    "UsageError",
    "contrastive",
    "coresets",
    "criteria",
    "dynamics",
    "elfl",
    "emp",
    "emp_contrastive",
    "emp_reverse",
    "epsilon_greedy",
    "fingerprint",
    "full",
    "infobatch",
    "learning_rate",
    "loss",
    "memory",
    "methods",
    "network",
    "policies",
    "prune_loader",
    "random",
    "rs2",
    "schedules",
    "static_random",
    "ucb",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _FROM:
        return getattr(import_module(f".{_FROM[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
