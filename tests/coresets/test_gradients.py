"""Selection from last-layer gradients, against slow references that store every gradient."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataprune import coresets
from dataprune.coresets import budget, influences
from dataprune.coresets.facility_location import _cover, _Distances
from dataprune.coresets.least_squares import Fit

few = settings(max_examples=15, deadline=None, derandomize=True)


def problem(seed: int, size: int, classes: int = 3, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Errors, features and labels; every class occurs where there are enough samples."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(size) % classes
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64) * 2
    errors = logits.softmax(1)
    errors[torch.arange(size), labels] -= 1
    return errors, features, labels


def stored(errors: Tensor, features: Tensor) -> np.ndarray:
    """(N, C·(D+1)) gradients."""
    right = np.concatenate([features.numpy(), np.ones((len(features), 1))], axis=1)
    return np.einsum("nc,nd->ncd", errors.numpy(), right).reshape(len(errors), -1)


def shares(labels: Tensor, count: int) -> dict[int, int]:
    """Places per class as the selectors give them with seed 0."""
    classes, sizes = labels.unique(return_counts=True)
    generator = torch.Generator().manual_seed(0)
    places = budget.proportional_places(classes, sizes.tolist(), count, generator)
    return dict(zip(classes.tolist(), places, strict=True))


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
def test_exact_counts_in_ascending_order_whatever_the_global_seed(name: str, seed: int, size: int, keep: float) -> None:
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
        (errors, broken, {}, ValueError, "1 rows of .*features"),
        (errors, features[:-1], {}, ValueError, "12 rows|11"),
        (errors.int(), features, {}, TypeError, "floating"),
        (errors[0], features, {}, ValueError, "matrix"),
        (errors, features, {"labels": labels[:-1]}, ValueError, "one class id"),
        (errors, features, {"labels": labels.double()}, TypeError, "class ids"),
        (errors, features, {"labels": labels + 1}, ValueError, "1 to 3"),
        (errors, features, {"keep": 0.0}, ValueError, "fraction kept"),
        (errors, features, {"keep": 1.5}, ValueError, "fraction kept"),
        (errors, features, {"max_memory": 100}, ValueError, "max_memory"),
    ]
    for e, h, options, error, message in cases:
        with pytest.raises(error, match=message):
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


# CRAIG


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("memory", [2**30, 30_000])
def test_craig_is_the_plain_greedy_algorithm(seed: int, memory: int) -> None:
    errors, features, labels = problem(seed, 120, classes=2)
    g = stored(errors, features)
    distance = np.linalg.norm(g[:, None] - g[None], axis=2)
    everyone = torch.arange(120)
    chosen, sizes = _cover(_Distances(errors, features, everyone, memory), 30)
    picks = chosen.tolist()
    for place, pick in enumerate(picks):
        costs = [distance[:, [*picks[:place], j]].min(1).sum() for j in range(120)]
        # mutual neighbours gain the same, so that the best sample is not the only one
        assert costs[pick] == pytest.approx(min(costs), rel=1e-9)
    assert sizes.tolist() == np.bincount(distance[:, picks].argmin(1), minlength=30).tolist()

    selection = coresets.craig(errors, features, keep=0.25, labels=labels, max_memory=memory)
    for label in (0, 1):
        members = everyone[labels == label]
        picks = selection.index[labels[selection.index] == label]
        expected = np.bincount(distance[members][:, picks].argmin(1), minlength=15)
        assert selection.weight[labels[selection.index] == label].tolist() == expected.tolist()
    assert selection.weight.sum() == 120


def test_craig_stores_distances_only_where_they_fit() -> None:
    errors, features, _ = problem(0, 60)
    assert _Distances(errors, features, torch.arange(60), 2**30).matrix is not None
    assert _Distances(errors, features, torch.arange(60), 30_000).matrix is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # submodlib asks scipy for names that are on their way out
def test_craig_agrees_with_submodlib(seed: int) -> None:
    reason = "the oracle for facility location is not installed: pip install submodlib-py"
    submodlib = pytest.importorskip("submodlib", reason=reason, exc_type=ImportError)
    errors, features, _ = problem(seed, 50)
    g = stored(errors, features)
    distance = np.linalg.norm(g[:, None] - g[None], axis=2)
    likeness = distance.max() - distance
    function = submodlib.FacilityLocationFunction(n=50, mode="dense", sijs=likeness, separate_rep=False)
    expected = [i for i, _ in function.maximize(budget=10, optimizer="NaiveGreedy", show_progress=False)]
    index = coresets.craig(errors, features, keep=0.2, labels=torch.zeros(50, dtype=torch.int64)).index.tolist()
    assert likeness[:, index].max(1).sum() == pytest.approx(likeness[:, expected].max(1).sum(), rel=1e-5)
    assert len(set(index) & set(expected)) >= 8  # mutual neighbours are alike to the gain


# GradMatch


@pytest.mark.parametrize("seed", range(3))
def test_grad_match_without_constraint_is_scikit_learns_matching_pursuit(seed: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    errors, features, labels = problem(seed, 60)
    g = stored(errors, features)
    weight = linear_model.orthogonal_mp(g.T, g.sum(0), n_nonzero_coefs=6)
    selection = coresets.grad_match(
        errors, features, keep=0.1, labels=labels, penalty=0.0, nonnegative=False, balance="none"
    )
    assert selection.index.tolist() == np.flatnonzero(weight).tolist()
    np.testing.assert_allclose(selection.weight.numpy(), weight[weight != 0], rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_grad_match_weights_are_the_nonnegative_least_squares_of_each_class(seed: int, penalty: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    errors, features, labels = problem(seed, 60)
    selection = coresets.grad_match(errors, features, keep=0.3, labels=labels, penalty=penalty)
    index, weight = selection.index, selection.weight
    gradients = stored(errors, features)
    for label in range(3):
        places = (labels[index] == label).numpy()
        assert places.sum() == 6
        members = gradients[(labels == label).numpy()]
        rest = members.sum(0)
        picks: list[int] = []
        solution = np.zeros(0)
        for _ in range(6):  # matching pursuit with a fit by scipy
            score = members @ rest
            score[picks] = -np.inf
            picks.append(int(score.argmax()))
            a = members[picks].T
            square = np.vstack([a, np.sqrt(penalty) * np.eye(len(picks))])
            solution = optimize.nnls(square, np.concatenate([members.sum(0), np.zeros(len(picks))]))[0]
            rest = members.sum(0) - a @ solution
        positions = np.flatnonzero((labels == label).numpy())[picks]
        assert sorted(positions.tolist()) == index.numpy()[places].tolist()
        np.testing.assert_allclose(weight.numpy()[places], solution[np.argsort(positions)], rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_fit_is_scipys_nonnegative_least_squares(seed: int, penalty: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(12, 10)) + 0.5, random.normal(size=12)
    if seed % 3 == 0:
        a[:, 7] = a[:, 2]
    fit = Fit(10, penalty, nonnegative=True)
    for column in range(10):
        fit.add(torch.from_numpy(a[:, : column + 1].T @ a[:, column]), float(a[:, column] @ b))
    square = np.vstack([a, np.sqrt(penalty) * np.eye(10)])
    best = optimize.nnls(square, np.concatenate([b, np.zeros(10)]))[1]
    weight = fit.weight().numpy()
    assert weight.min() >= 0
    assert np.linalg.norm(square @ weight - np.concatenate([b, np.zeros(10)])) == pytest.approx(
        best, rel=1e-8, abs=1e-8
    )


def test_grad_match_of_everything_matches_exactly() -> None:
    errors, features, labels = problem(1, 9, width=6)
    weight = coresets.grad_match(errors, features, keep=1.0, labels=labels, penalty=0.0).weight
    torch.testing.assert_close(weight, torch.ones(9))
    with pytest.raises(ValueError, match="penalty"):
        coresets.grad_match(errors, features, keep=1.0, labels=labels, penalty=-1.0)
    with pytest.raises(ValueError, match="balance"):
        coresets.grad_match(errors, features, keep=1.0, labels=labels, balance="classes")  # type: ignore[arg-type]


# Glister


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize("step", [0.0, 0.3])
def test_glister_is_a_loop_over_a_real_last_layer(every: int, balance: str, step: float) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = torch.randn(3, 5, generator=generator, dtype=torch.float64)  # the bias is the last column

    def data(size: int) -> tuple[Tensor, Tensor]:
        return (
            torch.randn(size, 4, generator=generator, dtype=torch.float64),
            torch.randint(3, (size,), generator=generator),
        )

    def error(h: Tensor, y: Tensor, layer: Tensor) -> Tensor:
        return (h @ layer[:, :4].T + layer[:, 4]).softmax(1) - torch.nn.functional.one_hot(y, 3)

    (h, y), (h_val, y_val) = data(30), data(20)
    errors, gradients = error(h, y, layer), stored(error(h, y, layer), h)
    selection = coresets.glister(
        errors,
        h,
        keep=0.4,
        labels=y,
        val_errors=error(h_val, y_val, layer),
        val_features=h_val,
        step=step,
        every=every,
        balance=balance,  # type: ignore[arg-type]
    )
    left = shares(y, 12) if balance == "class" else dict.fromkeys(range(3), 12)
    chosen: list[int] = []
    while len(chosen) < 12:
        gain = gradients @ stored(error(h_val, y_val, layer), h_val).mean(0)
        open_ = [i for i in np.argsort(-gain).tolist() if i not in chosen and left[int(y[i])] > 0]
        for i in open_[: min(every, 12 - len(chosen))]:
            if left[int(y[i])] > 0:
                left[int(y[i])] -= 1
                chosen.append(i)
                layer = layer - step * torch.from_numpy(gradients[i]).reshape(3, 5)
    assert selection.index.tolist() == sorted(chosen)


def test_glister_moves_the_validation_gradient() -> None:
    errors, features, labels = problem(5, 60)
    options = {"keep": 0.5, "labels": labels, "val_errors": errors[:20], "val_features": features[:20]}
    still = coresets.glister(errors, features, step=0.0, **options)
    assert not torch.equal(coresets.glister(errors, features, step=0.5, **options).index, still.index)


def test_glister_refuses_bad_validation_data() -> None:
    errors, features, labels = problem(0, 12)
    good = {"keep": 0.5, "labels": labels, "val_errors": errors, "val_features": features}
    for options, message in [
        ({"val_errors": errors[:, :2]}, "val_errors has 2 columns"),
        ({"val_features": features[:, :2]}, "val_features has 2 columns"),
        ({"val_errors": errors + 0.5}, "softmax"),
        ({"val_errors": errors[:4]}, "val_errors has 4 rows"),
        ({"every": 0}, "every"),
        ({"step": -1.0}, "step"),
        ({"balance": "all"}, "balance"),
    ]:
        with pytest.raises(ValueError, match=message):
            coresets.glister(errors, features, **{**good, **options})


# Influence


def explicit_hessian(p: Tensor, features: Tensor, damping: float) -> Tensor:
    right = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    hessian = torch.einsum("nab,nc,nd->acbd", curvature, right, right) / len(p)
    size = hessian.shape[0] * hessian.shape[1]
    return hessian.reshape(size, size) + damping * torch.eye(size, dtype=p.dtype)


def train(features: Tensor, labels: Tensor, damping: float, share: Tensor, layer: Tensor | None = None) -> Tensor:
    """The last layer (C, D + 1) that minimises Σ share·L + damping/2·‖θ‖², by Newton's method."""
    right = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    layer = torch.zeros(3, right.shape[1], dtype=features.dtype) if layer is None else layer
    for _ in range(30):
        p = (right @ layer.T).softmax(1)
        e = p - torch.nn.functional.one_hot(labels, 3)
        slope = (e * share[:, None]).T @ right + damping * layer
        if slope.abs().max() < 1e-13:
            break
        curvature = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) * share[:, None, None]
        hessian = torch.einsum("nab,nc,nd->acbd", curvature, right, right).reshape(slope.numel(), -1)
        hessian += damping * torch.eye(slope.numel(), dtype=features.dtype)
        layer = layer - torch.linalg.solve(hessian, slope.flatten()).view_as(layer)
    return layer


