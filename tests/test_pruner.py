"""The pruner: plans, selections, records."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from methods_under_test import run, signals
from small_pruner import SIZE, pruner, record, train
from torch import Generator, Tensor

import dataprune
from dataprune import Key, Pruner, PruneSampler, ScoreBook, Selection, criteria, policies, schedules

# -- building --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["size", "epochs", "every"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, None, "7"])
def test_whole_numbers_are_needed(name: str, value: object) -> None:
    options: dict[str, Any] = {"size": 5, "epochs": 3, "every": 1} | {name: value}
    size = options.pop("size")
    with pytest.raises(ValueError, match=name):
        Pruner(size, criteria.loss, policies.top_k(), schedules.constant(0.5), **options)


def test_a_dataset_in_place_of_its_size_is_named() -> None:
    data = torch.utils.data.TensorDataset(torch.zeros(4))
    with pytest.raises(ValueError, match=r"got a TensorDataset: give its length, len\(\.\.\.\)"):
        dataprune.loss(data, keep=0.5, epochs=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("smoothing", [0, -0.5, 1.5, math.nan])
def test_smoothing_is_a_weight(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing"):
        pruner(smoothing=smoothing)


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.5, math.nan, None, "half", True, torch.tensor([0.3, 0.4])])
def test_schedules_that_return_nonsense_are_refused_when_the_pruner_is_built(value: object) -> None:
    with pytest.raises(ValueError, match=r"schedule\(2\).*\(0, 1\]"):
        pruner(schedule=lambda epoch: value if epoch == 2 else 0.5)


@given(keep=st.floats(1e-6, 1), size=st.integers(1, 5000))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_count_is_rounded_half_up_and_at_least_one(keep: float, size: int) -> None:
    p = pruner(size, schedule=schedules.constant(keep), epochs=1)
    assert p.counts == p.epoch_sizes() == [max(1, math.floor(keep * size + 0.5))]


def test_count_of_a_half() -> None:
    assert pruner(5, schedule=schedules.constant(0.5), epochs=1).counts == [3]  # 2.5, not to the even
    assert pruner(1000, schedule=schedules.constant(1e-9), epochs=1).counts == [1]


# -- planning --------------------------------------------------------------------------------------------------------


def steps_by_hand(sizes: list[int], batch: int, world_size: int, accumulate: int, drop_last: bool) -> int:
    """Counts them one by one."""
    steps = 0
    for size in sizes:
        order = list(range(size))
        while len(order) % world_size:
            order.append(0)
        share = order[0::world_size]
        micro = 0
        while share:
            micro_batch, share = share[:batch], share[batch:]
            if len(micro_batch) < batch and drop_last:
                break
            micro += 1
            if micro == accumulate:
                steps, micro = steps + 1, 0
        steps += micro > 0
    return steps


@given(
    size=st.integers(1, 80),
    keep=st.floats(0.02, 1),
    batch=st.integers(1, 12),
    world_size=st.integers(1, 5),
    accumulate=st.integers(1, 4),
    drop_last=st.booleans(),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_planned_steps_count_every_step(
    size: int, keep: float, batch: int, world_size: int, accumulate: int, drop_last: bool
) -> None:
    p = pruner(size, epochs=5, schedule=schedules.window(keep, 1, 4))
    planned = p.planned_steps(batch, world_size=world_size, accumulate=accumulate, drop_last=drop_last)
    assert planned == steps_by_hand(p.epoch_sizes(), batch, world_size, accumulate, drop_last)


def test_a_loop_that_records_nothing_is_warned_of() -> None:
    """It would train on random samples, under the name of a method."""

    def trained(p: Pruner, recorded: bool = False) -> None:
        for epoch in range(3):
            for index in p.batches(epoch, 8):
                if recorded:
                    p.update(index, torch.rand(len(index)))

    with pytest.warns(UserWarning, match="none was recorded, and this method selects by scores"):
        trained(pruner())
    trained(pruner(), recorded=True)
    for policy in (policies.uniform(), policies.least_drawn()):  # which read none
        trained(pruner(policy=policy))
    p, fresh = pruner(), pruner().state_dict()
    list(p.batches(0, 8))
    p.load_state_dict(fresh)  # begun anew
    trained(p, recorded=True)
    with pytest.warns(UserWarning, match="epoch 1 is pruned .a loop begins with epoch 0.*none was recorded"):
        pruner().select(1)  # a loop that begins with epoch 1
    p = pruner(policy=policies.uniform())
    assert [len(p.select(epoch).index) for epoch in range(3)] == p.epoch_sizes()[:3]


@pytest.mark.parametrize("drop_last", [True, False])
def test_planned_steps_are_taken(drop_last: bool) -> None:
    p = pruner(101, epochs=8, policy=policies.uniform())
    steps = sum(1 for epoch in range(8) for _ in p.batches(epoch, 7, drop_last=drop_last))
    assert steps == p.planned_steps(7, drop_last=drop_last)


def test_planned_steps_bound_what_is_data_dependent() -> None:
    p = dataprune.infobatch(SIZE, keep=0.5, epochs=8)
    assert p.planned_steps(8) >= len(run(p, drop_last=False))


@pytest.mark.parametrize("name", ["batch_size", "world_size", "accumulate"])
def test_planned_steps_refuse_zero(name: str) -> None:
    options = {"batch_size": 4, "world_size": 1, "accumulate": 1} | {name: 0}
    with pytest.raises(ValueError, match=name):
        pruner().planned_steps(**options)


def test_batches_of_one_sample() -> None:
    assert [len(index) for index in pruner().batches(0, 1)] == [1] * SIZE
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        pruner().batches(0, 0)


def test_looks_at_the_data_after_a_batch_was_recorded_are_not_warned_of() -> None:
    p = pruner()
    record(p, [3], [1.0])
    for _ in range(3):
        assert len(list(PruneSampler(p))) == SIZE


# -- selecting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [-1, 6, 100])
def test_epochs_outside_the_run_are_refused(epoch: int) -> None:
    with pytest.raises(ValueError, match="epochs"):
        pruner().select(epoch)


def test_selecting_is_memoised() -> None:
    p = pruner()
    first = p.select(0)
    assert p.select(0) is first
    train(p, 0)
    second = p.select(1)
    record(p, [int(second.index[0])], [9.0])
    assert p.select(1) is second
    assert int(p.book.drawn.sum()) == SIZE + 20  # counted once


def test_selections_depend_on_seed_epoch_and_book_alone() -> None:
    def book(p: Pruner) -> Pruner:
        p.book.score.copy_(torch.arange(SIZE) // 20)  # ties at the edge
        return p

    wanted = book(pruner(seed=3)).select(4).index
    other = book(pruner(seed=3))
    for epoch in (1, 2, 3):  # what was selected before does not matter
        other.select(epoch)
    list(other.batches(3, 4))
    torch.manual_seed(5)
    assert torch.equal(other.select(4).index, wanted)
    assert not torch.equal(book(pruner(seed=4)).select(4).index, wanted)
    assert not torch.equal(book(pruner(seed=3)).select(5).index, wanted)


def test_selection_and_order_are_independent_streams() -> None:
    p, other = pruner(policy=policies.uniform()), pruner(policy=policies.uniform())
    for epoch in range(6):
        for _ in range(epoch):
            p.order(epoch, 0, 1)  # asking for an order, any number of times, moves no selection
        assert torch.equal(p.select(epoch).index, other.select(epoch).index)


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_take_turns_in_the_order_of_one_process(world_size: int, shuffle: bool) -> None:
    order = pruner(epochs=2).order(0, 0, 1, shuffle=shuffle).tolist()
    padded = order + order[: -len(order) % world_size]
    for rank in range(world_size):
        share = pruner(epochs=2).order(0, rank, world_size, shuffle=shuffle)
        assert share.tolist() == padded[rank::world_size]


def test_orders_differ_from_epoch_to_epoch() -> None:
    p = pruner(schedule=schedules.constant(1.0))
    orders = {tuple(p.order(epoch, 0, 1).tolist()) for epoch in range(6)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(SIZE)) for order in orders)


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (1, 12), (3, 10)])
def test_every_selects_at_the_first_pruned_epoch_then_every_so_many(start: int, stop: int) -> None:
    made = []

    def policy(book: ScoreBook, count: int, key: Key) -> Selection:
        made.append(p.selected)
        return policies.uniform()(book, count, key)

    blind = policies.Function(policy, reads_scores=False)
    p = pruner(epochs=12, every=4, policy=blind, schedule=schedules.window(0.5, start, stop))
    selected = [p.select(epoch).index for epoch in range(12)]
    due = [epoch for epoch in range(start, stop) if (epoch - start) % 4 == 0]
    assert [0 if last is None else last + 1 for last in made] == due
    for epoch in range(start + 1, stop):
        assert torch.equal(selected[epoch], selected[epoch - 1]) is (epoch not in due)
    pruned = len(due) * 25
    anew = [epoch for epoch in range(stop, 12) if epoch == stop or (epoch - start) % 4 == 0]
    full = SIZE * ((start > 0) + len(anew))  # drawn counts selections made, not epochs trained
    assert int(p.book.drawn.sum()) == pruned + full


def test_a_policy_is_not_asked_for_all_samples_unless_it_says_so() -> None:
    class Asked(policies.Policy):
        counts: tuple[int, ...] = ()

        def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
            self.counts += (count,)
            return policies.uniform()(book, count, key)

    class Weights(Asked):
        when_full = True

    for policy, counts in ((Asked(), (25, 25)), (Weights(), (SIZE, 25, 25, SIZE))):
        p = pruner(epochs=4, policy=policy, schedule=schedules.window(0.5, 1, 3))
        for epoch in range(4):
            train(p, epoch)
        assert policy.counts == counts


def test_every_selects_anew_when_the_count_changes() -> None:
    p = pruner(epochs=6, every=100, policy=policies.uniform(), schedule=schedules.linear(1.0, 0.5, 6))
    assert [len(p.select(epoch).index) for epoch in range(6)] == [50, 45, 40, 35, 30, 25]


def test_a_kept_selection_ignores_newer_scores() -> None:
    p = pruner(every=3)
    train(p, 0)
    first = p.select(1).index
    p.update(first, torch.zeros(len(first)))
    assert torch.equal(p.select(2).index, first)
    p.update(first, torch.zeros(len(first)))
    assert torch.equal(p.select(3).index, first)
    assert not set(p.select(4).index.tolist()) & set(first.tolist())


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection.of(torch.arange(19)), "19 positions where 20 were asked for"),
        (Selection.of(torch.arange(21)), "21 positions where 20 were asked for"),
        (Selection.of(torch.zeros(20, dtype=torch.int64)), "20 positions, but only 1 different"),
        (Selection(torch.arange(20), torch.ones(19)), "20 positions and 19 weights"),
        (Selection.of(torch.empty(0, dtype=torch.int64)), "0 positions"),
        (Selection(torch.arange(20).int(), torch.ones(20)), "int64"),
    ],
)
def test_policies_that_return_nonsense_are_refused(selection: Selection, message: str) -> None:
    p = pruner(policy=lambda book, count, key: selection)
    train(p, 0)
    with pytest.raises(ValueError, match=message):
        p.select(1)


@pytest.mark.parametrize("index", [torch.arange(20) + 40, torch.arange(20) - 1])
def test_policies_that_leave_the_dataset_are_refused(index: Tensor) -> None:
    p = pruner(policy=lambda book, count, key: Selection.of(index))
    train(p, 0)
    with pytest.raises((ValueError, IndexError)):
        p.select(1)


def test_a_policy_may_declare_an_inexact_count() -> None:
    class Few:
        exact = False
        reads_scores = False

        def __call__(self, book: ScoreBook, count: int, key: Key) -> Selection:
            return Selection.of(torch.tensor([4, 2]))

    p = pruner(policy=Few())
    assert p.select(1).index.tolist() == [4, 2]
    assert p.epoch_sizes() == [SIZE] * 6
    assert p.stats()["reached_keep"] == 2 / SIZE


# -- recording -------------------------------------------------------------------------------------------------------


def test_loss_is_the_weighted_mean_and_carries_the_gradient() -> None:
    p = dataprune.infobatch(SIZE, prune_probability=0.5, epochs=8)
    train(p, 0)
    selection = p.select(1)
    index, weight = selection.index, selection.weight
    assert (weight == 2).any()
    losses = torch.rand(len(index), requires_grad=True)
    shuffled = torch.randperm(len(index), generator=Generator().manual_seed(0))
    value = p.loss(index[shuffled], losses)
    torch.testing.assert_close(value, (weight[shuffled] * losses).mean())
    value.backward()
    torch.testing.assert_close(losses.grad, weight[shuffled] / len(index))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_any_whole_numbers_index_the_weights(dtype: torch.dtype) -> None:
    p = dataprune.infobatch(SIZE, prune_probability=0.5, epochs=8)
    train(p, 0)
    selection = p.select(1)
    index, weight = selection.index, selection.weight
    losses = torch.rand(len(index))
    torch.testing.assert_close(p.loss(index.to(dtype), losses), (weight * losses).mean())


def test_loss_without_weights_is_the_mean() -> None:
    p = pruner()
    p.select(0)
    losses = torch.rand(4)
    assert torch.equal(p.loss(torch.tensor([3, 1, 2, 0]), losses), losses.mean())


def test_half_precision_losses_are_recorded_as_float32() -> None:
    p = pruner()
    p.select(0)
    p.loss(torch.tensor([1]), torch.tensor([0.5], dtype=torch.bfloat16))
    assert p.state_dict()["score"][1] == 0.5


def test_large_positions_stay_exact() -> None:
    size = 3_000_001
    p = pruner(size)
    p.select(0)
    record(p, [2049, 16_777_217 % size, size - 1], [1.0, 2.0, 3.0])
    score = p.state_dict()["score"]
    assert [score[2049], score[16_777_217 % size], score[size - 1]] == [1.0, 2.0, 3.0]
    assert int((~score.isnan()).sum()) == 3


def test_update_records_and_returns_nothing() -> None:
    p = pruner()
    p.select(0)
    losses = torch.rand(3, requires_grad=True)
    assert p.update(torch.tensor([0, 1, 2]), losses) is None
    assert losses.grad is None
    assert not p.state_dict()["score"].requires_grad


def test_what_was_recorded_is_a_copy() -> None:
    p = pruner()
    p.select(0)
    index, losses = torch.tensor([5]), torch.tensor([1.0])
    p.update(index, losses)
    index.fill_(9), losses.fill_(7)
    assert p.state_dict()["score"][5] == 1.0


def test_repeated_positions_count_in_order() -> None:
    p = pruner(smoothing=0.5)
    p.select(0)
    record(p, [3, 3, 3], [1.0, 2.0, 4.0])
    assert p.state_dict()["score"][3] == 0.5 * (0.5 * 1 + 0.5 * 2) + 0.5 * 4


def test_looking_in_between_changes_nothing() -> None:
    runs = []
    for nosy in (False, True):
        p = dataprune.ucb(SIZE, keep=0.4, epochs=6, every=2)
        selected = []
        for epoch in range(6):
            selected.append(p.select(epoch).index.tolist())
            for index in p.batches(epoch, 8):
                p.update(index, *signals(epoch, index))
                if nosy:
                    p.state_dict(), p.stats(), p.sync(), p.epoch, p.remaining(epoch)
        runs.append((selected, p.state_dict()["score"].tolist()))
    assert repr(runs[0]) == repr(runs[1])


def test_scores_arrive_with_the_next_selection() -> None:
    p = pruner()
    p.select(0)
    record(p, [1], [2.0])
    assert p.book.score.isnan().all()  # pending
    p.select(1)
    assert p.book.score[1] == 2.0


def test_an_empty_batch_is_nothing() -> None:
    p = pruner()
    p.select(0)
    p.update(torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert p.state_dict()["score"].isnan().all()


def test_recording_before_the_first_selection_counts() -> None:
    """A book can be filled beforehand: by a pass of evaluation, say."""
    p = pruner()
    p.update(torch.arange(SIZE), torch.arange(SIZE).float())
    assert set(p.select(1).index.tolist()) == set(range(30, 50))


# -- looking ---------------------------------------------------------------------------------------------------------


def test_stats() -> None:
    p = pruner(policy=policies.uniform())
    assert p.stats() == {"epoch": None, "reached_keep": None, "overlap": None, "never_seen": SIZE, "draws": [SIZE]}
    p.select(0)
    assert p.stats() == {"epoch": 0, "reached_keep": 1.0, "overlap": None, "never_seen": 0, "draws": [0, SIZE]}
    first, second = set(p.select(1).index.tolist()), set(p.select(2).index.tolist())
    stats = p.stats()
    assert stats["epoch"] == 2
    assert stats["reached_keep"] == 0.4
    assert stats["overlap"] == len(first & second) / 20
    counts = np.bincount([1 + (i in first) + (i in second) for i in range(SIZE)])
    assert stats["draws"] == counts.tolist()


def test_stats_count_samples_never_seen() -> None:
    p = pruner(policy=policies.least_drawn(), schedule=schedules.constant(0.3))
    p.select(0)
    assert p.stats()["never_seen"] == 35
    p.select(1)
    assert p.stats()["never_seen"] == 20


# -- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_update_does_not_wait_for_the_device() -> None:
    p = dataprune.emp(10_000, keep=0.5, epochs=4)
    p.select(0)
    index = torch.arange(256, device="cuda")
    losses, logits = torch.rand(256, device="cuda"), torch.randn(256, 10, device="cuda")
    p.loss(index, losses, logits)  # buffers are made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            p.loss(index, losses, logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert p.state_dict()["score"][:256].isfinite().all()


@pytest.mark.parametrize(
    ("part", "value", "error"), [(0, SIZE, IndexError), (0, -1, IndexError), (1, math.nan, ValueError)]
)
def test_records_are_checked_when_they_are_flushed(part: int, value: float, error: type[Exception]) -> None:
    """They may come from a device, where recording does not look at them."""
    p = pruner()
    record(p, [3, 4], [1.0, 2.0])
    p._epoch.pending()[part][1] = value
    with pytest.raises(error):
        p.select(1)


@pytest.mark.gpu
def test_values_on_a_gpu_are_checked_when_they_are_flushed() -> None:
    p = pruner()
    p.select(0)
    p.update(torch.tensor([0, SIZE], device="cuda"), torch.rand(2, device="cuda"))
    with pytest.raises(IndexError, match="dataset"):
        p.select(1)
    q = pruner()
    q.select(0)
    q.update(torch.tensor([0, 1], device="cuda"), torch.tensor([0.1, math.nan], device="cuda"))
    with pytest.raises(ValueError, match="NaN"):
        q.select(1)


@pytest.mark.gpu
def test_a_gpu_run_equals_a_cpu_run() -> None:
    runs = []
    for device in ("cpu", "cuda"):
        p = dataprune.ucb(SIZE, keep=0.4, epochs=6, every=2)
        steps = []
        for epoch in range(6):
            for index in p.batches(epoch, 8, device=device):
                losses, _, _ = signals(epoch, index.cpu())
                steps.append((index.tolist(), round(p.loss(index, losses.to(device)).item(), 5)))
        runs.append(steps)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("criterion", [criteria.entropy, lambda losses, outputs, targets: outputs[:, 0]])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_refused_by_criteria_that_do_not_read_it(criterion: Any, value: float) -> None:
    p = pruner(criterion=criterion)
    losses = torch.tensor([1.0, value])
    with pytest.raises(ValueError, match="NaN or infinite"):
        p.loss(torch.arange(2), losses, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


def test_a_loss_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond float32"):
        pruner().update(torch.arange(2), torch.tensor([1.0, 1e39], dtype=torch.float64))


def test_numbers_that_are_no_whole_numbers_are_refused_in_words() -> None:
    for epoch in (1.5, "1", True, None):
        with pytest.raises(ValueError, match=r"outside this pruner's 6 epochs"):
            pruner().select(epoch)
    for name in ("emp", "rs2", "infobatch"):
        for epochs in ("3", 3.0, 0, None):
            with pytest.raises(ValueError, match="epochs must be a whole number"):
                dataprune.METHODS[name](SIZE, keep=0.5, epochs=epochs)
