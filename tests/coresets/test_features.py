"""All selectors from features: counts, types, chunks, ties, and rejected input."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from coreset_features import COVERINGS, NEED_LABELS, SELECTORS, check, euclid, follows_the_farthest, normal, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataprune import Selection, coresets

fast = settings(max_examples=40, deadline=None, derandomize=True)

seeds = st.integers(0, 2**31)
# few different rows, so that duplicates are common
matrices = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.1, 2.0]), st.sampled_from([0.0, 0.0, 5.0])), min_size=1, max_size=30
)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("balance", ["none", "class"])
@given(rows=matrices, keep=st.floats(0.1, 1), seed=seeds)
@fast
def test_unique_exact_repeatable_and_private(
    name: str, balance: str, rows: list[tuple[float, float]], keep: float, seed: int
) -> None:
    features = torch.tensor(rows)
    labels = (features[:, 1] > 1).long()
    if max(1, math.floor(keep * len(rows) + 0.5)) < 6:
        labels.zero_()  # two classes may be too many for a few places
    elif 3 * int(labels.sum()) < len(rows) and name == "herding":
        labels.zero_()
    state = torch.get_rng_state()
    options = {"keep": keep, "seed": seed, "labels": labels, "balance": balance}
    index = check(SELECTORS[name](features, **options), len(rows), keep)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert SELECTORS[name](features, **options).index.tolist() == index
    assert torch.equal(features, torch.tensor(rows))
    if name == "moderate":
        assert index == sorted(index)


@pytest.mark.parametrize("name", SELECTORS)
def test_equals_are_chosen_at_random_not_by_position(name: str) -> None:
    size, trials = 12, 600
    hits = np.zeros(size)
    for seed in range(trials):
        selection = SELECTORS[name](torch.full((size, 3), 0.7), keep=0.25, labels=torch.zeros(size).int(), seed=seed)
        hits[selection.index.numpy()] += 1
    assert np.abs(hits / trials - 0.25).max() < 4.5 * math.sqrt(0.25 * 0.75 / trials)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_floating_types_and_the_edges_of_keep(name: str, dtype: torch.dtype) -> None:
    features, labels = tensor(normal(7, 3)).to(dtype).requires_grad_(), torch.zeros(7, dtype=torch.int32)
    assert sorted(check(SELECTORS[name](features, keep=1, labels=labels), 7, 1)) == list(range(7))
    check(SELECTORS[name](features, keep=0.01, labels=labels), 7, 0.01)
    assert check(SELECTORS[name](features[:1], keep=0.5, labels=labels[:1]), 1, 0.5) == [0]


@pytest.mark.parametrize("name", SELECTORS)
def test_chunks_do_not_matter(name: str, caplog: pytest.LogCaptureFixture) -> None:
    features, labels = tensor(normal(300, 8)), torch.arange(300) % 3
    options = {"first": 5} if name in COVERINGS else {}
    whole = SELECTORS[name](features, keep=0.2, labels=labels, **options)
    for memory in range(20_000, 200_000, 4_000):
        try:
            with caplog.at_level(logging.INFO, logger="dataprune.coresets"):
                small = SELECTORS[name](features, keep=0.2, labels=labels, max_memory=memory, **options)
            break
        except ValueError as error:
            assert "max_memory" in str(error)
    else:
        pytest.fail("200 KB should do")
    assert f"{name}: at most" in caplog.text
    rows = int(caplog.text.split("in chunks of ")[1].split()[0])
    assert rows < 150
    assert torch.equal(small.index, whole.index)


@pytest.mark.parametrize("name", SELECTORS)
def test_invalid_features_are_rejected(name: str) -> None:
    labels = torch.zeros(4).int()
    what = "outputs" if name == "contextual_diversity" else "features"
    features = torch.rand(4, 2)
    for value in (math.nan, math.inf):
        features[2, 1] = value
        with pytest.raises(ValueError, match=f"{what} hold NaN or infinity, first at position 2"):
            SELECTORS[name](features, keep=0.5, labels=labels)
    with pytest.raises(ValueError, match=f"{what} must be floating point"):
        SELECTORS[name](torch.ones(4, 2).long(), keep=0.5, labels=labels)
    for shape in ((4,), (4, 2, 2), (4, 0)):
        with pytest.raises(ValueError, match=rf"{what} must be \(N, D\)"):
            SELECTORS[name](torch.rand(shape), keep=0.5, labels=labels)
    with pytest.raises(ValueError, match="no samples"):
        SELECTORS[name](torch.rand(0, 2), keep=0.5, labels=labels[:0])
    with pytest.raises(ValueError, match="tensor"):
        SELECTORS[name]("features", keep=0.5, labels=labels)
    with pytest.raises(ValueError, match="keep"):
        SELECTORS[name](torch.rand(4, 2), keep=1.5, labels=labels)


@pytest.mark.parametrize("name", SELECTORS)
def test_arrays_and_lists_are_taken_as_tensors(name: str) -> None:
    features, labels = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    expected = SELECTORS[name](features, keep=4, labels=labels).index
    assert len(expected) == 4
    for convert in (Tensor.numpy, Tensor.tolist):
        assert torch.equal(SELECTORS[name](convert(features), keep=4, labels=convert(labels)).index, expected)


@pytest.mark.parametrize("name", COVERINGS)
@pytest.mark.parametrize("size", [60, 1500])  # fewer and more than the samples that are updated at a time
def test_a_pool_that_is_chosen_already_is_continued(name: str, size: int) -> None:
    features = torch.randn(size, 5, generator=torch.Generator().manual_seed(0))
    whole = SELECTORS[name](features, keep=size // 2, seed=3).index
    pool = whole[: size // 3]
    for chosen in (pool, pool.flip(0).tolist(), pool.numpy(), Selection.of(pool)):
        beside = SELECTORS[name](features, keep=size // 2 - size // 3, chosen=chosen).index
        assert torch.equal(beside, whole[size // 3 :])
    rest = SELECTORS[name](features, keep=size - len(pool), chosen=pool).index
    assert sorted([*rest.tolist(), *pool.tolist()]) == list(range(size))


@pytest.mark.parametrize("name", COVERINGS)
def test_each_class_is_covered_beside_its_part_of_the_pool(name: str) -> None:
    features, labels = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    pool = torch.cat([torch.arange(0, 20, 2), torch.tensor([1])])
    got = SELECTORS[name](features, keep=8, labels=labels, balance="class", chosen=pool).index
    for label in (0, 1):
        members = (labels == label).nonzero()[:, 0]
        place = torch.searchsorted(members, pool[labels[pool] == label])
        alone = SELECTORS[name](features[members], keep=4, chosen=place).index
        assert torch.equal(got[labels[got] == label], members[alone])


@pytest.mark.parametrize("name", COVERINGS)
def test_a_pool_that_does_not_fit_is_refused(name: str) -> None:
    features = torch.rand(6, 2)
    for chosen, options, message in (
        ([6], {}, "chosen has positions 6 to 6, the dataset 6 samples"),
        ([-1], {}, "chosen has positions -1"),
        ([1, 1], {}, "2 positions, but only 1 different"),
        ([1, 2, 3], {"keep": 4}, "keep asks for 4 samples beside those chosen already, and 3 are left"),
        ([1], {"first": 2}, "leave first out"),
    ):
        with pytest.raises(ValueError, match=message):
            SELECTORS[name](features, chosen=chosen, **{"keep": 2} | options)
    with pytest.raises(TypeError, match="whole numbers"):
        SELECTORS[name](features, chosen=torch.ones(6, dtype=torch.bool), keep=2)


@pytest.mark.parametrize("name", ["k_center", "herding"])
def test_features_too_large_to_square_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="overflow"):
        SELECTORS[name](1e30 * torch.randn(4, 2), keep=0.5, labels=torch.zeros(4).int())


@pytest.mark.parametrize("name", SELECTORS)
def test_labels_must_be_there_and_fit(name: str) -> None:
    selector, features = SELECTORS[name], torch.rand(4, 2)
    if name in NEED_LABELS:
        with pytest.raises(ValueError, match=f"{name} needs labels"):
            selector(features, keep=0.5, labels=None)
    else:
        with pytest.raises(ValueError, match="needs labels"):
            selector(features, keep=0.5, balance="class")
    with pytest.raises(ValueError, match=r"labels must be \(4,\).*\(5,\)"):
        selector(features, keep=0.5, labels=torch.zeros(5).long())
    with pytest.raises(ValueError, match="whole numbers"):
        selector(features, keep=0.5, labels=torch.zeros(4))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_class_that_would_stay_empty_is_named(name: str) -> None:
    labels = torch.tensor([7, 7, 7, 8, 9, 9])
    with pytest.raises(ValueError, match=r"2 samples for 3 classes, and none for class [789] \([123] samples\)"):
        SELECTORS[name](torch.rand(6, 2), keep=0.3, labels=labels, balance="class")


def test_herding_names_the_rare_class_that_its_share_does_not_reach() -> None:
    with pytest.raises(ValueError, match=r"none for class 3 \(1 samples\)"):
        coresets.herding(torch.rand(40, 2), keep=0.25, labels=torch.tensor([0] * 39 + [3]))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_need_above_max_memory_is_stated(name: str) -> None:
    labels = torch.zeros(1000).int()
    with pytest.raises(ValueError, match=rf"{name} needs [\d,]+ bytes .* 1,000 samples.*max_memory=2,000 "):
        SELECTORS[name](torch.rand(1000, 2), keep=0.5, labels=labels, max_memory=2000)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SELECTORS)
def test_features_on_a_gpu_select_as_on_the_cpu(name: str) -> None:
    rows, labels = normal(300, 8), torch.arange(300) % 3
    here = SELECTORS[name](torch.tensor(rows), keep=0.1, labels=labels)
    there = SELECTORS[name](torch.tensor(rows).cuda(), keep=0.1, labels=labels.cuda())
    assert there.index.device.type == "cpu"
    if name == "herding" or name == "moderate":
        assert torch.equal(there.index, here.index)
    elif name == "k_center":
        follows_the_farthest(there.index.tolist(), rows, euclid, 1e-4)
