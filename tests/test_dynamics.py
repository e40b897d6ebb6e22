"""Statistics against loops in float64 over whole trajectories, and the recorder that streams them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import Pool, RankError
from torch import Tensor

import dataprune
from dataprune import CheckpointError, dynamics
from dataprune.dynamics import Recorder, Statistic

# -- references: from the rows (t, C) of a sample's presentations, their epochs, its label and features (t, D) ---------


class Seen(NamedTuple):
    """All presentations of one sample."""

    z: np.ndarray  # (t, C) logits
    epochs: list[int]
    y: int
    h: np.ndarray  # (t, D)

    def before(self, until: int | None) -> Seen:
        kept = [i for i, epoch in enumerate(self.epochs) if until is None or epoch < until]
        return Seen(self.z[kept], [self.epochs[i] for i in kept], self.y, self.h[kept])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def error(row: np.ndarray, y: int) -> float:
    p = softmax(row)
    p[y] -= 1
    return math.sqrt(sum(v * v for v in p))


def lead(row: np.ndarray, y: int) -> float:
    return float(row[y] - max(row[c] for c in range(len(row)) if c != y))


def r_forgetting(seen: Seen, never: str, most: int) -> float:
    right = [int(np.argmax(row)) == seen.y for row in seen.z]
    if not any(right) and never == "last":
        return most
    return sum(right[t] and not right[t + 1] for t in range(len(right) - 1))


def r_el2n(seen: Seen, epochs: int = 10, reduce: str = "mean") -> float:
    values = [error(row, seen.y) for row in seen.before(epochs).z]
    if not values:
        return math.nan
    return values[-1] if reduce == "last" else float(np.mean(values))


def r_grand(seen: Seen) -> float:
    """The norm of the full outer product e ⊗ [h, 1], written out."""
    values = []
    for row, h in zip(seen.z, seen.h, strict=True):
        e = softmax(row)
        e[seen.y] -= 1
        values.append(np.linalg.norm(np.outer(e, [*h, 1.0])))
    return float(np.mean(values))


def r_aum(seen: Seen, space: str = "logits") -> float:
    return -float(np.mean([lead(row if space == "logits" else softmax(row), seen.y) for row in seen.z]))


def r_entropy(seen: Seen) -> float:
    return -sum(p * math.log(p) for p in softmax(seen.z[-1]) if p > 0)


def r_least_confidence(seen: Seen) -> float:
    return 1 - float(softmax(seen.z[-1]).max())


def r_margin(seen: Seen) -> float:
    second, first = sorted(softmax(seen.z[-1]))[-2:]
    return -(first - second)


def r_loss(seen: Seen) -> float:
    return -math.log(softmax(seen.z[-1])[seen.y])


def r_dyn_unc(seen: Seen, window: int = 10, until: int | None = None, difficulty: bool = False) -> float:
    p = [softmax(row)[seen.y] for row in seen.before(until).z]
    values = []
    for begin in range(len(p) - window + 1):
        part = p[begin : begin + window]
        middle = sum(part) / window
        deviation = math.sqrt(sum((one - middle) ** 2 for one in part) / (window - 1))
        values.append(deviation * (1 - middle) if difficulty else deviation)
    return float(np.mean(values)) if values else math.nan


def r_dual(seen: Seen, window: int = 10, until: int = 30) -> float:
    return r_dyn_unc(seen, window, until, difficulty=True)


def r_tdds(
    seen: Seen,
    window: int = 10,
    decay: float | None = 0.9,
    until: int | None = None,
    difference: str = "kl",
    magnitude: bool = True,
    variant: str = "paper",
) -> float:
    """Eq. 9 to 12 with all probabilities at hand, one window after another."""
    official = variant == "official"
    small = 1e-8 if official else 0.0
    kept = seen.before(until)
    p = [softmax(row) for row in kept.z]
    y = seen.y
    scores = []
    for begin in range(len(p) - window + 1):
        delta = []
        for t in range(begin, begin + window - 1):
            if difference == "kl":
                terms = [
                    b * (math.log(b + small) - math.log(a + small))
                    for a, b in zip(p[t], p[t + 1], strict=True)
                    if b > 0
                ]
                delta.append(sum(abs(one) for one in terms) if official and magnitude else sum(terms))
            elif difference == "ce":
                delta.append(math.log(p[t + 1][y] + small) - math.log(p[t][y] + small))
        if difference == "el2n":
            delta = [error(kept.z[t], y) for t in range(begin, begin + window)]
        if magnitude:
            delta = [abs(one) for one in delta]
        middle = sum(delta) / len(delta)
        squares = sum((one - middle) ** 2 for one in delta)
        scores.append(math.sqrt(squares) if official else squares)
    if not scores:
        return math.nan
    if decay is None:
        return float(np.mean(scores))
    total = 0.0
    for one in scores:
        total = decay * one + (1 - decay) * total
    return total


Reference = Callable[[Seen], float]
TDDS: list[dict[str, Any]] = [
    {"window": window, "decay": decay, "difference": difference, "magnitude": magnitude, "variant": variant}
    for window, decay in ((4, 0.9), (3, None))
    for difference in ("kl", "ce", "el2n")
    for magnitude in (True, False)
    for variant in ("paper", "official")
]
ROWS: dict[str, tuple[Statistic, Reference]] = {
    "el2n": (dynamics.el2n(), r_el2n),
    "el2n of 3": (dynamics.el2n(epochs=3), lambda seen: r_el2n(seen, 3)),
    "el2n, last of 3": (dynamics.el2n(3, "last"), lambda seen: r_el2n(seen, 3, "last")),
    "grand": (dynamics.grand(), r_grand),
    "aum": (dynamics.aum(), r_aum),
    "aum of probabilities": (dynamics.aum("probabilities"), lambda seen: r_aum(seen, "probabilities")),
    "entropy": (dynamics.entropy(), r_entropy),
    "least confidence": (dynamics.least_confidence(), r_least_confidence),
    "margin": (dynamics.margin(), r_margin),
    "loss": (dynamics.loss(), r_loss),
    "dyn_unc": (dynamics.dyn_unc(), r_dyn_unc),
    "dyn_unc of 4": (dynamics.dyn_unc(window=4), lambda seen: r_dyn_unc(seen, 4)),
    "dual": (dynamics.dual(), r_dual),
    "dual of 3 until 7": (dynamics.dual(window=3, until=7), lambda seen: r_dual(seen, 3, 7)),
    "tdds": (dynamics.tdds(), r_tdds),
    "tdds until 6": (dynamics.tdds(4, until=6), lambda seen: r_tdds(seen, 4, until=6)),
    "tdds, decay 1": (dynamics.tdds(4, decay=1.0), lambda seen: r_tdds(seen, 4, 1.0)),
} | {
    f"tdds {number}": (dynamics.tdds(**options), lambda seen, options=options: r_tdds(seen, **options))
    for number, options in enumerate(TDDS)
}
FORGETTING = {"forgotten": dynamics.forgetting(), "forgotten, zero": dynamics.forgetting(never="zero")}


# -- runs ------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Whole trajectories: epochs of batches of positions, and what a model said of them."""

    z: Tensor  # (T, N, C)
    y: Tensor  # (N,)
    h: Tensor  # (T, N, D)
    batches: list[list[Tensor]]  # positions

    @property
    def size(self) -> int:
        return len(self.y)


