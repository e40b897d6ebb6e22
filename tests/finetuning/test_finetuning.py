"""Formulas for choosing fine-tuning data, against slow references."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataprune import finetuning


def test_position_mean_weighs_token_i_of_s_by_i() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, lengths = torch.randn(4, 7, 3, generator=generator), [1, 7, 3, 5]
    mask = torch.tensor([[int(i < length) for i in range(7)] for length in lengths])
    means = finetuning.position_mean(hidden, mask)
    for row, length in enumerate(lengths):
        expected = sum(hidden[row, i].double() * (i + 1) for i in range(length)) / sum(range(1, length + 1))
        torch.testing.assert_close(means[row].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(means, finetuning.position_mean(hidden, mask.bool()))
    assert finetuning.position_mean(hidden.bfloat16(), mask).dtype == torch.float32
    with pytest.raises(ValueError, match="a text has no tokens"):
        finetuning.position_mean(hidden, mask * 0)


def test_similarity_is_the_cosine() -> None:
    rows, queries = torch.randn(5, 4), torch.randn(3, 4)
    expected = [[float(r @ q / (r.norm() * q.norm())) for q in queries] for r in rows]
    torch.testing.assert_close(finetuning.similarity(rows, queries), torch.tensor(expected))


def slow_round_robin(similarity: np.ndarray, count: int) -> list[int]:
    """Without equal values."""
    order: list[int] = []
    for turn in range(count):
        values = similarity[turn % len(similarity)]
        left = [row for row in range(len(values)) if row not in order]
        order.append(max(left, key=lambda row: -math.inf if math.isnan(values[row]) else values[row]))
    return order


@given(st.integers(1, 6), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_round_robin_equals_taking_turns(queries: int, size: int, share: float, seed: int) -> None:
    values = np.random.default_rng(seed).permutation(queries * size).reshape(queries, size).astype(np.float32)
    order = finetuning.round_robin(torch.from_numpy(values), round(share * size))
    assert order.tolist() == slow_round_robin(values, round(share * size))


def test_round_robin_reads_on_where_all_queries_want_the_same() -> None:
    values = torch.randperm(1000).float().expand(5, 1000)
    assert torch.equal(finetuning.round_robin(values, 1000), values[0].argsort(descending=True))


def test_round_robin_draws_between_equals_and_takes_nan_last() -> None:
    values = torch.zeros(2, 400)
    values[:, 7] = math.nan
    first, again, other = (finetuning.round_robin(values, 400, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert int(first[-1]) == int(other[-1]) == 7 and sorted(first.tolist()) == list(range(400))
    assert torch.equal(finetuning.round_robin(values, 30, 1), first[:30])
    places = [int((finetuning.round_robin(torch.zeros(1, 4), 1, seed))[0]) for seed in range(400)]
    assert min(np.bincount(places, minlength=4)) > 60


def test_round_robin_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="there are no queries"):
        finetuning.round_robin(torch.zeros(0, 3), 1)
    with pytest.raises(ValueError, match=r"count must be in \[0, 3\]"):
        finetuning.round_robin(torch.zeros(1, 3), 4)


def test_answer_loss_is_the_mean_over_the_answer() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(3, 6, 9), torch.randint(9, (3, 6))
    answer = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
    losses = finetuning.answer_loss(logits, tokens, answer)
    for row, places in enumerate(([2, 3, 4], [1])):  # the first token has nothing before it
        each = [-math.log(float(logits[row, i - 1].double().softmax(0)[tokens[row, i]])) for i in places]
        assert float(losses[row]) == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert math.isnan(float(losses[2]))


def test_ifd_is_a_ratio_and_values_above_one_come_last() -> None:
    assert finetuning.ifd(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 1.0])).tolist() == [0.25, 2.0]
    with pytest.raises(ValueError, match="the two losses of the same rows"):
        finetuning.ifd(torch.ones(2), torch.ones(3))
    scores = torch.tensor([0.2, 1.5, 1.0, math.nan, 0.9, 1.01])
    assert finetuning.by_ifd(scores).tolist() == [2, 4, 0, 5, 1, 3]


def test_descending_draws_between_equals() -> None:
    assert finetuning.descending(torch.tensor([1.0, 3.0, math.nan, 2.0])).tolist() == [1, 3, 0, 2]
    firsts = [int(finetuning.descending(torch.zeros(4), seed)[0]) for seed in range(400)]
    assert min(np.bincount(firsts, minlength=4)) > 60


def test_importing_it_does_not_import_transformers() -> None:
    code = "import sys, dataprune.finetuning; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
