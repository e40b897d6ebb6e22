"""All selectors from last-layer gradients: counts, degenerate data, ties, and rejected input."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from coreset_gradients import problem, shares
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dataprune import coresets
from dataprune.coresets import budget

few = settings(max_examples=15, deadline=None, derandomize=True)


def glister(errors: Tensor, features: Tensor, **options):
    return coresets.glister(errors, features, val_errors=errors[:5], val_features=features[:5], **options)


SELECTORS = {
    "craig": coresets.craig,
    "glister": glister,
    "glister, balanced, several at once": partial(glister, every=4, balance="class"),
    "grad_match": coresets.grad_match,
    "grad_match, all classes at once": partial(coresets.grad_match, balance="none"),
    "influence": coresets.influence,
    "influence, several at once": partial(coresets.influence, every=5),
    "influence, conjugate gradients": partial(coresets.influence, solver="conjugate"),
}


@pytest.mark.parametrize("name", SELECTORS)
@given(seed=st.integers(0, 100), size=st.integers(3, 40), keep=st.floats(0.34, 1))
@few
def test_exact_counts_in_ascending_order_with_any_global_seed(name: str, seed: int, size: int, keep: float) -> None:
    errors, features, labels = problem(seed, size)
    try:
        shares(labels, budget.count_of(size, keep))
    except ValueError:
        keep = 1.0
    before = torch.get_rng_state()
    selection = SELECTORS[name](errors, features, keep=keep, labels=labels)
    index, weight = selection.index, selection.weight
    assert torch.equal(torch.get_rng_state(), before)
    assert len(index) == len(weight) == max(1, int(keep * size + 0.5))
    assert index.dtype == torch.int64 and weight.dtype == torch.float32
    assert bool((index[1:] > index[:-1]).all()) and int(index.min()) >= 0 and int(index.max()) < size
    again = SELECTORS[name](errors, features, keep=keep, labels=labels)
    assert torch.equal(index, again.index) and torch.equal(weight, again.weight)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("kind", ["zero gradients", "duplicates", "one class", "one sample", "zero features", "half"])
def test_degenerate_data(name: str, kind: str) -> None:
    errors, features, labels = problem(0, 12)
    if kind == "zero gradients":
        errors.zero_()
    elif kind == "duplicates":
        errors, features, labels = (
            value[:3].repeat(4, *[1] * (value.ndim - 1)) for value in (errors, features, labels)
        )
    elif kind == "one class":
        labels = labels * 0
        errors = torch.full((12, 1), 0.0)
    elif kind == "one sample":
        errors, features, labels = errors[:1], features[:1], labels[:1]
    elif kind == "zero features":
        features.zero_()
    else:
        errors, features = errors.half(), features.bfloat16()
    selection = SELECTORS[name](errors, features, keep=0.5, labels=labels)
    index, weight = selection.index, selection.weight
    assert len(index.unique()) == len(index) == max(1, int(0.5 * len(labels) + 0.5))
    assert bool(torch.isfinite(weight).all()) and float(weight.min()) >= 0
    if name == "craig":
        assert weight.sum() == len(labels) and weight.min() >= 1


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("seed", range(3))
def test_a_bias_is_one_more_feature_of_a_layer_without(name: str, seed: int) -> None:
    errors, features, labels = problem(seed, 40)
    features *= 0.1
    layer = nn.Linear(5, 3, bias=False)
    with_bias = SELECTORS[name](errors, features, keep=0.2, labels=labels)
    wider = torch.cat([features, torch.ones(40, 1)], dim=1)
    without = SELECTORS[name](errors, wider, keep=0.2, labels=labels, bias=layer)
    assert torch.equal(with_bias.index, without.index)
    torch.testing.assert_close(with_bias.weight, without.weight)


@pytest.mark.parametrize("name", SELECTORS)
def test_arrays_and_lists_are_taken_as_tensors(name: str) -> None:
    errors, features, labels = problem(0, 12)
    expected = SELECTORS[name](errors, features, keep=6, labels=labels)
    arrays = SELECTORS[name](errors.numpy(), features.numpy(), keep=6, labels=labels.numpy())
    lists = SELECTORS[name](errors.tolist(), features.tolist(), keep=6, labels=labels.tolist())
    for selection in (arrays, lists):
        assert torch.equal(selection.index, expected.index) and torch.equal(selection.weight, expected.weight)


@pytest.mark.parametrize("name", SELECTORS)
def test_ties_are_broken_by_the_seed(name: str) -> None:
    labels = torch.zeros(60, dtype=torch.int64)
    errors, features = torch.tensor([[-0.5, 0.5]]).repeat(60, 1), torch.ones(60, 2)
    picks = {tuple(SELECTORS[name](errors, features, keep=0.1, labels=labels, seed=s).index.tolist()) for s in range(4)}
    assert len(picks) > 1


@pytest.mark.parametrize("name", SELECTORS)
def test_bad_input(name: str) -> None:
    select = SELECTORS[name]
    errors, features, labels = problem(0, 12)
    broken = features.clone()
    broken[3, 0] = torch.nan
    cases = [
        (errors, broken, {}, "features hold NaN or infinity, first at position [03]"),
        (errors, features[:-1], {}, "12 rows|11"),
        (errors.int(), features, {}, "floating"),
        (errors[0], features, {}, r"\(N, D\)"),
        (errors, features, {"labels": labels[:-1]}, "one class id"),
        (errors, features, {"labels": labels.double()}, "whole numbers"),
        (errors, features, {"labels": labels + 1}, "1 to 3"),
        (errors, features, {"keep": 0.0}, "fraction kept"),
        (errors, features, {"keep": 1.5}, "fraction kept"),
        (errors, features, {"max_memory": 100}, "max_memory"),
    ]
    for e, h, options, message in cases:
        with pytest.raises(ValueError, match=message):
            select(e, h, **{"keep": 0.5, "labels": labels, **options})


@pytest.mark.parametrize("name", ["craig", "grad_match", "glister, balanced, several at once"])
def test_a_class_left_empty_is_named(name: str) -> None:
    errors, features, _ = problem(0, 40)
    labels = torch.tensor([0] * 20 + [1] * 19 + [2])
    with pytest.raises(ValueError, match=r"none for class 2 \(1 samples\)"):
        SELECTORS[name](errors, features, keep=0.1, labels=labels)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6), share=st.floats(0.01, 1))
@few
def test_places_are_shares_rounded(sizes: list[int], share: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)) * 3, torch.tensor(sizes))
    count = budget.count_of(len(labels), share)
    try:
        places = shares(labels, count)
    except ValueError:
        assert min(sizes) * count < len(labels)
        return
    assert sum(places.values()) == count
    for size, (label, got) in zip(sizes, places.items()):
        assert label % 3 == 0 and abs(got - size * count / len(labels)) < 1 and 1 <= got <= size