def a_run(
    epochs: int = 14, size: int = 12, classes: int = 5, *, seed: int = 0, drop: float = 0.0, batch: int = 5
) -> Run:
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(epochs):
        order = torch.randperm(size, generator=draw)
        order = order[torch.rand(size, generator=draw) >= drop]
        batches.append(list(order.split(batch)) if len(order) else [])
    return Run(
        2 * torch.randn(epochs, size, classes, generator=draw),
        torch.randint(0, classes, (size,), generator=draw),
        torch.randn(epochs, size, 3, generator=draw),
        batches,
    )


def feed(recorder: Recorder, run: Run, epochs: range | None = None) -> Recorder:
    for epoch in epochs or range(len(run.batches)):
        for index in run.batches[epoch]:
            recorder.update(index, run.z[epoch, index], run.y[index], run.h[epoch, index])
        recorder.end_epoch()
    return recorder


def trajectories(run: Run) -> list[Seen]:
    rows: list[list[tuple[int, int]]] = [[] for _ in range(run.size)]
    for epoch, batches in enumerate(run.batches):
        for index in batches:
            for one in index.tolist():
                rows[one].append((epoch, one))
    z, h = run.z.double().numpy(), run.h.double().numpy()
    return [
        Seen(
            np.array([z[epoch, n] for epoch, n in mine]).reshape(-1, z.shape[2]),
            [epoch for epoch, _ in mine],
            int(run.y[n]),
            np.array([h[epoch, n] for epoch, n in mine]).reshape(-1, h.shape[2]),
        )
        for n, mine in enumerate(rows)
    ]


def everything(size: int, **options: Any) -> Recorder:
    return Recorder(size, {name: one for name, (one, _) in ROWS.items()} | FORGETTING, **options)


