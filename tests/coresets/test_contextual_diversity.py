"""Contextual diversity against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coreset_features import check, divergence, follows_the_farthest, normal, probabilities, tensor

from dataprune import coresets


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("given_as", ["logits", "probabilities"])
def test_contextual_diversity_is_k_center_on_the_symmetric_divergence(scale: float, given_as: str) -> None:
    logits = (scale * normal(200, 6)).astype(np.float32)
    exact = probabilities(logits.astype(np.float64))
    outputs = torch.tensor(logits) if given_as == "logits" else tensor(exact)
    index = check(coresets.contextual_diversity(outputs, keep=0.3, seed=3), 200, 0.3)
    follows_the_farthest(index, exact, divergence, 1e-5 * max(scale, 0.1) ** 2 * 10)
    explicit = coresets.contextual_diversity(outputs, keep=0.3, seed=3, space=given_as).index.tolist()
    assert explicit == index


def test_certain_outputs_stay_finite() -> None:
    for outputs in (torch.eye(5).repeat(6, 1), 1e4 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0))):
        index = check(coresets.contextual_diversity(outputs, keep=0.2, seed=1), 30, 0.2)
        assert len(outputs[index].argmax(dim=1).unique()) == 5


def test_the_kind_of_outputs_can_be_given() -> None:
    outputs = torch.rand(20, 3)
    with pytest.raises(ValueError, match="no probabilities"):
        coresets.contextual_diversity(outputs, keep=0.5, space="probabilities")
    with pytest.raises(ValueError, match="space"):
        coresets.contextual_diversity(outputs, keep=0.5, space="logit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floor"):
        coresets.contextual_diversity(outputs, keep=0.5, floor=0.0)
