"""Places for each class, and the book that remembers classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from class_places import filled_up
from hypothesis import given
from hypothesis import strategies as st

import dataprune
from dataprune import Key
from dataprune.contrib import GroupBook
from dataprune.contrib._classes import proportional

classes = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 40)), min_size=1, max_size=8)


@given(classes, st.floats(0, 1), st.integers(0, 50))
def test_places_are_proportional_as_far_as_classes_have_samples(
    drawn: list[tuple[float, int]], part: float, seed: int
) -> None:
    shares = [round(share, 2) for share, _ in drawn]
    sizes = [size for _, size in drawn]
    count = int(part * sum(sizes))
    places = proportional(np.array(shares), np.array(sizes), count, Key(seed, 1))
    assert places.sum() == count
    assert (places >= 0).all() and (places <= sizes).all()
    if count <= sum(size for share, size in zip(shares, sizes) if share):
        for number, wanted in zip(places, filled_up(shares, sizes, count)):
            assert np.floor(wanted - 1e-6) <= number <= np.ceil(wanted + 1e-6)
    else:  # classes without a share take the rest, by their sizes
        rest = count - sum(size for share, size in zip(shares, sizes) if share)
        without = sum(size for share, size in zip(shares, sizes) if not share)
        for number, share, size in zip(places, shares, sizes):
            assert number == size if share else abs(number - rest * size / without) < 1


def test_fractions_are_right_on_average() -> None:
    shares, sizes, trials = np.array([1.0, 2.0, 4.0, 4.0]), np.array([50, 50, 50, 2]), 2000
    counts = [proportional(shares, sizes, 10, Key(seed, 0)) for seed in range(trials)]
    wanted = filled_up(shares.tolist(), sizes.tolist(), 10)  # 8/7, 16/7, 32/7, 2
    assert np.abs(np.mean(counts, axis=0) - wanted).max() < 4 * 0.5 / np.sqrt(trials)


def test_the_book_keeps_the_last_class_and_the_last_selection() -> None:
    book = GroupBook(6)
    book.record(torch.tensor([4, 1, 4]), torch.tensor([[0.5, 3.0], [0.25, 1.0], [2.0, 2.0]]))
    assert book.group.tolist() == [-1, 1, -1, -1, 2, -1]
    assert book.score.nan_to_num(-1).tolist() == [-1, 0.25, -1, -1, 2, -1]
    book.draw(torch.tensor([0, 1]))
    book.draw(torch.tensor([1, 5]))
    assert book.last.tolist() == [False, True, False, False, False, True]
    assert book.drawn.tolist() == [1, 2, 0, 0, 0, 1]
    other = GroupBook(6)
    other.load_state_dict(book.state_dict())
    assert torch.equal(other.group, book.group) and torch.equal(other.last, book.last)


@pytest.mark.parametrize("name", ["rcap", "metriq"])
def test_unseen_samples_come_first_and_unreadable_ones_do_not(name: str) -> None:
    pruner = dataprune.METHODS[name](40, keep=0.5, epochs=5)
    index = pruner.select(0).index[:30]  # a loop that drops ten
    pruner.update(index, index.float(), torch.randn(30, 3), index % 3)
    assert set(range(30, 40)) <= set(pruner.select(1).index.tolist())
    book = pruner.book
    book.score[30:] = torch.inf  # given up
    selected = pruner.policy(book.without_unreadable(Key(0, 2)), 20, Key(0, 2)).index
    assert 0 < int((selected >= 30).sum()) < 10


@pytest.mark.parametrize("name", ["rcap", "metriq"])
def test_what_is_no_class_is_named(name: str) -> None:
    pruner = dataprune.METHODS[name](8, keep=0.5, epochs=4)
    index, losses, logits = torch.arange(8), torch.rand(8), torch.randn(8, 3)
    for targets, shown in (
        (None, "got NoneType"),
        (torch.rand(8), r"got torch\.float32 \(8,\)"),
        (torch.zeros(8, 2).long(), r"got torch\.int64 \(8, 2\)"),
    ):
        with pytest.raises(ValueError, match=rf"reads class ids \(B,\) with B = 8, {shown}: call pruner\.loss\(index"):
            pruner.update(index, losses, logits, targets)


def test_metriq_reads_logits() -> None:
    pruner = dataprune.metriq(8, keep=0.5, epochs=4)
    for outputs, shown in ((None, "NoneType"), (torch.randn(8), r"a tensor \(8,\)"), (torch.randn(8, 1), r"\(8, 1\)")):
        with pytest.raises(ValueError, match=rf"reads logits \(B, C\) of exclusive classes with B = 8, got .*{shown}"):
            pruner.update(torch.arange(8), torch.rand(8), outputs, torch.arange(8))


def test_class_ids_survive_half_precision() -> None:
    pruner = dataprune.rcap(4, keep=0.5, epochs=4)
    pruner.update(pruner.select(0).index, torch.rand(4).bfloat16(), None, torch.tensor([257, 999, 3, 257]))
    pruner.select(1)
    assert pruner.book.state_dict()["group"].tolist() == [257, 999, 3, 257]
