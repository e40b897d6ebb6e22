"""Static coresets: functions from plain tensors to a `Selection` of exactly max(1, floor(keep * N + 0.5)) samples.

    selection = coresets.k_center(features, keep=0.1)
    selection.save("coreset.safetensors", {"method": "k_center", "keep": 0.1}, dataset=train_set)

They run where their input lies, read it in chunks, and use at most `max_memory` bytes beyond it; what they will use is
logged (INFO, logger "dataprune.coresets") before they start.
"""

from __future__ import annotations

from .boundary import deepfool
from .budget import MAX_MEMORY
from .extraction import Extracted, extract
from .facility_location import craig
from .geometry import contextual_diversity, herding, k_center, moderate
from .gradients import glister, grad_match
from .influences import influence
from .named import METHODS, Given, Named, choose
from .replay import mean_one, small_batch, weighted
from .scores import bottom, random, stratified, top

__all__ = [
    "MAX_MEMORY",
    "METHODS",
    "Extracted",
    "Given",
    "Named",
    "bottom",
    "choose",
    "contextual_diversity",
    "craig",
    "deepfool",
    "extract",
    "glister",
    "grad_match",
    "herding",
    "influence",
    "k_center",
    "mean_one",
    "moderate",
    "random",
    "small_batch",
    "stratified",
    "top",
    "weighted",
]
