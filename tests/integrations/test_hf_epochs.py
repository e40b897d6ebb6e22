"""Epochs of changing length under the real Trainer: samples, steps, learning rate. First what the stock one does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

from integrations.hf_tiny import Items, Naive, Pruned, Stock, arguments, bert, train
from transformers import TrainerCallback

import dataprune
from dataprune import criteria, policies, schedules
from dataprune.pruner import Pruner

SIZE = 48


def shrinking(**options: Any) -> Pruner:
    """48 samples once, then 15 three times."""
    return dataprune.emp(SIZE, keep=0.3125, epochs=4, **options)


def growing() -> Pruner:
    """12, 24, 36, 48 samples."""
    return Pruner(SIZE, criteria.loss, policies.top_k(), schedules.linear(0.25, 1.0, 4), epochs=4)


def annealed() -> Pruner:
    """All, 15, 15, all."""
    return dataprune.emp(SIZE, keep=0.3125, epochs=4, anneal=0.25)


PLANS = [(shrinking, [48, 15, 15, 15]), (growing, [12, 24, 36, 48]), (annealed, [48, 15, 15, 48])]


def sizes(trainer: Any) -> list[int]:
    return [len(epoch) for epoch in trainer.epochs()]


# -- the traps ---------------------------------------------------------------------------------------------------------


def test_the_stock_trainer_truncates_growing_epochs() -> None:
    naive = train(Naive, pruner=growing())
    assert sizes(naive) == [12, 16, 16, 16]  # two batches of eight, whatever was selected
    assert naive.state.global_step == 8


def test_the_stock_trainer_ends_a_shrinking_plan_with_the_learning_rate_up() -> None:
    naive = train(Naive, pruner=shrinking())
    assert naive.state.max_steps == 24 and naive.state.global_step == 12  # the plan has 6 + 3 * 2
    assert naive._get_learning_rate() == pytest.approx(0.01 * 12 / 24)


def test_the_stock_trainer_drops_left_over_micro_batches() -> None:
    # 6 micro-batches at first; then 2 where it waits for 6: with 4 to a step, none of them ever makes one
    pruner = shrinking()
    naive = train(Naive, pruner=pruner, gradient_accumulation_steps=4)
    assert sum(len(ids) for _, ids in naive.seen) == 48 + 3 * 15  # their gradients are computed and thrown away
    assert naive.state.global_step == 2 and pruner.planned_steps(8, accumulate=4) == 5


@pytest.mark.parametrize(("plan", "planned"), PLANS)
@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_planned_sample_is_trained_and_the_schedule_ends_at_zero(
    plan: Any, planned: list[int], accumulate: int, drop_last: bool
) -> None:
    pruner = plan()
    ours = train(pruner=pruner, gradient_accumulation_steps=accumulate, dataloader_drop_last=drop_last)
    assert sizes(ours) == [size // 8 * 8 if drop_last else size for size in planned]
    for epoch in ours.epochs():
        assert len(set(epoch)) == len(epoch)
    steps = pruner.planned_steps(8, accumulate=accumulate, drop_last=drop_last)
    assert ours.state.global_step == ours.state.max_steps == steps
    assert ours._get_learning_rate() == 0.0
    rates = ours.column("learning_rate")
    assert rates == pytest.approx([0.01 * (1 - step / steps) for step in range(steps)])
    assert ours.state.epoch == 4.0


def test_the_first_epoch_is_all_the_data_and_later_ones_are_the_selections() -> None:
    pruner, selections = shrinking(), []
    select = pruner.select
    pruner.select = lambda epoch: selections.append((epoch, select(epoch))) or select(epoch)  # type: ignore[method-assign]
    ours = train(pruner=pruner)
    selected = dict(selections)
    for epoch, trained in enumerate(ours.epochs()):
        assert sorted(trained) == selected[epoch].index.tolist()
    assert sorted(ours.epochs()[0]) == list(range(SIZE))


def test_warmup_follows_the_plan() -> None:
    ours = train(pruner=shrinking(), warmup_steps=0.25, lr_scheduler_type="cosine")  # 12 steps, 3 of warm-up
    expected = [0.01 * (step / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9))) for step in range(12)]
    assert ours.column("learning_rate") == pytest.approx(expected)


@pytest.mark.parametrize("steps", [3, 6, 9, 12])
def test_max_steps_cuts_the_run_off_and_the_schedule_with_it(steps: int) -> None:
    ours = train(pruner=shrinking(), max_steps=steps)
    assert ours.state.global_step == steps and ours._get_learning_rate() == 0.0
    assert sum(sizes(ours)) == {3: 24, 6: 48, 9: 48 + 15 + 8, 12: 48 + 3 * 15}[steps]
    assert ours.pruner.book.score.isfinite().sum() == min(48, 8 * steps)  # the last scores are in the book


def test_max_steps_beyond_the_plan() -> None:
    with pytest.raises(ValueError, match="max_steps=13, but the pruner's 4 epochs have 12 steps"):
        train(pruner=shrinking(), max_steps=13)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 4])
def test_full_gives_the_stock_trainers_losses_to_the_last_bit(accumulate: int) -> None:
    options = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": accumulate, "data": Items(45)}
    stock = train(Stock, pruner=None, model=bert(dropout=0.1), **options)
    ours = train(pruner=dataprune.full(45, epochs=4), model=bert(dropout=0.1), **options)
    added = {"kept", "samples_trained", "samples_saved", "seconds_saved"}
    for line, expected in zip(ours.state.log_history[:-1], stock.state.log_history[:-1], strict=True):
        assert {name: value for name, value in line.items() if name not in added} == expected
    for weight, expected in zip(ours.model.parameters(), stock.model.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert [ids for _, ids in ours.seen] == [ids for _, ids in stock.seen]


@pytest.mark.slow
def test_the_order_is_random_by_default_and_the_pruners() -> None:
    first, second = (train(pruner=dataprune.full(SIZE, epochs=4, seed=seed)).epochs() for seed in (0, 1))
    assert first[0] != second[0] and first[0] != first[1]
    again = train(pruner=dataprune.full(SIZE, epochs=4, seed=0), seed=5).epochs()
    assert again == first  # the Trainer's own seed does not touch it


def test_the_schedule_follows_epoch_lengths_that_infobatch_decides() -> None:
    pruner = dataprune.infobatch(SIZE, keep=0.5, epochs=6, anneal=0.2)
    ours = train(pruner=pruner, num_train_epochs=6, warmup_steps=0.1)
    lengths = sizes(ours)
    assert lengths[0] == SIZE and lengths[-1] == SIZE and min(lengths) < SIZE
    assert ours.state.global_step == sum(-(-length // 8) for length in lengths) < 36
    assert ours.state.max_steps == ours.state.global_step
    rates = ours.column("learning_rate")
    assert ours._get_learning_rate() == pytest.approx(0.0, abs=1e-9) and max(rates) > 0.009
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


class Leaves(TrainerCallback):
    """Ends epoch 1 after its first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == 7:
            control.should_epoch_stop = True
        return control


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_left_early_by_a_callback_is_no_error(workers: int) -> None:
    ours = train(pruner=annealed(), callbacks=[Leaves()], dataloader_num_workers=workers)
    assert ours.state.global_step == 6 + 1 + 2 + 6


