"""Names that sweeps still use."""

from .tasks.contrastive import finetuning, untrained

__all__ = ["finetuning", "untrained"]
