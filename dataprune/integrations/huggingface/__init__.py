"""Prune inside Hugging Face's `Trainer`, and inside what is built on it (TRL, sentence-transformers)."""

from __future__ import annotations

from typing import Any

from .checkpoints import STATE
from .loading import INDEX
from .trainer import PrunedTrainerMixin


def __getattr__(name: str) -> Any:
    if name != "PrunedTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from transformers import Trainer
    except ImportError as error:
        raise ImportError(
            f"PrunedTrainer needs transformers: pip install -c constraints.txt -e '.[hf]' ({error})"
        ) from error

    class PrunedTrainer(PrunedTrainerMixin, Trainer):
        __doc__ = f"transformers' Trainer on what a pruner selects.\n\n{PrunedTrainerMixin.__doc__}"

    PrunedTrainer.__module__, PrunedTrainer.__qualname__ = __name__, name
    globals()[name] = PrunedTrainer
    return PrunedTrainer


__all__ = ["INDEX", "STATE", "PrunedTrainer", "PrunedTrainerMixin"]