def test_training_twice_starts_anew() -> None:
    trainer = Pruned(bert(), arguments(), train_dataset=Items(), pruner=shrinking())
    trainer.train()
    first, trainer.seen = trainer.epochs(), []
    trainer.train()
    assert [len(epoch) for epoch in trainer.epochs()] == [48, 15, 15, 15]
    assert trainer.epochs()[0] == first[0]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_change_nothing(workers: int) -> None:
    alone = train(pruner=shrinking())
    ours = train(pruner=shrinking(), dataloader_num_workers=workers, dataloader_persistent_workers=True)
    assert ours.epochs() == alone.epochs()


def test_evaluation_while_training_changes_nothing() -> None:
    alone = train(pruner=shrinking())
    ours = train(pruner=shrinking(), eval_dataset=Items(20), eval_strategy="steps", eval_steps=2)
    assert ours.epochs() == alone.epochs() and ours.column("loss") == alone.column("loss")
    assert len(ours.column("eval_loss")) == 6
    assert torch.equal(ours.pruner.book.score, alone.pruner.book.score)


def test_bf16() -> None:
    ours = train(pruner=shrinking(), bf16=True)
    assert sizes(ours) == [48, 15, 15, 15]
    assert ours.pruner.book.score.dtype == torch.float32 and ours.pruner.book.score.isfinite().all()
