"""Representation-based selection: position-weighted means of hidden states, and a round robin over queries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._order import ties

_MARGIN = 64  # rows that a query sorts beyond its share of the places, at first


def position_mean(
    hidden: Float[Tensor, "b s d"], mask: Int[Tensor, "b s"] | Bool[Tensor, "b s"]
) -> Float[Tensor, "b d"]:
    """Mean of the hidden states of a text, weighted by position: token i of S weighs i / (1 + ... + S).

    In a decoder later tokens have seen more of the text.

    Args:
        hidden: last hidden states, with padding on the right.
        mask: 1 for tokens of the text, 0 for padding.
    Returns:
        float32.
    Raises:
        ValueError: if a text has no tokens.
    Example:
        >>> position_mean(torch.tensor([[[0.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])

    Source: Ivison et al. 2025, arXiv:2503.01807 (RDS+), after Muennighoff 2022, arXiv:2202.08904. Differs: nothing.
    """
    weight = mask.cumsum(dim=1) * mask
    total = weight.sum(dim=1, keepdim=True)
    if bool((total == 0).any()):
        raise ValueError("a text has no tokens: its row of the mask is all zeros")
    return torch.einsum("bsd,bs->bd", hidden.float(), weight / total)


def similarity(rows: Float[Tensor, "n d"], queries: Float[Tensor, "q d"]) -> Float[Tensor, "n q"]:
    """Cosine of each row with each query.

    Source: Ivison et al. 2025, arXiv:2503.01807 (RDS+). Differs: nothing.
    """
    return torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(queries, dim=1).T


def round_robin(similarity: Float[Tensor, "q n"], count: int, seed: int = 0) -> Int[Tensor, " count"]:
    """Let the queries take turns: each takes the row most similar to it that no other has taken.

    Args:
        similarity: of each query with each row; NaN marks rows that are taken last. It may be memory-mapped: a query
            sorts little more than its share of the places.
        count: rows to take, K.
        seed: decides between rows that are equally similar.
    Returns:
        K positions in the order in which they are taken.
    Raises:
        ValueError: if there are no queries, or fewer rows than `count`.
    Example:
        >>> round_robin(torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.2, 0.1]]), 2)
        tensor([0, 1])

    Source: Ivison et al. 2025, arXiv:2503.01807 (RDS+). Differs: their code passes the turn on where a query's next
        row is taken already; here the query takes the best that is left, so that all queries get equally many, up
        to one.
    """
    queries, size = similarity.shape
    if queries == 0:
        raise ValueError("there are no queries: round_robin needs at least one")
    if not 0 <= count <= size:
        raise ValueError(f"count must be in [0, {size}], the number of rows, got {count}")
    random = ties(size, seed)
    values = similarity.detach().cpu().numpy()
    wanted = [_best_first(row, random, count // queries + _MARGIN) for row in values]
    taken, order = np.zeros(size, dtype=np.bool_), np.empty(count, dtype=np.int64)
    for place in range(count):
        position = next(row for row in wanted[place % queries] if not taken[row])
        taken[position], order[place] = True, position
    return torch.from_numpy(order)


def _best_first(values: np.ndarray, random: np.ndarray, first: int) -> Iterator[int]:
    """Positions by falling value, sorted in parts that double in size."""
    done = 0
    while done < len(values):
        upto = min(max(first, 2 * done), len(values))
        negative = np.where(np.isnan(values), np.inf, -values)
        threshold = np.partition(negative, upto - 1)[upto - 1]
        near = np.flatnonzero(negative <= threshold)  # all equals, so that the order does not depend on the parts
        order = near[np.lexsort((random[near], negative[near]))]
        del negative  # of all rows: only the best are kept until the next turn
        yield from order[done:].tolist()
        done = len(order)