def check_all(run: Run, scores: dict[str, Tensor], *, rtol: float = 2e-4, atol: float = 2e-5) -> None:
    seen = trajectories(run)
    most = max((len(one.epochs) for one in seen), default=0)
    wanted = {
        name: [reference(one) if one.epochs else math.nan for one in seen] for name, (_, reference) in ROWS.items()
    }
    wanted["forgotten"] = [r_forgetting(one, "last", most) if one.epochs else math.nan for one in seen]
    wanted["forgotten, zero"] = [r_forgetting(one, "zero", most) if one.epochs else math.nan for one in seen]
    assert scores.keys() == wanted.keys()
    for name, score in scores.items():
        assert score.dtype == torch.float32 and score.shape == (run.size,)
        torch.testing.assert_close(
            score.double(),
            torch.tensor(wanted[name], dtype=torch.float64),
            rtol=rtol,
            atol=atol,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_every_statistic_equals_its_formula() -> None:
    run = a_run()
    check_all(run, feed(everything(run.size), run).scores())


@pytest.mark.parametrize("seed", range(3))
def test_samples_may_miss_epochs(seed: int) -> None:
    run = a_run(drop=0.4, seed=seed)
    run.batches[3] = []  # an epoch of nothing
    run = run._replace(batches=[[index[index != 7] for index in batches] for batches in run.batches])  # never recorded
    scores = feed(everything(run.size), run).scores()
    check_all(run, scores)
    assert all(score[7].isnan() for score in scores.values())


def test_shorter_than_a_window() -> None:
    run = a_run(epochs=2)
    scores = feed(everything(run.size), run).scores()
    check_all(run, scores)
    for name in ("dyn_unc", "dual", "tdds", "tdds until 6"):
        assert scores[name].isnan().all()


@pytest.mark.parametrize("length", [3, 4, 5])
def test_the_first_windows_are_there_as_soon_as_they_are_full(length: int) -> None:
    run = a_run(epochs=length)
    scores = feed(everything(run.size), run).scores()
    check_all(run, scores)
    assert scores["tdds until 6"].isfinite().all() == (length >= 4)


def test_degenerate_runs() -> None:
    run = a_run()
    ties = run._replace(z=torch.zeros_like(run.z))
    scores = feed(everything(run.size), ties).scores()
    check_all(ties, scores)
    assert torch.equal(scores["tdds"], torch.zeros(run.size))
    constant = run._replace(z=run.z[:1].expand_as(run.z))
    check_all(constant, feed(everything(run.size), constant).scores())
    one_class = run._replace(y=torch.full_like(run.y, 2))
    check_all(one_class, feed(everything(run.size), one_class).scores())
    alone = a_run(size=1, classes=2)
    check_all(alone, feed(everything(1), alone).scores())


def test_extreme_logits_stay_finite() -> None:
    run = a_run(classes=3)
    run = run._replace(z=run.z.sign() * 1e4)
    scores = feed(everything(run.size), run).scores()
    assert all(score.isfinite().all() for score in scores.values())


def test_an_excluded_class_changes_nothing() -> None:
    run = a_run()
    excluded = torch.cat([run.z, torch.full_like(run.z[:, :, :1], -math.inf)], dim=2)
    with_it = feed(everything(run.size), run._replace(z=excluded)).scores()
    for name, score in feed(everything(run.size), run).scores().items():
        torch.testing.assert_close(with_it[name], score, msg=lambda text, name=name: f"{name}: {text}")


def test_never_learned_samples_come_last_or_count_zero() -> None:
    y = torch.tensor([0, 0, 0])
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    recorder = Recorder(4, FORGETTING)
    for first, second in ((right, wrong), (wrong, wrong), (right, wrong), (wrong, wrong)):
        recorder.update(torch.arange(3), torch.stack([first, second, right]), y)
        recorder.end_epoch()
    scores = recorder.scores()
    assert scores["forgotten"].tolist()[:3] == [2, 4, 0]
    assert scores["forgotten, zero"].tolist()[:3] == [2, 0, 0]
    assert scores["forgotten"][3].isnan()


def test_a_change_of_mind_among_wrong_classes_forgets_nothing() -> None:
    recorder = Recorder(1, FORGETTING)
    for said in (1, 2, 1, 0, 0):
        recorder.update(torch.tensor([0]), torch.eye(3)[[said]], torch.tensor([0]))
        recorder.end_epoch()
    assert recorder.scores()["forgotten"].item() == 0


def test_grand_is_the_gradient_of_the_last_layer() -> None:
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(6, 4)
    h, y = torch.randn(5, 6, generator=draw), torch.randint(0, 4, (5,), generator=draw)
    recorder = Recorder(5, {"grand": dynamics.grand()})
    recorder.update(torch.arange(5), layer(h), y, h)
    for n, score in enumerate(recorder.scores()["grand"]):
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(h[n : n + 1]), y[n : n + 1]).backward()
        gradients = torch.cat([one.grad.flatten() for one in layer.parameters() if one.grad is not None])
        torch.testing.assert_close(score, gradients.norm())


