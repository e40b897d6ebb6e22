"""Network pruning, to go with data pruning: masks on single weights, or whole channels removed.

    masks = network.prune(model, 0.8)           # the 80 % smallest weights of every layer are zero from here on
    ...                                         # fine-tune with any optimizer, also one that was built before
    network.finalize(model)                     # a plain model again, zeros and all

Masks leave the shapes alone: they save neither time nor memory by themselves. `granularity="channel"` makes the model
smaller and faster; it needs the extra `dataprune[network]`.
"""

from __future__ import annotations

from .costs import Cost, cost, training_flops
from .gradual import Gradual, Schedule, cubic
from .magnitude import prune
from .masking import Masks, apply, finalize
from .sparsities import Sparsity, sparsity

__all__ = [
    "Cost",
    "Gradual",
    "Masks",
    "Schedule",
    "Sparsity",
    "apply",
    "cost",
    "cubic",
    "finalize",
    "prune",
    "sparsity",
    "training_flops",
]
