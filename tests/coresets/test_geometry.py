"""Coresets from features against slow references written from the definitions, and what is refused."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune import Selection, coresets
from dataprune.coresets import farthest

fast = settings(max_examples=40, deadline=None, derandomize=True)

SELECTORS: dict[str, Callable[..., Selection]] = {
    "moderate": coresets.moderate,
    "k_center": coresets.k_center,
    "herding": coresets.herding,
    "contextual_diversity": coresets.contextual_diversity,
}
GREEDY = ["k_center", "contextual_diversity"]

seeds = st.integers(0, 2**31)
# few different rows, so that duplicates are common
matrices = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.1, 2.0]), st.sampled_from([0.0, 0.0, 5.0])), min_size=1, max_size=30
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(array, dtype=torch.float32)


def check(selection: Selection, size: int, keep: float) -> list[int]:
    index, weight = selection
    assert index.dtype == torch.int64
    assert torch.equal(weight, torch.ones(len(index)))
    assert len(index) == len(set(index.tolist())) == max(1, math.floor(keep * size + 0.5))
    assert 0 <= int(index.min()) <= int(index.max()) < size
    return index.tolist()


def euclid(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    return ((rows - row) ** 2).sum(axis=1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.maximum(e / e.sum(axis=1, keepdims=True), 1e-12)


def divergence(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    """KL(p‖q) + KL(q‖p) of probabilities."""
    return (rows * np.log(rows / row) + row * np.log(row / rows)).sum(axis=1)


def follows_the_farthest(index: list[int], rows: np.ndarray, distance: Callable, tolerance: float) -> None:
    """Each pick is one of those that are farthest from the picks before it."""
    nearest = np.full(len(rows), np.inf)
    nearest[index[0]] = -np.inf
    for before, pick in itertools.pairwise(index):
        nearest = np.minimum(nearest, distance(rows, rows[before]))
        nearest[index[: index.index(pick)]] = -np.inf
        assert nearest[pick] >= nearest.max() - tolerance


# -- all of them -----------------------------------------------------------------------------------------------------


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
    options = {"first": 5} if name in GREEDY else {}
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


# -- k-center --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [1, 7, 1024])
@pytest.mark.parametrize("shape", ["normal", "clusters", "line", "far"])
def test_k_center_picks_the_farthest(candidates: int, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farthest, "_CANDIDATES", candidates)
    monkeypatch.setattr(farthest, "_LEADERS", max(1, candidates // 16))
    rows = {
        "normal": normal(400, 16),
        "clusters": 20 * normal(10, 16)[np.arange(400) % 10] + 0.1 * normal(400, 16, seed=1),
        "line": normal(400, 1) @ normal(1, 16, seed=1),
        "far": 1000 + normal(400, 16),  # far from the origin: norms are of no use uncentred
    }[shape].astype(np.float32)
    index = check(coresets.k_center(torch.tensor(rows), keep=0.3, seed=1), 400, 0.3)
    scale = euclid(rows.astype(np.float64), rows.mean(axis=0, dtype=np.float64)).max()
    follows_the_farthest(index, rows.astype(np.float64), euclid, 2e-6 * scale if shape != "clusters" else 1e-4)


def test_k_center_tells_distances_that_float32_cannot() -> None:
    """Two far clusters whose inner distances drown in the rounding of float32 squares."""
    inner = 1e-2 * normal(200, 8)
    rows = inner + np.where(np.arange(200)[:, None] < 100, 512.0, -512.0)
    rows = np.round(rows * 2**13) / 2**13  # what float32 can hold there
    index = check(coresets.k_center(tensor(rows), keep=0.5, first=0), 200, 0.5)
    follows_the_farthest(index, rows, euclid, 1e-8)


def test_k_center_takes_duplicates_last() -> None:
    rows = np.repeat(normal(30, 5), 4, axis=0)
    index = check(coresets.k_center(tensor(rows), keep=0.5, seed=2), 120, 0.5)
    assert {i // 4 for i in index[:30]} == set(range(30))


def test_k_center_starts_where_it_is_told_and_grows_by_keep() -> None:
    features = tensor(normal(100, 4))
    long = coresets.k_center(features, keep=0.5, first=17).index
    assert int(long[0]) == 17
    assert torch.equal(coresets.k_center(features, keep=0.2, first=17).index, long[:20])
    assert len({int(coresets.k_center(features, keep=0.01, seed=seed).index) for seed in range(50)}) > 20


@pytest.mark.parametrize("name", GREEDY)
def test_covering_per_class_is_covering_each_class(name: str) -> None:
    rows, labels = normal(90, 4).astype(np.float32), np.arange(90) % 3
    index = SELECTORS[name](torch.tensor(rows), keep=0.3, labels=torch.tensor(labels), balance="class").index.numpy()
    assert labels[index].tolist() == sorted(labels[index].tolist())
    for c in range(3):
        members = np.flatnonzero(labels == c)
        mine = [members.tolist().index(i) for i in index if labels[i] == c]
        assert len(mine) == 9
        space = rows[members].astype(np.float64)
        if name == "k_center":
            follows_the_farthest(mine, space, euclid, 1e-4)
        else:
            follows_the_farthest(mine, probabilities(space), divergence, 1e-4)


def test_k_center_leaves_the_switch_for_coarse_products_alone() -> None:
    rows = 100 + normal(200, 16)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        index = coresets.k_center(tensor(rows), keep=0.2).index.tolist()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    follows_the_farthest(index, rows, euclid, 1e-3)


@pytest.mark.parametrize("first", [-1, 10, 1.0, True])
def test_first_is_a_position(first: int) -> None:
    with pytest.raises(ValueError, match=r"first is the position of a sample, in \[0, 9\]"):
        coresets.k_center(torch.rand(10, 2), keep=0.5, first=first)


def test_first_and_classes_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="first"):
        coresets.k_center(torch.rand(10, 2), keep=0.5, first=0, labels=torch.arange(10) % 2, balance="class")


# -- contextual diversity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("given_as", ["logits", "probabilities"])
def test_contextual_diversity_is_k_center_on_the_symmetric_divergence(scale: float, given_as: str) -> None:
    logits = (scale * normal(200, 6)).astype(np.float32)
    exact = probabilities(logits.astype(np.float64))
    outputs = torch.tensor(logits) if given_as == "logits" else tensor(exact)
    index = check(coresets.contextual_diversity(outputs, keep=0.3, seed=3), 200, 0.3)
    follows_the_farthest(index, exact, divergence, 1e-5 * max(scale, 0.1) ** 2 * 10)
    told = coresets.contextual_diversity(outputs, keep=0.3, seed=3, space=given_as).index.tolist()
    assert told == index


def test_certain_outputs_stay_finite() -> None:
    for outputs in (torch.eye(5).repeat(6, 1), 1e4 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0))):
        index = check(coresets.contextual_diversity(outputs, keep=0.2, seed=1), 30, 0.2)
        assert len(outputs[index].argmax(dim=1).unique()) == 5


def test_what_outputs_are_can_be_told() -> None:
    outputs = torch.rand(20, 3)
    with pytest.raises(ValueError, match="no probabilities"):
        coresets.contextual_diversity(outputs, keep=0.5, space="probabilities")
    with pytest.raises(ValueError, match="space"):
        coresets.contextual_diversity(outputs, keep=0.5, space="logit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floor"):
        coresets.contextual_diversity(outputs, keep=0.5, floor=0.0)


# -- herding ---------------------------------------------------------------------------------------------------------


def herding_by_hand(rows: np.ndarray, index: list[int], tolerance: float) -> None:
    """Each choice minimises ‖(i + 1)·μ − Σ chosen − h‖ over what is left."""
    mean, total = rows.mean(axis=0), np.zeros(rows.shape[1])
    left = set(range(len(rows)))
    for i, choice in enumerate(index):
        value = {j: float(np.linalg.norm((i + 1) * mean - total - rows[j])) for j in left}
        assert value[choice] <= min(value.values()) + tolerance
        left.remove(choice)
        total += rows[choice]


@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("kind", ["normal", "duplicates"])
def test_herding_equals_its_definition(shift: float, kind: str) -> None:
    rows = normal(120, 6)
    if kind == "duplicates":
        rows = rows[np.arange(120) // 8]
    rows = (rows + shift).astype(np.float32)
    labels = np.array([0] * 60 + [4] * 40 + [9] * 20)
    order = np.random.default_rng(1).permutation(120)
    rows, labels = rows[order], labels[order]
    index = check(coresets.herding(torch.tensor(rows), keep=0.25, labels=torch.tensor(labels), seed=5), 120, 0.25)
    assert labels[index].tolist() == [0] * 15 + [4] * 10 + [9] * 5  # every class keeps its share
    for c in (0, 4, 9):
        members = np.flatnonzero(labels == c).tolist()
        herding_by_hand(rows[members].astype(np.float64), [members.index(i) for i in index if labels[i] == c], 1e-4)


def test_herding_keeps_the_mean_better_than_chance() -> None:
    rows = tensor(normal(500, 10))
    labels = torch.zeros(500).int()
    selections = [coresets.herding(rows, keep=0.1, labels=labels)]
    selections += [coresets.random(500, keep=0.1, seed=seed) for seed in range(100)]
    herded, *chance = (float((rows[one.index].mean(dim=0) - rows.mean(dim=0)).norm()) for one in selections)
    assert herded < sum(chance) / len(chance) / 10


def test_herding_gives_equal_places_where_asked() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10)
    index = coresets.herding(torch.rand(40, 3), keep=0.5, labels=labels, balance="class").index
    assert torch.bincount(labels[index]).tolist() == [10, 10]


def test_odd_places_go_to_the_largest_fractions() -> None:
    labels = torch.tensor([0] * 11 + [1] * 9 + [2] * 10)  # of 4 places 1.47, 1.2 and 1.33
    for seed in range(5):
        index = coresets.herding(torch.rand(30, 3), keep=4 / 30, labels=labels, seed=seed).index
        assert torch.bincount(labels[index]).tolist() == [2, 1, 1]


# -- moderate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", ["mean", "median"])
@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize("size", [60, 61])
def test_moderate_equals_its_definition(center: str, balance: str, size: int) -> None:
    rows, labels = normal(size, 5).astype(np.float32), np.random.default_rng(3).integers(0, 3, size) * 2
    index = check(
        coresets.moderate(
            torch.tensor(rows),
            keep=0.3,
            labels=torch.tensor(labels),
            center=center,
            balance=balance,  # type: ignore[arg-type]
        ),
        size,
        0.3,
    )
    distance = np.zeros(size)
    for c in (0, 2, 4):
        mine = rows[labels == c].astype(np.float64)
        middle = np.mean(mine, axis=0) if center == "mean" else np.median(mine, axis=0)
        distance[labels == c] = np.linalg.norm(mine - middle, axis=1)
    groups = [np.arange(size)] if balance == "none" else [np.flatnonzero(labels == c) for c in (0, 2, 4)]
    for group in groups:
        places = len(set(index) & set(group.tolist()))
        away = np.abs(distance[group] - np.median(distance[group]))
        assert set(index) & set(group.tolist()) == set(group[np.argsort(away)[:places]].tolist())
        if balance == "class":
            assert places in (6, 7)
            assert len(index) == 18 or size == 61


def test_moderate_names_a_wrong_centre() -> None:
    with pytest.raises(ValueError, match="center"):
        coresets.moderate(torch.rand(4, 2), keep=0.5, labels=torch.zeros(4).int(), center="middle")  # type: ignore[arg-type]


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECTORS)
def test_features_that_are_none_are_refused(name: str) -> None:
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
        SELECTORS[name](np.ones((4, 2)), keep=0.5, labels=labels)
    with pytest.raises(ValueError, match="keep"):
        SELECTORS[name](torch.rand(4, 2), keep=1.5, labels=labels)


@pytest.mark.parametrize("name", ["k_center", "herding"])
def test_features_too_large_to_square_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="overflow"):
        SELECTORS[name](1e30 * torch.randn(4, 2), keep=0.5, labels=torch.zeros(4).int())


@pytest.mark.parametrize("name", SELECTORS)
def test_labels_must_be_there_and_fit(name: str) -> None:
    selector, features = SELECTORS[name], torch.rand(4, 2)
    if name in GREEDY:
        with pytest.raises(ValueError, match="needs labels"):
            selector(features, keep=0.5, balance="class")
    else:
        with pytest.raises(ValueError, match=f"{name} needs labels"):
            selector(features, keep=0.5, labels=None)
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