# -- order and repetition --------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 12))
def test_the_order_within_an_epoch_does_not_matter(seed: int, batch: int) -> None:
    run = a_run(epochs=6, drop=0.2)
    draw = torch.Generator().manual_seed(seed)
    shuffled = []
    for batches in run.batches:
        index = torch.cat(batches)
        shuffled.append(list(index[torch.randperm(len(index), generator=draw)].split(batch)))
    other = feed(everything(run.size), run._replace(batches=shuffled)).scores()
    for name, score in feed(everything(run.size), run).scores().items():
        torch.testing.assert_close(other[name], score, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_a_repeated_index_counts_in_order_within_and_across_batches() -> None:
    """Five presentations in one epoch, in whatever batches, are those of five epochs."""
    draw = torch.Generator().manual_seed(0)
    z, h, y = torch.randn(6, 4, generator=draw), torch.randn(6, 2, generator=draw), 1
    statistics = {
        "forgotten": dynamics.forgetting(),
        "aum": dynamics.aum(),
        "loss": dynamics.loss(),
        "dyn_unc": dynamics.dyn_unc(3),
        **{f"tdds {number}": dynamics.tdds(**options) for number, options in enumerate(TDDS)},
    }

    def scores(batches: list[list[int]]) -> dict[str, Tensor]:
        recorder = Recorder(3, statistics)
        for rows in batches:
            index = torch.tensor([2, *[1] * len(rows)])
            logits = torch.cat([torch.zeros(1, 4), z[rows]])
            recorder.update(index, logits, torch.full((len(index),), y), torch.zeros(len(index), 2))
        recorder.end_epoch()
        return recorder.scores()

    alone = scores([[0], [1], [2], [3], [4], [5]])
    seen = Seen(z.double().numpy(), [0] * 6, y, h.double().numpy())
    torch.testing.assert_close(alone["tdds 0"][1].item(), r_tdds(seen, **TDDS[0]), rtol=1e-4, atol=1e-6)
    for batches in ([[0, 1, 2, 3, 4, 5]], [[0, 1], [2], [3, 4, 5]]):
        for name, score in scores(batches).items():
            torch.testing.assert_close(score[1], alone[name][1], msg=lambda text, name=name: f"{name}: {text}")


def test_recording_detaches_and_leaves_the_batch_alone() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    outputs = logits * 1
    kept = outputs.detach().clone()
    recorder = everything(3)
    recorder.update(torch.arange(3), outputs, torch.zeros(3, dtype=torch.int64), torch.randn(3, 2, requires_grad=True))
    assert torch.equal(outputs, kept)
    assert not any(score.requires_grad for score in recorder.scores().values())
    outputs.sum().backward()


def test_later_writes_to_a_batch_do_not_reach_the_recorder() -> None:
    index, logits = torch.tensor([0, 1]), torch.randn(2, 3)
    recorder = Recorder(3, {"loss": dynamics.loss(), "aum": dynamics.aum()})
    recorder.update(index, logits, torch.tensor([0, 1]))
    index.fill_(2)
    logits.zero_()
    assert recorder.scores()["loss"].isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_of_outputs(dtype: torch.dtype) -> None:
    run = a_run()
    run = run._replace(z=run.z.to(dtype), h=run.h.to(dtype))
    check_all(run._replace(z=run.z.double(), h=run.h.double()), feed(everything(run.size), run).scores())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_other_whole_numbers(dtype: torch.dtype) -> None:
    run = a_run()
    recorder = everything(run.size)
    for epoch, batches in enumerate(run.batches):
        for index in batches:
            recorder.update(index.to(dtype), run.z[epoch, index], run.y[index].to(dtype), run.h[epoch, index])
        recorder.end_epoch()
    check_all(run, recorder.scores())


# -- memory ----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_epochs() -> None:
    run = a_run(epochs=40, size=30, classes=7)
    recorder, held = everything(run.size), []
    for epoch in range(40):
        feed(recorder, run, range(epoch, epoch + 1))
        held.append(recorder.nbytes)
    assert len(set(held)) == 1


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.float16, 2)])
def test_tdds_keeps_a_row_and_a_window(dtype: torch.dtype, width: int) -> None:
    run = a_run(epochs=9, size=30, classes=7)
    recorder = feed(Recorder(run.size, {"tdds": dynamics.tdds(window=5)}, dtype=dtype), run)
    assert recorder.nbytes == 30 * (7 * width + 4 * 5 + 8)


