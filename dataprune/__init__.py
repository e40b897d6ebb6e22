"""Train PyTorch models on fewer samples.

    pruner = dataprune.prune(len(train_set), keep=0.3, epochs=200)
    loader = dataprune.prune_loader(loader, pruner)
    for epoch in range(200):
        for index, (x, y) in loader:
            logits = model(x)
            loss = pruner.loss(index, F.cross_entropy(logits, y, reduction="none"), logits, y)

Names are imported when they are first used, so that the command line's help does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        contrastive,
        contrib,
        coresets,
        criteria,
        dynamics,
        finetuning,
        layerwise,
        learning_rate,
        methods,
        network,
        online,
        policies,
        prompts,
        schedules,
    )
    from .catalog import Catalog
    from .content import fingerprint
    from .contrib import ies, kakurenbo, metriq, orderdp, rcap, repb, seta
    from .errors import CheckpointError, DataError, PlanError, UsageError
    from .hashing import Key
    from .indexed import Indexed, IndexedCollate
    from .loading import PruneSampler, prune_loader
    from .methods import *
    from .pruner import Pruner
    from .scores import ScoreBook
    from .selection import Selection
    from .streaming import prune_stream

__version__ = "0.1.0"

_HOME = {
    "catalog": ["Catalog"],
    "content": ["fingerprint"],
    "errors": ["CheckpointError", "DataError", "PlanError", "UsageError"],
    "hashing": ["Key"],
    "indexed": ["Indexed", "IndexedCollate"],
    "loading": ["PruneSampler", "prune_loader"],
    "methods": ["METHODS", "prune"],  # and every recipe in METHODS
    "pruner": ["Pruner"],
    "scores": ["ScoreBook"],
    "selection": ["Selection"],
    "streaming": ["prune_stream"],
}
_MODULES = [
    "contrastive",
    "contrib",
    "coresets",
    "criteria",
    "dynamics",
    "finetuning",
    "layerwise",
    "learning_rate",
    "methods",
    "network",
    "online",
    "policies",
    "prompts",
    "schedules",
]
_FROM = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(f".{_FROM[name]}", __name__), name)
    if name == "__all__":
        return sorted([*_MODULES, *_FROM, *__getattr__("METHODS")])
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)
    if name in (methods := __getattr__("METHODS")):
        return methods[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
