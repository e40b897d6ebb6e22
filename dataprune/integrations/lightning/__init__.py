"""Prune inside Lightning's `Trainer`."""

from .callback import PruneCallback

__all__ = ["PruneCallback"]
