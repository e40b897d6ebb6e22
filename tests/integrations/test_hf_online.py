"""Trainers whose batches are chosen from super-batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from integrations.hf_tiny import Items, Pruned, arguments, bert, llama, train
from integrations.test_hf_resume import plain

from dataprune import online
from dataprune.errors import CheckpointError, UsageError
from dataprune.integrations.huggingface.online import _without_padding, super_batch


def quiet(chooser: online.Chooser, **rest: Any) -> Any:
    return train(pruner=chooser, num_train_epochs=1, per_device_train_batch_size=4, learning_rate=0.0, **rest)


def losses_of(model: Any, data: Items) -> torch.Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(data.ids).logits, data.labels, reduction="none")


@pytest.mark.parametrize(
    ("trained", "keep", "rows"), [(4, 0.25, 16), (16, 0.3, 53), (1, 0.7, 1), (8, 1.0, 8), (3, 0.1, 30)]
)
def test_a_super_batch_gives_the_batch_that_is_trained(trained: int, keep: float, rows: int) -> None:
    assert super_batch(trained, keep) == rows and int(keep * rows + 0.5) == trained


def test_the_rows_with_the_highest_losses_of_each_super_batch_are_trained() -> None:
    data, model = Items(), bert()
    losses = losses_of(model, data)
    trainer = quiet(online.loss(0.25), model=model, data=data, data_seed=3)
    assert trainer.state.global_step == 3 and [len(ids) for _, ids in trainer.seen] == [4, 4, 4]
    every = losses.argsort(descending=True)
    order = torch.cat([torch.tensor(ids) for _, ids in trainer.seen])
    assert len(order.unique()) == 12
    # what a super-batch trained is above what it left, so the 12 hold the highest of all and none of the lowest 9
    assert every[0] in order and not set(every[-9:].tolist()) & set(order.tolist())
    logs = trainer.state.log_history[-2]
    assert (logs["rows_scored"], logs["rows_trained"], logs["flops_in_rows"]) == (48, 12, 28.0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_loss_is_that_of_the_chosen_tokens(accumulate: int) -> None:
    """Tokens are counted after the choice: the mean over chosen tokens of all micro-batches of a step."""
    data, model = Items(labels="language"), llama()
    trainer = quiet(online.loss(0.25), model=model, data=data, gradient_accumulation_steps=accumulate)
    for step in range(3 // accumulate):
        rows = [i for _, ids in trainer.seen[step * accumulate : (step + 1) * accumulate] for i in ids]
        with torch.no_grad():
            logits = model(data.ids[rows]).logits[:, :-1]
        expected = F.cross_entropy(logits.transpose(1, 2), data.labels[rows][:, 1:])
        assert trainer.column("loss")[step] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
def test_drawn_rows_are_weighted() -> None:
    data, model = Items(), bert()
    trainer = quiet(online.loss(0.25, sample=True, seed=1), model=model, data=data)
    losses = losses_of(model, data)
    for step, (_, ids) in enumerate(trainer.seen):
        assert trainer.column("loss")[step] != pytest.approx(float(losses[ids].mean()), rel=1e-3)
    mean = sum(
        quiet(online.loss(0.25, sample=True, seed=seed), model=bert(), data=data).column("loss")[0]
        for seed in range(12)
    )
    uniform = sum(quiet(online.loss(1.0), model=bert(), data=data).column("loss")[:4]) / 4
    assert mean / 12 == pytest.approx(uniform, rel=0.35)


@pytest.mark.parametrize(
    "make",
    [
        lambda: online.memory(0.25),
        lambda: online.loss(0.25, sample=True),
        lambda: online.excess(0.25, reference=bert()),
    ],
)
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path, make: Any, accumulate: int) -> None:
    options = {
        "folder": tmp_path, "save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulate,
    }  # fmt: skip
    whole = train(pruner=make(), model=bert(dropout=0.1), **options)
    resumed = train(pruner=make(), model=bert(dropout=0.1), resume=str(tmp_path / "checkpoint-2"), **options)
    done = 2 if accumulate == 1 else 3  # an epoch has three super-batches, the last step of it one
    assert [ids for _, ids in resumed.seen] == [ids for _, ids in whole.seen[done:]]
    for weight, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert plain(resumed.state.log_history) == plain(whole.state.log_history)
    assert resumed.chooser.stats() == whole.chooser.stats()


def test_a_second_train_starts_anew() -> None:
    trainer = quiet(online.memory(0.25))
    trainer.train()
    assert trainer.chooser.stats()["scored"] == 48


@pytest.mark.slow
def test_half_precision_evaluation_and_per_sample_losses_work() -> None:
    def per_sample(outputs: Any, labels: Any) -> torch.Tensor:
        return F.cross_entropy(outputs.logits.float(), labels, reduction="none")

    trainer = quiet(online.memory(0.25), bf16=True, eval_strategy="steps", eval_steps=1, eval_dataset=Items(size=8))
    assert len(trainer.column("eval_loss")) == 3
    data, model = Items(), bert()
    trainer = quiet(online.loss(0.25), data=data, model=model, per_sample_loss=per_sample)
    assert trainer.column("loss")[0] == pytest.approx(
        float(losses_of(model, data)[trainer.seen[0][1]].mean()), rel=1e-4
    )


def test_padding_that_no_chosen_row_uses_is_cut() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    batch = {
        "attention_mask": mask,
        "input_ids": mask + 3,
        "labels": torch.tensor([1, 2]),
        "pixel_values": torch.rand(2, 4),
    }
    cut = _without_padding(copy.copy(batch))
    assert cut["attention_mask"].shape == cut["input_ids"].shape == (2, 3)
    assert cut["labels"] is batch["labels"] and cut["pixel_values"] is batch["pixel_values"]
    wide = {"attention_mask": F.pad(mask, (0, 11))}
    assert _without_padding(wide)["attention_mask"].shape == (2, 8)  # padded to a multiple of 8, and still is
    assert _without_padding({"input_ids": mask})["input_ids"] is mask


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass a reference model"):
        quiet(online.excess(0.25, reference=torch.rand(48)))
    with pytest.raises(ValueError, match="there are 3 samples per rank"):
        quiet(online.loss(0.25), data=Items(size=3))
    with pytest.raises(ValueError, match="per_sample_loss"):
        Pruned(bert(), arguments(), train_dataset=Items(), pruner=online.loss(0.5), compute_loss_func=lambda *_: None)
    with pytest.raises(UsageError, match="a loss for every row"):
        quiet(online.loss(0.25), model=NoLogits(bert()))
    options = {"folder": tmp_path, "save_strategy": "steps", "save_steps": 1}
    quiet(online.loss(0.25), **options)
    with pytest.raises(CheckpointError, match="the state is of Chooser"):
        quiet(online.memory(0.25), resume=str(tmp_path / "checkpoint-1"), **options)


class NoLogits(torch.nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.inner = model

    def forward(self, input_ids: Any = None, labels: Any = None) -> Any:
        return {"loss": self.inner(input_ids=input_ids, labels=labels).loss}
