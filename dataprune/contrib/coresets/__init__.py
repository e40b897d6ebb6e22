"""Static methods of the field whose claims are not confirmed here yet; `dataprune.coresets` has them all."""

from ... import coresets  # noqa: F401  # first, as its index imports the files of this package
from ._dual_beta import dual_beta
from ._graph_cut import graph_cut
from ._prototypes import prototypes
from ._semdedup import semdedup

__all__ = ["dual_beta", "graph_cut", "prototypes", "semdedup"]
