"""Checkpoints: the pruner's state lies beside the Trainer's, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

from integrations.hf_tiny import Items, Naive, Stock, bert, train
from transformers import PreTrainedModel, Trainer, TrainerState

import dataprune
from dataprune import CheckpointError
from dataprune.integrations.huggingface import STATE, checkpoints

SIZE = 48
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "seconds_saved", "train_loss"}


def emp(**options: Any) -> Any:
    """48, 15, 15, 48 samples."""
    return dataprune.emp(SIZE, **({"keep": 0.3125, "epochs": 4, "anneal": 0.25} | options))


def infobatch() -> Any:
    return dataprune.infobatch(SIZE, keep=0.5, epochs=4, anneal=0.25)


def plain(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in history]


def same(whole: Any, resumed: Any) -> None:
    """Both runs ended alike, to the last bit."""
    for weight, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert plain(resumed.state.log_history) == plain(whole.state.log_history)
    for name, value in whole.pruner.state_dict().items():
        restored = resumed.pruner.state_dict()[name]
        assert torch.equal(restored, value) if isinstance(value, torch.Tensor) else restored == value, name


@pytest.mark.filterwarnings("ignore:.*none was recorded")
def test_the_stock_trainer_resumes_at_the_wrong_place(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "save_strategy": "steps", "save_steps": 2, "max_steps": 24}
    naive = train(Naive, pruner=emp(), **options)
    assert naive.state.global_step == 6 + 2 + 2 + 6
    assert not (tmp_path / "checkpoint-10" / STATE).exists()
    # at step 10 epoch 3 begins; 10 // 6 and 10 % 6 say epoch 1, from its fifth batch: there is none, and an iteration
    # that records nothing is no epoch, so epochs 1 and 2 come again, of two batches each, from no scores at first
    again = train(Naive, pruner=emp(), resume=str(tmp_path / "checkpoint-10"), **options)
    assert again.state.global_step == 10 + 2 + 2
    assert again.seen[0] not in naive.seen


@pytest.mark.parametrize("build", [emp, infobatch])
@pytest.mark.parametrize(
    "at",
    [
        3,
        pytest.param(6, marks=pytest.mark.slow),
        pytest.param(7, marks=pytest.mark.slow),
        pytest.param(8, marks=pytest.mark.slow),
        pytest.param(11, marks=pytest.mark.slow),
    ],
)
def test_resuming_anywhere(tmp_path: Path, build: Any, at: int) -> None:
    options = {"folder": tmp_path, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "warmup_steps": 2}
    whole = train(pruner=build(), model=bert(dropout=0.1), **options)
    assert (tmp_path / f"checkpoint-{at}" / "trainer_state.json").exists()
    resumed = train(pruner=build(), model=bert(dropout=0.1), resume=str(tmp_path / f"checkpoint-{at}"), **options)
    assert [ids for _, ids in resumed.seen] == [ids for _, ids in whole.seen[at:]]
    same(whole, resumed)


@pytest.mark.parametrize("accumulate", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_resuming_inside_an_epoch_with_accumulation(tmp_path: Path, accumulate: int, workers: int) -> None:
    options = {
        "folder": tmp_path, "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": accumulate,
        "dataloader_num_workers": workers,
    }  # fmt: skip
    whole = train(pruner=emp(), **options)
    resumed = train(pruner=emp(), resume=str(tmp_path / "checkpoint-1"), **options)
    assert resumed.epochs()[0] == whole.epochs()[0][8 * accumulate :]
    same(whole, resumed)


@pytest.mark.slow
def test_resuming_at_the_ends_of_epochs_from_the_newest_checkpoint(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "save_strategy": "epoch", "save_total_limit": 3}
    whole = train(pruner=emp(), **options)
    shutil.rmtree(tmp_path / "checkpoint-16")
    resumed = train(pruner=emp(), resume=True, **options)  # checkpoint-10, after epoch 2
    assert [len(ids) for _, ids in resumed.seen] == [8] * 6
    same(whole, resumed)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-10", "checkpoint-16"}
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.slow
def test_resuming_a_finished_run_trains_nothing(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "save_strategy": "epoch"}
    train(pruner=emp(), **options)
    again = train(pruner=emp(), resume=True, **options)
    assert not hasattr(again, "seen") and again.state.global_step == 16


def test_resuming_what_max_steps_cut_off(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "save_strategy": "steps", "save_steps": 3, "max_steps": 9}
    whole = train(pruner=emp(), **options)
    resumed = train(pruner=emp(), resume=str(tmp_path / "checkpoint-6"), **options)
    same(whole, resumed)


class Killed(Exception):
    """In the place of a kill."""


WRITES = {
    "state": (checkpoints.files, "write_state"),
    "model": (PreTrainedModel, "save_pretrained"),
    "optimizer": (Trainer, "_save_optimizer_and_scheduler"),
    "random state": (Trainer, "_save_rng_state"),
    "trainer state": (TrainerState, "save_to_json"),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(pruner=emp(), folder=tmp_path_factory.mktemp("uninterrupted"), save_strategy="epoch")


@pytest.mark.slow
@pytest.mark.parametrize("where", WRITES)
@pytest.mark.parametrize("begun", [False, True])
def test_a_kill_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, begun: bool, uninterrupted: Any
) -> None:
    options = {"folder": tmp_path / "killed", "save_strategy": "epoch"}
    owner, name = WRITES[where]
    write, calls = getattr(owner, name), []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            if begun:
                write(*args, **kwargs)
                if where == "trainer state":
                    path = Path(args[1])
                    path.write_text(path.read_text()[:100])
            raise Killed
        return write(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, killed)
        train(pruner=emp(), **options)
    with pytest.warns(UserWarning, match="checkpoint-8 was not written to its end: training resumes from checkpoint-6"):
        resumed = train(pruner=emp(), resume=True, **options)
    assert len(resumed.seen) == 10
    same(uninterrupted, resumed)


def test_no_checkpoint_is_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-6").mkdir()
    with pytest.raises(CheckpointError, match="was written to its end: start again, without resuming"):
        train(pruner=emp(), folder=tmp_path, resume=True)
    (tmp_path / "checkpoint-6").rmdir()
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        train(pruner=emp(), folder=tmp_path, resume=True)


def test_a_checkpoint_that_is_written_again_is_not_whole_before_its_end(tmp_path: Path) -> None:
    checkpoints.save(str(tmp_path), {})
    (tmp_path / checkpoints.LAST).write_text("{}")
    checkpoints.save(str(tmp_path), {})
    assert not (tmp_path / checkpoints.LAST).exists()


def test_one_flipped_bit_in_the_pruners_state_is_refused(tmp_path: Path) -> None:
    train(pruner=emp(), folder=tmp_path, save_strategy="epoch", num_train_epochs=4)
    path = tmp_path / "checkpoint-16" / STATE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pruner.pt is damaged .*: resume from an older checkpoint"):
        train(pruner=emp(), folder=tmp_path, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 8, 16])
def test_a_longer_run_takes_up_a_shorter_one(tmp_path: Path, at: int) -> None:
    def rs2(epochs: int) -> Any:
        return dataprune.rs2(SIZE, keep=0.25, epochs=epochs)

    options = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 1}
    whole = train(pruner=rs2(12), num_train_epochs=12, folder=tmp_path / "whole", **options)
    train(pruner=rs2(8), num_train_epochs=8, folder=tmp_path, **options)
    checkpoint = str(tmp_path / f"checkpoint-{at}")
    longer = train(pruner=rs2(12), num_train_epochs=12, folder=tmp_path / "longer", resume=checkpoint, **options)
    assert longer.state.global_step == 24 == longer.state.max_steps
    for resumed, plain_ in zip(longer.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(resumed, plain_)
    with pytest.raises(CheckpointError, match="epochs is 12 in the state and 8 here"):
        train(pruner=rs2(8), num_train_epochs=8, folder=tmp_path, resume=str(tmp_path / "longer" / "checkpoint-24"))


def test_the_rate_of_a_longer_run_follows_the_new_plan(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "save_strategy": "epoch"}
    train(pruner=emp(), **options)
    longer = train(pruner=emp(epochs=8), num_train_epochs=8, resume=True, **options)
    assert longer.state.global_step == longer.pruner.planned_steps(8) == longer.state.max_steps
    assert longer.lr_scheduler.get_last_lr() == [0.0, 0.0]
    assert longer.column("learning_rate")[-1] == pytest.approx(0.01 / longer.state.max_steps)


def test_a_checkpoint_of_the_stock_trainer(tmp_path: Path) -> None:
    train(Stock, pruner=None, folder=tmp_path, save_strategy="epoch")
    with pytest.raises(CheckpointError, match="was not saved by a PrunedTrainer"):
        train(pruner=emp(), folder=tmp_path, resume=True)


def test_a_checkpoint_of_another_run(tmp_path: Path) -> None:
    train(pruner=emp(), folder=tmp_path, save_strategy="epoch")
    with pytest.raises(CheckpointError, match="batch_size 8 -> 4, accumulate 1 -> 2"):
        train(pruner=emp(), folder=tmp_path, resume=True, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    with pytest.raises(CheckpointError, match="other arguments"):
        train(pruner=emp(keep=0.5), folder=tmp_path, resume=True)


def test_weights_alone_are_saved_without_state(tmp_path: Path) -> None:
    train(pruner=emp(), folder=tmp_path, save_strategy="epoch", save_only_model=True)
    assert not list(tmp_path.rglob(STATE))


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    ours = train(
        pruner=emp(), folder=tmp_path, save_strategy="epoch", eval_strategy="epoch", eval_dataset=Items(16),
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    assert [len(epoch) for epoch in ours.epochs()] == [48, 15, 15, 48]
    assert ours.state.best_metric == min(ours.column("eval_loss"))
