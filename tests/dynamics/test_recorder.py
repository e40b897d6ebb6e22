"""The recorder of training dynamics: its state, what it refuses, several ranks, a GPU."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dynamics_reference import Run, a_run, check_all, everything, feed
from pool import Pool, RankError
from torch import Tensor

import dataprune
from dataprune import CheckpointError, dynamics
from dataprune.dynamics import Recorder

# -- probabilities in the place of logits ----------------------------------------------------------------------------


def test_probabilities_are_refused() -> None:
    outputs, targets = torch.softmax(torch.randn(20, 4), dim=1), torch.zeros(20, dtype=torch.int64)
    recorder = Recorder(20, {"aum": dynamics.aum()})
    with pytest.raises(ValueError, match="outputs are probabilities"):
        recorder.update(torch.arange(20), outputs, targets)
    recorder.update(torch.arange(20), outputs.log(), targets)
    counts = Recorder(20, {"forgetting": dynamics.forgetting()})  # the highest of them is the highest logit
    counts.update(torch.arange(20), outputs, targets)
    counts.end_epoch()
    assert counts.scores()["forgetting"].isfinite().all()


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


def a_pass(recorder: Recorder, views: int = 1) -> None:
    for index in torch.arange(recorder.size).split(4):
        for _ in range(views):
            recorder.update(index, torch.zeros(len(index), 3), torch.zeros(len(index)).long())


@pytest.mark.parametrize("views", [1, 2])
def test_an_epoch_that_is_not_ended_is_noticed(views: int) -> None:
    recorder = Recorder(20, {"error": dynamics.el2n(epochs=1)})
    for _ in range(5):  # ended as it should be
        a_pass(recorder, views)
        recorder.end_epoch()
    recorder = Recorder(20, {"error": dynamics.el2n(epochs=1)})
    a_pass(recorder, views)
    with pytest.warns(UserWarning, match=r"of 20 samples .* since the last end_epoch: call recorder.end_epoch\(\)"):
        for _ in range(2):
            a_pass(recorder, views)
            recorder.scores()  # which ends nothing
    a_pass(recorder, views)  # said once


def test_scores_of_several_models_average() -> None:
    runs = [a_run(seed=seed, drop=0.3) for seed in range(3)]
    each = [feed(everything(12), run).scores() for run in runs]
    joined = dynamics.average(each)
    for name in each[0]:
        for n in range(12):
            known = [float(scores[name][n]) for scores in each if not scores[name][n].isnan()]
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


Z, Y, AT = torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.arange(3)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((AT, torch.tensor(1.0), Y), ValueError, "not the loss"),
        ((AT, torch.zeros(3), Y), ValueError, "logits"),
        ((AT, torch.zeros(3, 1), Y), ValueError, "two classes"),
        ((AT, torch.zeros(3, 2, 4), Y), ValueError, "logits"),
        ((AT, torch.zeros(3, 4, dtype=torch.int64), Y), TypeError, "floating point"),
        ((AT, [[0.0]], Y), TypeError, "outputs must be a tensor"),
        (([0, 1, 2], Z, Y), TypeError, "index must be a tensor"),
        ((AT.float(), Z, Y), TypeError, "whole numbers"),
        ((AT.bool(), Z, Y), TypeError, "whole numbers"),
        ((AT[None], Z, Y), ValueError, "index"),
        ((torch.tensor(0), Z, Y), ValueError, "index"),
        ((AT - 1, Z, Y), IndexError, "-1"),
        ((AT + 8, Z, Y), IndexError, "0 to 9"),
        ((AT, Z, Y + 2), ValueError, "classes 0 to 3"),
        ((AT, Z, Y - 1), ValueError, "classes"),
        ((AT, Z, Y.float()), TypeError, "class ids"),
        ((AT, Z, torch.zeros(3, 4)), ValueError, "mixed"),
        ((AT[:2], Z, Y), ValueError, "same batch"),
        ((AT, Z, Y[:2]), ValueError, "same batch"),
        ((AT, torch.full((3, 4), math.nan), Y), ValueError, "3 of 3"),
        ((AT, torch.tensor([[0.0, 1, 2, math.inf]] * 3), Y), ValueError, "infinite"),
        ((AT, torch.full((3, 4), -math.inf), Y), ValueError, "infinite"),
        ((AT, torch.zeros(3, 5), Y), ValueError, "4"),
        ((AT, Z, Y, torch.zeros(3)), ValueError, "features"),
        ((AT, Z, Y, torch.zeros(2, 5)), ValueError, "features"),
        ((AT, Z, Y, torch.zeros(3, 5, dtype=torch.int64)), TypeError, "features"),
        ((AT, Z, Y, torch.full((3, 5), math.nan)), ValueError, "NaN"),
        ((AT, Z, Y, None), ValueError, "grand"),
    ],
)
def test_bad_batches_are_refused_and_leave_nothing(arguments: tuple, error: type[Exception], match: str) -> None:
    recorder = Recorder(10, TWO | {"grand": dynamics.grand()})
    recorder.update(AT, Z, Y, torch.zeros(3, 5))
    before = from_file(recorder.state_dict())
    rest = () if len(arguments) == 4 else (torch.zeros(3, 5),)
    with pytest.raises(error, match=match):
        recorder.update(*arguments, *rest)
    after = recorder.state_dict()
    assert torch.equal(before["rows"].nan_to_num(9), after["rows"].nan_to_num(9))
    for name, fields in before["state"].items():
        assert all(
            torch.equal(tensor.nan_to_num(9), after["state"][name][key].nan_to_num(9)) for key, tensor in fields.items()
        )


def test_one_wrong_row_anywhere_is_found() -> None:
    for value in (math.nan, math.inf):
        for place in range(20):
            z = torch.zeros(3, 20)
            z[1, place] = value
            with pytest.raises(ValueError, match="1 of 3"):
                Recorder(3, TWO).update(AT, z, Y)


def test_features_are_not_asked_for_in_vain() -> None:
    recorder = Recorder(3, {"aum": dynamics.aum()})
    recorder.update(AT, Z, Y)
    recorder.update(AT, Z, Y, None)
    recorder.update(AT[:0], Z[:0], Y[:0])
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.ddp
def test_half_rows_travel(pool: Pool) -> None:
    run = a_run(epochs=6, size=9)
    alone = feed(everything(run.size, dtype=torch.float16), run).scores()
    for result in pool.run(record_share, run, None, torch.float16, world_size=2):
        torch.testing.assert_close(result["scores"]["tdds 0"], alone["tdds 0"], rtol=1e-4, atol=1e-6)


def padded(rank: int, ranks: int) -> list[float]:
    recorder = Recorder(3, {"loss": dynamics.loss(), "tdds": dynamics.tdds(2)})
    for _ in range(2):
        # sample 1 is first on rank 1; later records of rank 0 do not count
        index = torch.tensor([0, 1]) if rank == 0 else torch.tensor([1, 2])
        recorder.update(index, torch.full((2, 2), 0.0) + torch.tensor([0.0, float(rank)]), torch.tensor([0, 0]))
        recorder.end_epoch()
    return recorder.scores()["loss"].tolist()


@pytest.mark.slow
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
        recorder._invalid = torch.tensor([0, 2, 0])
    index = torch.tensor([rank])
    recorder.update(index, torch.zeros(1, 3 if how == "classes" and rank else 2), torch.tensor([0]))
    if how == "middle of an epoch":
        state = recorder.state_dict()
        state["rank"] = 1 - rank
        recorder.load_state_dict(state)
    recorder.end_epoch()


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize(
    "how", ["different arguments", "different epochs", "classes", "middle of an epoch", "rank 1 recorded wrong values"]
)
def test_ranks_that_differ_raise(pool: Pool, how: str) -> None:
    with pytest.raises(RankError, match=how):
        pool.run(disagree, how, world_size=2)


# -- values that cannot be read without waiting: as on a GPU, on any machine -----------------------------------


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataprune.dynamics.recorder._readable", lambda tensor: False)


@pytest.mark.usefixtures("blind")
def test_unseen_values_are_recorded_alike() -> None:
    run = a_run(drop=0.2)
    check_all(run, feed(everything(run.size), run).scores())


WRONG = [
    (AT + 8, Z, Y, IndexError, "dataset"),
    (AT - 1, Z, Y, IndexError, "dataset"),
    (AT, Z, Y + 2, ValueError, "targets"),
    (AT, Z, Y - 1, ValueError, "targets"),
    (AT, Z + math.nan, Y, ValueError, "NaN"),
    (AT, torch.tensor([[-math.inf, 0.0, 0.0, 0.0]] * 3), torch.zeros(3).long(), ValueError, "infinite"),
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
    recorder.update(AT, Z, Y, torch.tensor([[math.nan, 1.0]] * 3))
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
    cuda = Run(run.z.cuda(), run.y.cuda(), run.h.cuda(), [[x.cuda() for x in batches] for batches in run.batches])
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
