"""Statistics that are streamed against loops in float64 over whole trajectories."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dynamics_reference import FORGETTING, TDDS, Seen, a_run, check_all, everything, feed, r_tdds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataprune import dynamics
from dataprune.dynamics import Recorder


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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [1.0, 0.01])  # of features: the shorter, the more a bias counts
def test_grand_is_the_gradient_of_the_last_layer(bias: bool, length: float) -> None:
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(6, 4, bias=bias)
    h, y = length * torch.randn(5, 6, generator=draw), torch.randint(0, 4, (5,), generator=draw)
    assert dynamics.grand(layer).name == dynamics.grand(bias).name == ("grand()" if bias else "grand(bias=False)")
    recorder = Recorder(5, {"grand": dynamics.grand(layer)})
    recorder.update(torch.arange(5), layer(h), y, h)
    for n, score in enumerate(recorder.scores()["grand"]):
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(h[n : n + 1]), y[n : n + 1]).backward()
        gradients = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
        torch.testing.assert_close(score, gradients.norm())


@pytest.mark.parametrize("make", [dynamics.dyn_unc, dynamics.dual, dynamics.tdds])
def test_windows_have_two_presentations(make: Any) -> None:
    for window in (1, 2.5, "10"):
        with pytest.raises(ValueError, match="window must be a whole number of at least 2"):
            make(window=window)


@pytest.mark.parametrize(
    ("make", "name", "known"),
    [
        (dynamics.forgetting, "never", "last"), (dynamics.el2n, "reduce", "mean"), (dynamics.aum, "space", "logits"),
        (dynamics.tdds, "difference", "kl"), (dynamics.tdds, "variant", "paper"),
    ],
)  # fmt: skip
def test_unknown_choices_are_refused(make: Any, name: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"unknown .*{name}.* '{known}x'; did you mean '{known}'"):
        make(**{name: f"{known}x"})


def test_grand_asks_a_layer() -> None:
    with pytest.raises(TypeError, match="bias is True, False or the last layer itself, got NoneType"):
        dynamics.grand(None)  # type: ignore[arg-type]


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


@pytest.mark.filterwarnings("ignore:12 presentations of 3 samples")
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
    sizes = {
        dynamics.forgetting(): 10, dynamics.el2n(): 8, dynamics.el2n(reduce="last"): 4, dynamics.grand(): 8,
        dynamics.aum(): 8, dynamics.entropy(): 4, dynamics.least_confidence(): 4, dynamics.margin(): 4,
        dynamics.loss(): 4, dynamics.dyn_unc(): 52, dynamics.dual(): 52, dynamics.tdds(): 48, dynamics.difficulty(): 8,
        dynamics.tdds(difference="ce"): 52, dynamics.tdds(difference="el2n"): 52,
    }  # fmt: skip
    for statistic, size in sizes.items():
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
