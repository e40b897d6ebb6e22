"""TRL's GRPOTrainer: the prompts that are proposed are rolled out, and their rewards are recorded by id."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the extra trl is not installed: pip install -c constraints.txt -e '.[trl]'")

from integrations.trl_tiny import SIZE, G, build, reward, sums
from trl import GRPOTrainer

from dataprune.errors import CheckpointError
from dataprune.integrations.trl import PromptPruner
from dataprune.prompts import Prompts, filter_after, greso, mopps, uniform

pytestmark = [
    pytest.mark.filterwarnings("ignore:going through all"),
    # trl 1.16 asks transformers 5.23 by an old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def grouped(rows: list[int], rewards: list[float]) -> dict[int, list[float]]:
    """Rewards by prompt, in order; those that are missing left out."""
    groups: dict[int, list[float]] = {i: [] for i in sorted(set(rows))}
    for i, value in zip(rows, rewards, strict=True):
        if not math.isnan(value):
            groups[i].append(value)
    return groups


def test_what_is_proposed_is_rolled_out_and_recorded_by_id(tmp_path: Path) -> None:
    trainer = build(tmp_path, Prompts(SIZE, greso(), seed=1))
    trainer.train()
    assert trainer.state.global_step == 16  # 24 prompts, 3 a step, 2 epochs: as without a policy
    assert trainer.rows == [[i for i in ids for _ in range(G)] for ids in trainer.noted.proposals]
    wanted = [
        grouped(rows, [first for (first,) in rewards])
        for rows, rewards in zip(trainer.rows, trainer.rewards, strict=True)
    ]
    assert trainer.noted.records == wanted
    again = Prompts(SIZE, greso(), seed=1)
    for ids, groups in zip(trainer.noted.proposals, wanted, strict=True):
        assert again.propose(3).tolist() == ids
        again.record(list(groups), list(groups.values()))
    again.sync()
    assert again.stats() == trainer.prompts.stats()
    assert again.stats()["rollouts"] == 16 * 3 * G


def test_the_logs_say_what_is_saved(tmp_path: Path) -> None:
    trainer = build(tmp_path, Prompts(SIZE, greso()))
    trainer.train()
    *steps, last = trainer.state.log_history
    assert [entry["prompts/no_variance"] for entry in steps] == [entry["frac_reward_zero_std"] for entry in steps]
    numbers = trainer.prompts.stats()
    assert last["prompts/rollouts"] == numbers["rollouts"] == 16 * 3 * G
    assert last["prompts/rollouts_saved"] == numbers["rollouts_saved"] > 0
    assert {"prompts/p_easy", "prompts/p_hard", "prompts/explored", "prompts/never_seen"} <= set(last)
    assert "prompts/no_variance" not in last


@pytest.mark.slow
def test_a_tracker_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "board")
    try:
        build(tmp_path, Prompts(SIZE, greso()), report_to=["tensorboard"], max_steps=3).train()
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    (events,) = (tmp_path / "board").rglob("events*")
    board = EventAccumulator(str(events))
    board.Reload()
    assert len(board.Scalars("train/prompts/no_variance")) == 3
    assert len(board.Scalars("train/prompts/rollouts_saved")) == 4  # and at the end


@pytest.mark.slow
def test_uniform_changes_nothing_but_the_order(tmp_path: Path) -> None:
    """Every epoch of the trainer has every prompt once, as without a policy."""
    pruned, plain = build(tmp_path, Prompts(SIZE, uniform())), build(tmp_path)
    for trainer in (pruned, plain):
        trainer.train()
        for epoch in (trainer.rows[:8], trainer.rows[8:]):
            assert sorted(i for rows in epoch for i in rows) == [i for i in range(SIZE) for _ in range(G)]
    names = [entry.keys() for entry in plain.state.log_history]
    assert all(name <= entry.keys() for name, entry in zip(names, pruned.state.log_history, strict=True))
    assert pruned.state.global_step == plain.state.global_step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "generations", "count"),
    [
        (dict(gradient_accumulation_steps=2, steps_per_generation=4), 3, 4),
        (dict(gradient_accumulation_steps=4, steps_per_generation=2), 12, 2),
        (dict(gradient_accumulation_steps=2, num_iterations=2), 3, 2),
        (dict(gradient_accumulation_steps=1, per_device_train_batch_size=2, steps_per_generation=4), 2, 2),
        (dict(gradient_accumulation_steps=1, num_generations=2), 6, 2),
        (dict(gradient_accumulation_steps=2, dataloader_num_workers=1), 6, 2),
    ],
    ids=str,
)
def test_generation_batches_of_any_shape(tmp_path: Path, options: dict[str, Any], generations: int, count: int) -> None:
    trainer = build(tmp_path, Prompts(SIZE, mopps()), max_steps=6, **options)
    trainer.train()
    assert trainer.state.global_step == 6
    assert [len(ids) for ids in trainer.noted.proposals] == [count] * generations
    assert trainer.rows == [[i for i in ids for _ in range(trainer.num_generations)] for ids in trainer.noted.proposals]
    assert trainer.prompts.stats()["rollouts"] == count * generations * trainer.num_generations


@pytest.mark.slow
def test_columns_that_no_reward_reads_may_be_removed(tmp_path: Path) -> None:
    def threes(completions: list[str], **columns: Any) -> list[float]:
        assert "number" not in columns
        return [float("3" in text) for text in completions]

    options = {"remove_unused_columns": True, "reward_funcs": threes, "max_steps": 2, "kind": GRPOTrainer}
    trainer = build(tmp_path, Prompts(SIZE, greso()), **options)
    trainer.train()
    assert trainer.prompts.stats()["rollouts"] == 2 * 3 * G


def half(completions: list[str], **_: Any) -> list[float | None]:
    """Some completions cannot be scored."""
    return [None if "7" in text else 0.5 for text in completions]


async def slow(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) > 1) for text in completions]


@pytest.mark.slow
def test_several_reward_functions(tmp_path: Path) -> None:
    """The weighted sum counts, of those functions that scored; a completion without any score counts as failed."""
    options: dict[str, Any] = {"reward_funcs": [half, slow], "reward_weights": [0.6, 0.4], "max_steps": 4}
    trainer = build(tmp_path, Prompts(SIZE, greso()), **options)
    trainer.train()
    for rows, rewards, record in zip(trainer.rows, trainer.rewards, trainer.noted.records, strict=True):
        totals = [0.4 * second + (0.0 if math.isnan(first) else 0.6 * first) for first, second in rewards]
        for i, group in grouped(rows, totals).items():
            assert record[i] == pytest.approx(group)
    only = build(tmp_path, Prompts(SIZE, greso()), reward_funcs=half, max_steps=8)
    only.train()
    missing = sum(math.isnan(value) for rewards in only.rewards for (value,) in rewards)
    assert missing > 0 and only.prompts.stats()["rollouts"] == 8 * 3 * G - missing


@pytest.mark.slow
def test_a_score_says_which_rewards_tell_whether_a_prompt_is_solved(tmp_path: Path) -> None:
    def wide(completions: list[str], **_: Any) -> list[float]:
        return [10.0 * len(text) for text in completions]

    with pytest.raises(ValueError, match=r"outside \[0, 1\].* Here: PromptPruner\(prompts, score=.* of reward, wide"):
        build(tmp_path, Prompts(SIZE, greso()), reward_funcs=[reward, wide]).train()
    trainer = build(
        tmp_path, Prompts(SIZE, greso()), reward_funcs=[reward, wide], score=lambda rewards: rewards[:, 0], max_steps=3
    )
    trainer.train()
    for rows, rewards, record in zip(trainer.rows, trainer.rewards, trainer.noted.records, strict=True):
        assert record == grouped(rows, [first for first, _ in rewards])
    with pytest.raises(ValueError, match=r"score must return \(n,\) numbers for \(12, 2\), got \(12, 2\)"):
        build(tmp_path, Prompts(SIZE, greso()), reward_funcs=[reward, wide], score=lambda rewards: rewards).train()


@pytest.mark.slow
def test_evaluation_is_left_alone(tmp_path: Path) -> None:
    trainer = build(
        tmp_path, Prompts(SIZE, greso()), eval_dataset=sums(8), eval_strategy="steps", eval_steps=2, max_steps=4,
        per_device_eval_batch_size=G,
    )  # fmt: skip
    trainer.train()
    assert len(trainer.noted.proposals) == 4
    evaluations = [entry for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(evaluations) == 2 and not any(name.startswith("prompts/") for entry in evaluations for name in entry)


# -- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(gradient_accumulation_steps=6, steps_per_generation=3)], ids=str)
def test_a_resumed_run_goes_on_exactly(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 10, **options}
    whole = build(tmp_path, Prompts(SIZE, greso(), seed=2), **options)
    whole.train()
    each = len(whole.rows) // 10
    for at in (1, 4, 8):
        again = build(tmp_path / "again", Prompts(SIZE, greso()), **options)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
        assert again.rows == whole.rows[each * at :] and again.rewards == whole.rewards[each * at :]
        assert again.prompts.stats() == whole.prompts.stats()
        assert all(map(torch.equal, again.model.parameters(), whole.model.parameters()))


@pytest.mark.slow
def test_a_checkpoint_within_a_generation_batch_goes_on_with_new_prompts(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, "num_iterations": 3}
    whole = build(tmp_path, Prompts(SIZE, greso(), seed=2), **options)
    whole.train()
    again = build(tmp_path / "again", Prompts(SIZE, greso()), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 6
    assert again.rows[0] == whole.rows[1] and len(again.rows) == 2


@pytest.mark.slow
def test_a_second_training_starts_anew(tmp_path: Path) -> None:
    trainer = build(tmp_path, Prompts(SIZE, greso(), seed=2), max_steps=3)
    trainer.train()
    trainer.train()
    assert trainer.noted.proposals[:3] == trainer.noted.proposals[3:]


def test_a_checkpoint_without_prompts_is_refused(tmp_path: Path) -> None:
    build(tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    with pytest.raises(CheckpointError, match=r"no .*prompts\.pt: the checkpoint was saved without a PromptPruner"):
        build(tmp_path, Prompts(SIZE, greso()), max_steps=2).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_the_state_is_not_saved_where_only_the_model_is(tmp_path: Path) -> None:
    build(
        tmp_path, Prompts(SIZE, greso()), save_strategy="steps", save_steps=1, max_steps=1, save_only_model=True
    ).train()
    assert (tmp_path / "checkpoint-1").is_dir() and not (tmp_path / "checkpoint-1" / "prompts.pt").exists()


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "options", "error", "message"),
    [
        (filter_after(), {}, ValueError, r"filter_after\(\) throws groups away .* GRPOTrainer trains on every group"),
        (greso(discards=True), {}, ValueError, "throws groups away"),
        (
            greso(),
            dict(per_device_train_batch_size=40),
            ValueError,
            "a generation batch has 30 prompts, more than the 24",
        ),
        (greso(), dict(shuffle_dataset=False), ValueError, "shuffle_dataset=False asks for the order of the data set"),
        (greso(), dict(data=sums(20)), ValueError, "the training set has 20 prompts, Prompts was built for 24"),
        (greso(), dict(data=sums().to_iterable_dataset(), max_steps=1), TypeError, "the train_dataset is a stream"),
        (
            greso(),
            dict(reward_funcs=[reward, slow], multi_objective_aggregation="normalize_then_sum"),
            ValueError,
            "multi_objective_aggregation='normalize_then_sum' makes advantages of each reward",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:20],
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, policy: Any, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        build(tmp_path, Prompts(SIZE, policy), **options)


def test_one_pruner_a_trainer_and_only_of_grpo(tmp_path: Path) -> None:
    trainer = build(tmp_path, Prompts(SIZE, greso()))
    with pytest.raises(ValueError, match="wrapped already: attach one PromptPruner, once"):
        PromptPruner(Prompts(SIZE, greso())).attach(trainer)
    with pytest.raises(TypeError, match="serves TRL's GRPOTrainer and classes derived from it, not Linear"):
        PromptPruner(Prompts(SIZE, greso())).attach(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"must be a dataprune\.prompts\.Prompts, got greso"):
        PromptPruner(greso())  # type: ignore[arg-type]


def test_another_version_of_trl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path)
    monkeypatch.delattr(type(trainer), "_calculate_rewards")
    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    with pytest.raises(ImportError, match=r"GRPOTrainer has no _calculate_rewards: use trl 1\.16"):
        PromptPruner(Prompts(SIZE, greso())).attach(trainer)


# -- two ranks -------------------------------------------------------------------------------------------------------


@pytest.mark.ddp
@pytest.mark.slow
def test_two_ranks_share_what_is_proposed(tmp_path: Path) -> None:
    """Groups lie across the ranks: each has 2 of the 4 answers to some prompts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / "trl_ranks.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    for name in ("proposals", "stats", "resumed", "rewards"):
        assert first[name] == second[name]
    for ids, mine, yours in zip(first["proposals"], first["rows"], second["rows"], strict=True):
        assert mine + yours == [i for i in ids for _ in range(G)]
        assert len(mine) == len(yours) == 6
    assert first["stats"]["rollouts"] == 8 * 3 * G
    assert first["resumed"] == first["proposals"][4:]
    records = [{int(i): group for i, group in record.items()} for record in first["records"]]
    wanted = [
        grouped(rows, [value for (value,) in rewards[:6]])
        for rows, rewards in zip(first["rows"], first["rewards"], strict=True)
    ]
    assert records == wanted