def test_the_bytes_that_the_statistics_say() -> None:
    said = {
        dynamics.forgetting(): 10, dynamics.el2n(): 8, dynamics.el2n(reduce="last"): 4, dynamics.grand(): 8,
        dynamics.aum(): 8, dynamics.entropy(): 4, dynamics.least_confidence(): 4, dynamics.margin(): 4,
        dynamics.loss(): 4, dynamics.dyn_unc(): 52, dynamics.dual(): 52, dynamics.tdds(): 48,
        dynamics.tdds(difference="ce"): 52, dynamics.tdds(difference="el2n"): 52,
    }  # fmt: skip
    for statistic, size in [(one, size) for one, size in said.items()]:
        assert Recorder(100, {"one": statistic}).nbytes == 100 * size, statistic.name


def test_float16_rows_err_as_little_as_the_docstring_says() -> None:
    draw = torch.Generator().manual_seed(0)
    size, classes = 500, 100
    y = torch.randint(0, classes, (size,), generator=draw)
    z = torch.randn(size, classes, generator=draw)
    recorders = [
        Recorder(size, {"tdds": dynamics.tdds(), "official": dynamics.tdds(variant="official")}, dtype=dtype)
        for dtype in (torch.float32, torch.float16)
    ]
    for _ in range(30):
        z = z + 0.5 * torch.randn(size, classes, generator=draw)
        z[torch.arange(size), y] += 0.8
        for recorder in recorders:
            recorder.update(torch.arange(size), z, y)
            recorder.end_epoch()
    exact, half = (recorder.scores() for recorder in recorders)
    error = {name: (half[name] - exact[name]).abs() / exact[name] for name in exact}
    assert error["tdds"].median() < 2e-3 and error["tdds"].max() < 0.04
    assert error["official"].median() < 1e-3 and error["official"].max() < 0.01


# -- state -----------------------------------------------------------------------------------------------------------


def from_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(stop: int, dtype: torch.dtype) -> None:
    run = a_run(drop=0.2)
    first = everything(run.size, dtype=dtype)
    feed(first, run, range(stop)) if stop else None
    index = run.batches[stop][0]
    first.update(index, run.z[stop, index], run.y[index], run.h[stop, index])  # in the middle of an epoch
    state = from_file(first.state_dict())
    second = everything(run.size, dtype=dtype)
    second.load_state_dict(state)
    for recorder in (first, second):
        for index in run.batches[stop][1:]:
            recorder.update(index, run.z[stop, index], run.y[index], run.h[stop, index])
        recorder.end_epoch()
        feed(recorder, run, range(stop + 1, 14))
    straight = feed(everything(run.size, dtype=dtype), run).scores()
    for name, score in second.scores().items():
        assert torch.equal(score.nan_to_num(-9), straight[name].nan_to_num(-9)), name
        assert torch.equal(score.nan_to_num(-9), first.scores()[name].nan_to_num(-9)), name


def test_a_state_is_a_copy() -> None:
    run = a_run()
    recorder = feed(everything(run.size), run, range(5))
    state = recorder.state_dict()
    before = state["state"]["aum"]["mean"].clone()
    feed(recorder, run, range(5, 8))
    assert torch.equal(state["state"]["aum"]["mean"], before)


TWO = {"aum": dynamics.aum(), "tdds": dynamics.tdds(4)}


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (lambda: Recorder(13, TWO), "size 12"),
        (lambda: Recorder(12, TWO | {"aum": dynamics.aum("probabilities")}), "aum"),
        (lambda: Recorder(12, TWO | {"tdds": dynamics.tdds(5)}), "window=4"),
        (lambda: Recorder(12, {"aum": dynamics.aum()}), "statistics"),
        (lambda: Recorder(12, TWO, dtype=torch.float16), "float16"),
    ],
)
def test_a_state_of_another_recorder_is_refused(other: Callable[[], Recorder], match: str) -> None:
    run = a_run()
    state = feed(Recorder(12, TWO), run).state_dict()
    with pytest.raises(CheckpointError, match=match):
        other().load_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": 99},
        {"epoch": -1},
        {"epoch": "3"},
        {"rows": torch.zeros(3, 3)},
        {"state": {}},
        {"state": {"aum": {"mean": torch.zeros(12)}, "tdds": {}}},
        {"pending_index": torch.tensor([99]), "pending_values": torch.zeros(1, 2)},
        {"pending_values": None},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    state = feed(Recorder(12, TWO), a_run()).state_dict() | damage
    recorder = Recorder(12, TWO)
    with pytest.raises(CheckpointError):
        recorder.load_state_dict(state)
    assert recorder.epoch == 0
    with pytest.raises(CheckpointError, match="not the state"):
        recorder.load_state_dict({"score": 1})