def trained(seed: int, size: int, damping: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, labels, errors of a last layer at its optimum, and the layer."""
    _, features, labels = problem(seed, size)
    features[:, :3] += torch.nn.functional.one_hot(labels, 3)
    layer = train(features, labels, damping, torch.full((size,), 1 / size, dtype=torch.float64))
    errors = (features @ layer[:, :-1].T + layer[:, -1]).softmax(1) - torch.nn.functional.one_hot(labels, 3)
    return features, labels, errors, layer


@pytest.mark.parametrize(("solver", "least"), [("conjugate", 0.98), ("kronecker", 0.9)])
def test_influence_predicts_refits_without_a_sample(solver: str, least: float) -> None:
    size, damping = 60, 0.05
    features, labels, errors, layer = trained(0, size, damping)
    known = influences.influences(errors, features, labels, damping, solver).explicit()
    moved = []
    for i in range(size):
        share = torch.full((size,), 1 / size, dtype=torch.float64)
        share[i] = 0
        moved.append(train(features, labels, damping, share, layer) - layer)
    truth = torch.stack(moved)
    cosine = torch.nn.functional.cosine_similarity(truth.flatten(1), -known.flatten(1))
    assert float(cosine.min()) > least  # the sign too
    norms = torch.stack([truth.flatten(1).norm(dim=1), known.flatten(1).norm(dim=1)])
    assert float(torch.corrcoef(norms)[0, 1]) > least
    assert float(torch.corrcoef(torch.stack([truth.flatten(), -known.flatten()]))[0, 1]) > least


def test_influence_by_conjugate_gradients_is_that_of_the_explicit_hessian() -> None:
    errors, features, labels = problem(2, 150)  # more than one block
    p = errors + torch.nn.functional.one_hot(labels, 3)
    gradients = torch.from_numpy(stored(errors, features))
    expected = -torch.linalg.solve(explicit_hessian(p, features, 1e-3), gradients.T).T / 150
    known = influences.influences(errors, features, labels, 1e-3, "conjugate")
    torch.testing.assert_close(known.explicit().flatten(1), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(known.squares(), expected.square().sum(1), rtol=1e-6, atol=1e-12)


def test_influence_by_kronecker_factors_is_exact_where_the_hessian_factorises() -> None:
    _, features, labels = problem(2, 40)
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).repeat(40, 1)  # alike for all: H is a Kronecker product
    errors = p - torch.nn.functional.one_hot(labels, 3)
    gradients = torch.from_numpy(stored(errors, features))
    expected = -torch.linalg.solve(explicit_hessian(p, features, 0.01), gradients.T).T / 40
    known = influences.influences(errors, features, labels, 0.01)
    torch.testing.assert_close(known.explicit().flatten(1), expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(known.squares(), expected.square().sum(1))
    total = known.of(3)
    torch.testing.assert_close(known.dots(total[None])[0], expected @ expected[3])


@pytest.mark.parametrize("solver", ["kronecker", "conjugate"])
@pytest.mark.parametrize(("short", "ahead"), [(256, 16), (4, 16), (1, 16), (4, 1)])  # few: steps are taken back
def test_influence_leaves_out_greedily(solver: str, short: int, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influences, "_SHORT", short)
    monkeypatch.setattr(influences, "_AHEAD", ahead)
    errors, features, labels = problem(4, 200)
    rows = influences.influences(errors, features, labels, 0.01, solver).explicit().flatten(1).numpy()
    out: list[int] = []
    norms: list[float] = []
    total = np.zeros(rows.shape[1])
    for _ in range(180):
        lengths = np.linalg.norm(total + rows, axis=1)
        lengths[out] = np.inf
        out.append(int(lengths.argmin()))
        norms.append(lengths.min())
        total = total + rows[out[-1]]
    options = {"labels": labels, "damping": 0.01, "solver": solver}
    index = coresets.influence(errors, features, keep=0.1, **options).index  # type: ignore[arg-type]
    assert index.tolist() == sorted(set(range(200)) - set(out))
    epsilon = norms[60] * (1 + 1e-9)
    stop = next(i for i, norm in enumerate(norms) if norm > epsilon)
    index = coresets.influence(errors, features, keep=0.1, epsilon=epsilon, **options).index  # type: ignore[arg-type]
    assert index.tolist() == sorted(set(range(200)) - set(out[:stop]))
    assert np.linalg.norm(rows[out[:stop]].sum(0)) <= epsilon
    assert len(coresets.influence(errors, features, keep=0.1, epsilon=0.0, **options).index) == 200  # type: ignore[arg-type]


def test_influence_refuses_what_is_no_softmax() -> None:
    errors, features, labels = problem(0, 12)
    for options, message in [
        ({"labels": labels.flip(0)}, "softmax"),
        ({"damping": 0.0}, "damping"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"every": 0}, "every"),
        ({"solver": "exact"}, "solver"),
    ]:
        with pytest.raises(ValueError, match=message):
            coresets.influence(errors, features, **{"keep": 0.5, "labels": labels, **options})


def test_influence_refuses_what_overflows() -> None:
    errors, features, labels = problem(0, 12)
    with pytest.raises(ValueError, match="overflow"):
        coresets.influence(errors.float(), 1e30 * features.float(), keep=0.5, labels=labels)
