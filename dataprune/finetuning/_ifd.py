"""Instruction-following difficulty: how much of an answer's loss its prompt takes away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._order import descending


def answer_loss(
    logits: Float[Tensor, "b s v"], tokens: Int[Tensor, "b s"], answer: Bool[Tensor, "b s"]
) -> Float[Tensor, " b"]:
    """Mean cross-entropy of the tokens of an answer, each predicted from all tokens before it.

    Args:
        logits: of a causal model.
        tokens: token ids.
        answer: which tokens are the answer's. The first of the sequence cannot be predicted and is left out.
    Returns:
        float32; NaN where there is no token to predict.
    Source: Li et al. 2024, arXiv:2308.12032, section 2 (conditioned and direct answer score). Differs: nothing.
    """
    predicted = answer[:, 1:]
    losses = torch.zeros(predicted.shape, device=logits.device)
    losses[predicted] = F.cross_entropy(logits[:, :-1][predicted].float(), tokens[:, 1:][predicted], reduction="none")
    return losses.sum(dim=1) / predicted.sum(dim=1)


def ifd(with_prompt: Float[Tensor, " n"], alone: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Loss of the answer given its prompt, over its loss without.

    Near 1 the prompt hardly helps the model, which then has to learn to follow it; above 1 it misleads.

    Args:
        with_prompt, alone: `answer_loss` of the same tokens, after the prompt and without it.
    Raises:
        ValueError: if the shapes differ.
    Example:
        >>> ifd(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        tensor([0.5000, 1.5000])

    Source: Li et al. 2024, arXiv:2308.12032, section 2. Differs: nothing.
    """
    if with_prompt.shape != alone.shape:
        raise ValueError(f"ifd needs the two losses of the same rows, got {tuple(with_prompt.shape)} and "
                         f"{tuple(alone.shape)}")  # fmt: skip
    return with_prompt / alone


def by_ifd(scores: Float[Tensor, " n"], seed: int = 0) -> Int[Tensor, " n"]:
    """Positions in the order in which they are kept: the highest up to 1 first, then those above 1, the lowest first.

    Args:
        scores: of `ifd`; NaN comes last.
        seed: decides between equal scores.
    Example:
        >>> by_ifd(torch.tensor([0.3, 1.2, 0.9, 1.1]))
        tensor([2, 0, 3, 1])

    Source: Li et al. 2024, arXiv:2308.12032, section 2. Differs: those above 1, which their code leaves out, come
        last, so that a budget is exact.
    """
    return descending(torch.where(scores > 1, -scores, scores), seed)