# -- several models --------------------------------------------------------------------------------------------------


def test_scores_of_several_models_average() -> None:
    runs = [a_run(seed=seed, drop=0.3) for seed in range(3)]
    each = [feed(everything(12), run).scores() for run in runs]
    joined = dynamics.average(each)
    for name in each[0]:
        for n in range(12):
            known = [float(one[name][n]) for one in each if not one[name][n].isnan()]
            wanted = sum(known) / len(known) if known else math.nan
            torch.testing.assert_close(joined[name][n].item(), wanted, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_scores_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        dynamics.average([])
    with pytest.raises(ValueError, match="different scores"):
        dynamics.average([{"a": torch.zeros(2)}, {"b": torch.zeros(2)}])
    with pytest.raises(ValueError, match="different datasets"):
        dynamics.average([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])


# -- bad input -------------------------------------------------------------------------------------------------------


Z, Y, I = torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.arange(3)  # noqa: E741


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((I, torch.tensor(1.0), Y), ValueError, "not the loss"),
        ((I, torch.zeros(3), Y), ValueError, "logits"),
        ((I, torch.zeros(3, 1), Y), ValueError, "two classes"),
        ((I, torch.zeros(3, 2, 4), Y), ValueError, "logits"),
        ((I, torch.zeros(3, 4, dtype=torch.int64), Y), TypeError, "floating point"),
        ((I, [[0.0]], Y), TypeError, "outputs must be a tensor"),
        (([0, 1, 2], Z, Y), TypeError, "index must be a tensor"),
        ((I.float(), Z, Y), TypeError, "whole numbers"),
        ((I.bool(), Z, Y), TypeError, "whole numbers"),
        ((I[None], Z, Y), ValueError, "index"),
        ((torch.tensor(0), Z, Y), ValueError, "index"),
        ((I - 1, Z, Y), IndexError, "-1"),
        ((I + 8, Z, Y), IndexError, "0 to 9"),
        ((I, Z, Y + 2), ValueError, "classes 0 to 3"),
        ((I, Z, Y - 1), ValueError, "classes"),
        ((I, Z, Y.float()), TypeError, "class ids"),
        ((I, Z, torch.zeros(3, 4)), ValueError, "mixed"),
        ((I[:2], Z, Y), ValueError, "same batch"),
        ((I, Z, Y[:2]), ValueError, "same batch"),
        ((I, torch.full((3, 4), math.nan), Y), ValueError, "3 of 3"),
        ((I, torch.tensor([[0.0, 1, 2, math.inf]] * 3), Y), ValueError, "infinite"),
        ((I, torch.full((3, 4), -math.inf), Y), ValueError, "infinite"),
        ((I, torch.zeros(3, 5), Y), ValueError, "4"),
        ((I, Z, Y, torch.zeros(3)), ValueError, "features"),
        ((I, Z, Y, torch.zeros(2, 5)), ValueError, "features"),
        ((I, Z, Y, torch.zeros(3, 5, dtype=torch.int64)), TypeError, "features"),
        ((I, Z, Y, torch.full((3, 5), math.nan)), ValueError, "NaN"),
        ((I, Z, Y, None), ValueError, "grand"),
    ],
)
def test_bad_batches_are_refused_and_leave_nothing(arguments: tuple, error: type[Exception], match: str) -> None:
    recorder = Recorder(10, TWO | {"grand": dynamics.grand()})
    recorder.update(I, Z, Y, torch.zeros(3, 5))
    before = from_file(recorder.state_dict())
    rest = () if len(arguments) == 4 else (torch.zeros(3, 5),)
    with pytest.raises(error, match=match):
        recorder.update(*arguments, *rest)
    after = recorder.state_dict()
    assert torch.equal(before["rows"].nan_to_num(9), after["rows"].nan_to_num(9))
    for name, fields in before["state"].items():
        assert all(
            torch.equal(one.nan_to_num(9), after["state"][name][key].nan_to_num(9)) for key, one in fields.items()
        )


def test_one_wrong_row_anywhere_is_found() -> None:
    for value in (math.nan, math.inf):
        for place in range(20):
            z = torch.zeros(3, 20)
            z[1, place] = value
            with pytest.raises(ValueError, match="1 of 3"):
                Recorder(3, TWO).update(I, z, Y)


