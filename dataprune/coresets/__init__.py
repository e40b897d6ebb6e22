"""Static coresets: functions from plain tensors to a `Selection` of exactly max(1, floor(keep * N + 0.5)) samples.

    selection = coresets.k_center(features, keep=0.1)
    selection.save("coreset.safetensors", {"method": "k_center", "keep": 0.1}, dataset=train_set)

They run where their input lies, read it in chunks, and use at most `max_memory` bytes beyond it; the memory that they
will use is logged (INFO, logger "dataprune.coresets") before they start.
"""

from __future__ import annotations

from ..contrib.coresets._dual_beta import dual_beta
from ..contrib.coresets._graph_cut import graph_cut
from ..contrib.coresets._prototypes import prototypes
from ..contrib.coresets._semdedup import semdedup
from ._contextual_diversity import contextual_diversity
from ._craig import craig
from ._deepfool import deepfool
from ._glister import glister
from ._grad_match import grad_match
from ._herding import herding
from ._influence import influence
from ._k_center import k_center
from ._moderate import moderate
from ._stratified import stratified
from .budget import MAX_MEMORY
from .extraction import Extracted, extract
from .methods import METHODS, Inputs, Method, choose, find
from .ranking import bottom, random, top
from .replay import mean_one, small_batch, weighted

ccs = stratified
random_coreset = random

__all__ = [
    "MAX_MEMORY", "METHODS", "Extracted", "Inputs", "Method", "bottom", "ccs", "choose", "contextual_diversity",
    "craig", "deepfool", "dual_beta", "extract", "find", "glister", "grad_match", "graph_cut", "herding", "influence",
    "k_center", "mean_one", "moderate", "prototypes", "random", "random_coreset", "semdedup", "small_batch",
    "stratified", "top", "weighted",
]  # fmt: skip
