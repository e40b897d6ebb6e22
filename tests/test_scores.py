"""The score book against a loop in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune import ScoreBook

SIZE = 8
records = st.lists(st.tuples(st.integers(0, SIZE - 1), st.floats(-5, 5, width=32)), max_size=40)


def loop(entries: list[tuple[int, float]], smoothing: float) -> tuple[list[float], list[float]]:
    """Score and variance of every sample, one entry after another."""
    score, variance = [math.nan] * SIZE, [0.0] * SIZE
    for sample, new in entries:
        if math.isnan(score[sample]):
            score[sample] = new
        else:
            variance[sample] = (1 - smoothing) * variance[sample] + smoothing * (new - score[sample]) ** 2
            score[sample] = (1 - smoothing) * score[sample] + smoothing * new
    return score, variance


def record(book: ScoreBook, entries: list[tuple[int, float]], smoothing: float) -> None:
    index = torch.tensor([sample for sample, _ in entries], dtype=torch.int64)
    book.record(index, torch.tensor([new for _, new in entries], dtype=torch.float32), smoothing)


def test_a_new_book_knows_nothing() -> None:
    book = ScoreBook(5, variance=True)
    assert book.score.isnan().all()
    assert book.score.dtype == torch.float32
    assert torch.equal(book.variance, torch.zeros(5))
    assert book.drawn.dtype == torch.int32
    assert torch.equal(book.drawn, torch.zeros(5, dtype=torch.int32))


def test_variance_is_not_allocated_unless_asked_for() -> None:
    with pytest.raises(AttributeError, match="variance"):
        _ = ScoreBook(5).variance
    assert set(ScoreBook(5).state_dict()) == {"score", "drawn"}


@given(entries=records, smoothing=st.floats(0.01, 1))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_recording_equals_a_loop_in_order(entries: list[tuple[int, float]], smoothing: float) -> None:
    book = ScoreBook(SIZE, variance=True)
    record(book, entries, smoothing)
    score, variance = loop(entries, smoothing)
    torch.testing.assert_close(book.score, torch.tensor(score), rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(book.variance, torch.tensor(variance), rtol=1e-4, atol=1e-4)


@given(entries=records, smoothing=st.sampled_from([1.0, 0.8, 0.3]), cut=st.integers(0, 40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_recording_in_parts_equals_recording_once(entries: list, smoothing: float, cut: int) -> None:
    once, parts = ScoreBook(SIZE, variance=True), ScoreBook(SIZE, variance=True)
    record(once, entries, smoothing)
    record(parts, entries[:cut], smoothing)
    record(parts, entries[cut:], smoothing)
    assert torch.equal(once.score.nan_to_num(1e9), parts.score.nan_to_num(1e9))
    assert torch.equal(once.variance, parts.variance)


def test_the_first_score_is_stored_as_it_is() -> None:
    book = ScoreBook(3, variance=True)
    record(book, [(1, 2.5)], smoothing=0.1)
    assert book.score[1] == 2.5
    assert book.variance[1] == 0
    assert book.score[[0, 2]].isnan().all()


def test_variance_moves_by_the_score_before_its_update() -> None:
    book = ScoreBook(1, variance=True)
    record(book, [(0, 1.0)], smoothing=0.5)
    record(book, [(0, 3.0)], smoothing=0.5)
    assert book.variance[0] == 2.0  # 0.5 * (3 - 1)^2, where the new score would give 0.5
    assert book.score[0] == 2.0


def test_a_long_run_of_one_sample() -> None:
    book = ScoreBook(2)
    record(book, [(0, float(i)) for i in range(500)], smoothing=1.0)
    assert book.score[0] == 499


def test_state_is_a_copy_and_comes_back() -> None:
    book = ScoreBook(4, variance=True)
    record(book, [(0, 1.0), (0, 2.0), (3, 1.0)], smoothing=0.5)
    book.drawn += 2
    state = book.state_dict()
    record(book, [(1, 1.0)], smoothing=0.5)
    assert state["score"][1].isnan()
    other = ScoreBook(4, variance=True)
    other.load_state_dict(state)
    assert all(
        torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))
        for a, b in zip(state.values(), other.state_dict().values(), strict=True)
    )
    other.score[0] = 7
    assert state["score"][0] != 7


def test_state_of_another_size_or_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="score"):
        ScoreBook(4).load_state_dict(ScoreBook(5).state_dict())
    with pytest.raises(ValueError, match="variance"):
        ScoreBook(4, variance=True).load_state_dict(ScoreBook(4).state_dict())