def test_features_are_not_asked_for_in_vain() -> None:
    recorder = Recorder(3, {"aum": dynamics.aum()})
    recorder.update(I, Z, Y)
    recorder.update(I, Z, Y, None)
    recorder.update(I[:0], Z[:0], Y[:0])
    recorder.end_epoch()
    assert recorder.epoch == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: dynamics.forgetting(never="first"),  # type: ignore[arg-type]
        lambda: dynamics.el2n(epochs=0),
        lambda: dynamics.el2n(epochs=2.5),  # type: ignore[arg-type]
        lambda: dynamics.el2n(reduce="max"),  # type: ignore[arg-type]
        lambda: dynamics.aum(space="probs"),  # type: ignore[arg-type]
        lambda: dynamics.dyn_unc(window=1),
        lambda: dynamics.dyn_unc(window=True),
        lambda: dynamics.dual(window=10, until=5),
        lambda: dynamics.tdds(window=1),
        lambda: dynamics.tdds(decay=0),
        lambda: dynamics.tdds(decay=1.5),
        lambda: dynamics.tdds(until=0),
        lambda: dynamics.tdds(difference="js"),  # type: ignore[arg-type]
        lambda: dynamics.tdds(variant="code"),  # type: ignore[arg-type]
        lambda: Recorder(0, TWO),
        lambda: Recorder(2.5, TWO),  # type: ignore[arg-type]
        lambda: Recorder(3, {}),
        lambda: Recorder(3, [dynamics.aum()]),  # type: ignore[arg-type]
        lambda: Recorder(3, TWO, dtype=torch.int8),
    ],
)
def test_impossible_arguments_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        make()


def test_a_statistic_must_be_called() -> None:
    with pytest.raises(TypeError, match="call the function"):
        Recorder(3, {"aum": dynamics.aum})  # type: ignore[dict-item]


def test_the_module_is_public() -> None:
    assert dataprune.dynamics is dynamics
    for name in dynamics.__all__:
        thing = getattr(dynamics, name)
        if name in dynamics.STATISTICS:
            assert "Source:" in (thing.__doc__ or "") and "Differs" in (thing.__doc__ or ""), name


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert names["scores"].keys() == {"forgetting", "aum", "grand", "tdds"}
    assert all(score.isfinite().all() for score in names["scores"].values())


# -- several ranks ---------------------------------------------------------------------------------------------------


def share(run: Run, rank: int, ranks: int, epoch: int) -> list[Tensor]:
    """Batches of a rank, as DistributedSampler makes them: padded by samples of the beginning."""
    order = torch.cat(run.batches[epoch]) if run.batches[epoch] else torch.empty(0, dtype=torch.int64)
    order = torch.cat([order, order[: -len(order) % ranks]])
    return list(order[rank::ranks].split(2)) if len(order) else []


def record_share(rank: int, ranks: int, run: Run, stop: int | None, dtype: torch.dtype) -> dict[str, Any]:
    recorder = everything(run.size, dtype=dtype)
    for epoch in range(len(run.batches)):
        if epoch == stop:
            state = from_file(recorder.state_dict())
            recorder = everything(run.size, dtype=dtype)
            recorder.load_state_dict(state)
        for index in share(run, rank, ranks, epoch):
            recorder.update(index, run.z[epoch, index], run.y[index], run.h[epoch, index])
        recorder.end_epoch()
    return {"scores": recorder.scores(), "state": recorder.state_dict()}


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree_with_one_process(pool: Pool, ranks: int) -> None:
    run = a_run(epochs=12, size=11, drop=0.15)
    run.batches[4] = []
    run.batches[0] = [torch.tensor([3])]  # fewer samples than ranks
    alone = feed(everything(run.size), run).scores()
    results = pool.run(record_share, run, 6, torch.float32, world_size=ranks)
    for result in results:
        for name, score in result["scores"].items():
            torch.testing.assert_close(score, alone[name], equal_nan=True, rtol=1e-5, atol=1e-6)
        assert torch.equal(result["state"]["rows"].nan_to_num(9), results[0]["state"]["rows"].nan_to_num(9))
    resumed = everything(run.size)  # with another number of ranks
    resumed.load_state_dict(results[1]["state"])
    assert resumed.epoch == 12


@pytest.mark.ddp
def test_half_rows_travel(pool: Pool) -> None:
    run = a_run(epochs=6, size=9)
    alone = feed(everything(run.size, dtype=torch.float16), run).scores()
    for result in pool.run(record_share, run, None, torch.float16, world_size=2):
        torch.testing.assert_close(result["scores"]["tdds 0"], alone["tdds 0"], rtol=1e-4, atol=1e-6)


def padded(rank: int, ranks: int) -> list[float]:
    recorder = Recorder(3, {"loss": dynamics.loss(), "tdds": dynamics.tdds(2)})
    for _ in range(2):
        # sample 1 is first on rank 1; what rank 0 says of it later does not count
        index = torch.tensor([0, 1]) if rank == 0 else torch.tensor([1, 2])
        recorder.update(index, torch.full((2, 2), 0.0) + torch.tensor([0.0, float(rank)]), torch.tensor([0, 0]))
        recorder.end_epoch()
    return recorder.scores()["loss"].tolist()


