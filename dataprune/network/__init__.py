"""Network pruning, to combine with data pruning: masks on single weights, or removal of whole channels.

    masks = network.prune(model, 0.8)           # zeroes the 80 % smallest weights of every layer from now on
    ...                                         # fine-tune with any optimizer, also one built before
    network.finalize(model)                     # a plain model again, zeros and all

Masks do not change shapes, and save neither time nor memory. `granularity="channel"` makes the model smaller and
faster; it needs the extra `dataprune[network]`.
"""

from __future__ import annotations

from ._prune import Gradual, Schedule, apply, cubic, prune
from .costs import Cost, Sparsity, cost, sparsity, training_flops
from .layers import Masks, finalize

__all__ = [
    "Cost", "Gradual", "Masks", "Schedule", "Sparsity", "apply", "cost", "cubic", "finalize", "prune", "sparsity",
    "training_flops",
]  # fmt: skip