@pytest.mark.ddp
def test_a_padded_duplicate_counts_once(pool: Pool) -> None:
    first, second = pool.run(padded, world_size=2)
    assert first == second
    assert first[1] == first[2] and first[0] != first[1]


def disagree(rank: int, ranks: int, how: str) -> None:
    statistics = {"aum": dynamics.aum()}
    if how == "different arguments" and rank:
        statistics["loss"] = dynamics.loss()
    recorder = Recorder(4, statistics)
    if how == "different epochs" and rank:
        recorder.epoch = 3
    if "wrong values" in how and rank:  # seen only when the epoch ends, as on a GPU
        recorder._wrong = torch.tensor([0, 2, 0])
    index = torch.tensor([rank])
    recorder.update(index, torch.zeros(1, 3 if how == "classes" and rank else 2), torch.tensor([0]))
    if how == "middle of an epoch":
        state = recorder.state_dict()
        state["rank"] = 1 - rank
        recorder.load_state_dict(state)
    recorder.end_epoch()


@pytest.mark.ddp
@pytest.mark.parametrize(
    "how", ["different arguments", "different epochs", "classes", "middle of an epoch", "rank 1 recorded wrong values"]
)
def test_ranks_that_differ_are_told(pool: Pool, how: str) -> None:
    with pytest.raises(RankError, match=how):
        pool.run(disagree, how, world_size=2)


# -- values that cannot be looked at without waiting: as on a GPU, on any machine -----------------------------------


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataprune.dynamics.recorder._readable", lambda tensor: False)


@pytest.mark.usefixtures("blind")
def test_unseen_values_are_recorded_alike() -> None:
    run = a_run(drop=0.2)
    check_all(run, feed(everything(run.size), run).scores())


WRONG = [
    (I + 8, Z, Y, IndexError, "dataset"),
    (I - 1, Z, Y, IndexError, "dataset"),
    (I, Z, Y + 2, ValueError, "targets"),
    (I, Z, Y - 1, ValueError, "targets"),
    (I, Z + math.nan, Y, ValueError, "NaN"),
    (I, torch.tensor([[-math.inf, 0.0, 0.0, 0.0]] * 3), torch.zeros(3).long(), ValueError, "infinite"),
]


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(("index", "logits", "y", "error", "match"), WRONG)
def test_unseen_values_are_checked_at_the_end_of_an_epoch(
    index: Tensor, logits: Tensor, y: Tensor, error: type[Exception], match: str
) -> None:
    recorder = Recorder(10, TWO)
    recorder.update(index, logits, y)
    with pytest.raises(error, match=match):
        recorder.end_epoch()
    assert all(score.isnan().all() for score in recorder.scores().values())


@pytest.mark.usefixtures("blind")
def test_unseen_features_are_checked_too() -> None:
    recorder = Recorder(10, {"grand": dynamics.grand()})
    recorder.update(I, Z, Y, torch.tensor([[math.nan, 1.0]] * 3))
    with pytest.raises(ValueError, match="features"):
        recorder.end_epoch()


# -- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_update_does_not_wait_for_the_device() -> None:
    recorder = everything(1000)
    index, logits, y = torch.arange(64, device="cuda"), torch.randn(64, 5).cuda(), torch.zeros(64).long().cuda()
    features = torch.randn(64, 3).cuda()
    recorder.update(index, logits, y, features)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            recorder.update(index, logits, y, features)
            recorder.update(index.new_zeros(64), logits, y, features)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recorder.end_epoch()
    assert recorder.scores()["loss"][:64].isfinite().all()


@pytest.mark.gpu
def test_a_gpu_run_equals_a_cpu_run() -> None:
    run = a_run(drop=0.2)
    cuda = Run(run.z.cuda(), run.y.cuda(), run.h.cuda(), [[one.cuda() for one in batches] for batches in run.batches])
    first = feed(everything(run.size), cuda, range(7))
    second = everything(run.size)
    second.load_state_dict(from_file(first.state_dict()))
    check_all(run, feed(second, cuda, range(7, 14)).scores())


@pytest.mark.gpu
@pytest.mark.parametrize(("index", "logits", "y", "error", "match"), WRONG)
def test_values_on_a_gpu_are_checked_at_the_end_of_an_epoch(
    index: Tensor, logits: Tensor, y: Tensor, error: type[Exception], match: str
) -> None:
    recorder = Recorder(10, TWO)
    recorder.update(index.cuda(), logits.cuda(), y.cuda())
    with pytest.raises(error, match=match):
        recorder.end_epoch()
