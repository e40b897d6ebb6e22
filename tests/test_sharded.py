"""A pruner of shards: the selection of a plain one for any number of ranks, and no score leaves its rank."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pool import Pool
from torch import Tensor

import dataprune
from dataprune import Catalog, CheckpointError, PlanError, UsageError
from dataprune.recipes import Run
from dataprune.sharded import ShardedPruner

ROWS = [30, 25, 0, 41, 17, 30, 28]  # 171 in 7 shards
SIZE, EPOCHS, BATCH = sum(ROWS), 5, 8
METHODS = [
    "full", "static_random", "random", "rs2", "elfl", "loss", "emp", "emp_reverse", "memory", "learnability",
]  # fmt: skip


def signals(epoch: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, logits and labels that depend on epoch and sample alone; some losses are equal."""
    places = index[:, None] * 4 + torch.arange(4)
    logits = 3 * dataprune.hashing.uniform(7, epoch, places)
    return (10 * dataprune.hashing.uniform(9, epoch, index)).round(), logits, index % 4


def build(method: str, size: Any = None, **options: Any) -> Any:
    run: Run = {"keep": 0.4, "epochs": EPOCHS, "seed": 3}
    return dataprune.METHODS[method](Catalog(ROWS) if size is None else size, **{**run, **options})


def train(pruner: Any, epoch: int, *, drop_last: bool = False, steps: int | None = None) -> list[int]:
    """One epoch, or some steps of it: the ids that were trained."""
    trained: list[int] = []
    for step, index in enumerate(pruner.batches(epoch, BATCH, drop_last=drop_last)):
        if step == steps:
            break
        pruner.loss(index, *signals(epoch, index))
        trained += index.tolist()
    return trained


def plain(stats: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stats.items() if name != "padded"}


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- what runs on the ranks ------------------------------------------------------------------------------------------


def run_all(rank: int, world_size: int, method: str) -> list[Any]:
    pruner = build(method)
    rows = []
    for epoch in range(EPOCHS):
        selected = pruner.select(epoch).index.tolist()
        assert pruner.epoch == epoch
        trained = train(pruner, epoch)
        assert pruner.epoch == epoch + 1
        rows.append((selected, trained, plain(pruner.stats()), pruner.stats()["padded"]))
    pruner.sync()
    return [rows, pruner.book.score.numpy().copy()]


def sent(rank: int, world_size: int, method: str) -> int:
    """The floating-point numbers that a rank sends in a run."""
    numbers, names = 0, ["all_gather", "all_reduce", "broadcast"]
    calls = {name: getattr(dist, name) for name in names}

    def counted(name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal numbers
            tensors = [part for part in args if isinstance(part, Tensor)]
            numbers += sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
            return calls[name](*args, **options)

        return call

    try:
        for name in names:
            setattr(dist, name, counted(name))
        run_all(rank, world_size, method)
    finally:
        for name, call in calls.items():
            setattr(dist, name, call)
    return numbers


def interrupted(rank: int, world_size: int, method: str) -> list[Any]:
    """A run that loads its state after two batches of epoch 2 goes on as one that does not."""
    pruner, other = build(method), build(method)
    for epoch in range(2):
        train(pruner, epoch)
    before = train(pruner, 2, steps=2)
    other.load_state_dict(through_a_file(pruner.state_dict()))
    assert other.epoch == 2 and other.select(2).index.tolist() == pruner.select(2).index.tolist()
    rest = train(other, 2)
    assert len(before) + len(rest) >= len(pruner.select(2)) and len(set(rest) & set(before)) <= pruner.stats()["padded"]
    assert set(before) | set(rest) == set(pruner.select(2).index.tolist())
    assert train(pruner, 2) == rest
    return [pruner.select(3).index.tolist(), other.select(3).index.tolist()]


def save(rank: int, world_size: int, folder: str, method: str) -> list[int]:
    pruner = build(method)
    for epoch in range(2):
        train(pruner, epoch)
    trained = train(pruner, 2, steps=2)
    pruner.save(folder)
    assert pruner.epoch == 2
    return trained


def load(rank: int, world_size: int, folder: str, method: str) -> list[Any]:
    pruner = build(method)
    pruner.load(folder)
    assert pruner.epoch == 2
    rest = train(pruner, 2)
    assert pruner.epoch == 3
    return [rest, pruner.select(2).index.tolist(), pruner.select(3).index.tolist()]


def other_epochs(rank: int, world_size: int) -> None:
    build("loss").select(rank)


def without_a_selected_sample(rank: int, world_size: int) -> None:
    pruner = build("loss", Catalog([20, 20]), keep=0.25)
    for index in pruner.batches(0, BATCH, drop_last=False):
        pruner.loss(index, index.float())
    pruner.batches(1, BATCH)


def bad_loss(rank: int, world_size: int) -> None:
    pruner = build("loss")
    index = pruner.select(0).index[:4]
    losses = torch.ones(4)
    pruner.update(index, losses)
    if rank == 1:  # as from a device, where records are checked later
        pruner._epoch._score[2] = torch.nan
    pruner.select(1)


# -- one rank --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_one_rank_selects_what_a_plain_pruner_does(method: str) -> None:
    sharded, reference = build(method), build(method, SIZE)
    assert isinstance(sharded, ShardedPruner) and sharded.epoch_sizes() == reference.epoch_sizes()
    for epoch in range(EPOCHS):
        assert sharded.select(epoch).index.tolist() == reference.select(epoch).index.tolist()
        assert plain(sharded.stats()) == reference.stats()
        assert sorted(train(sharded, epoch)) == sorted(train(reference, epoch))
        assert sharded.epoch == reference.epoch == epoch + 1
    sharded.sync()
    reference.sync()
    assert torch.equal(sharded.book.score.nan_to_num(-1), reference.book.score.nan_to_num(-1))


def test_a_rank_keeps_eight_bytes_a_row() -> None:
    pruner = build("loss")
    book, epoch = pruner.book, pruner._epoch
    kept = [book.score.numpy(), book.drawn.numpy(), book.selected, epoch.owner]
    assert sum(array.itemsize for array in kept) == 8 and all(len(array) == SIZE for array in kept)
    assert pruner._weight is None and len(pruner._selection or ()) == 0


def test_draws_are_counted_up_to_65535() -> None:
    pruner = build("rs2", keep=1.0)
    pruner.book.drawn.numpy()[:] = 65535
    pruner.select(0)
    assert pruner.stats()["draws"][-1] == SIZE and pruner.stats()["never_seen"] == 0


def test_an_iteration_hands_out_what_is_left() -> None:
    pruner = build("loss")
    first = train(pruner, 0, steps=3)
    assert set(first).isdisjoint(rest := train(pruner, 0))
    assert sorted(first + rest) == list(range(SIZE))


def test_a_dropped_tail_ends_the_epoch_and_is_not_given_up() -> None:
    pruner = build("loss")
    assert len(train(pruner, 0, drop_last=True)) == SIZE // BATCH * BATCH and pruner.epoch == 1
    selected = pruner.select(1).index
    assert int(pruner.book.score.isnan().sum()) == SIZE % BATCH
    assert set(pruner.book.score.isnan().nonzero()[:, 0].tolist()) <= set(selected.tolist())


def test_what_cannot_be_read_is_last_in_line() -> None:
    pruner = build("loss")
    for index in pruner.batches(0, BATCH, drop_last=False):
        good = index[index != 5]
        pruner.loss(good, *signals(0, good))
        pruner._epoch.recorded += len(index) - len(good)  # a loader that drops samples fills its batches up
    assert 5 not in pruner.select(1).index.tolist()
    assert torch.isinf(pruner.book.score[5])


def test_many_records_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataprune.sharded._PENDING", 16)
    pruner = build("loss")
    train(pruner, 0)
    assert len(pruner._epoch.pending()[0]) < 16 and not pruner.book.score[:50].isnan().all()


def test_a_sample_counts_once_an_epoch() -> None:
    pruner = build("loss")
    index = pruner.select(0).index[:2]
    pruner.update(index, torch.tensor([1.0, 2.0]))
    pruner.update(index.flip(0), torch.tensor([6.0, 5.0]))
    pruner.sync()
    assert pruner.book.score[:2].tolist() == [1, 2]


# -- several ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("method", ["rs2", "loss", "learnability", "emp_reverse"])
def test_ranks_together_select_and_train_what_one_process_does(pool: Pool, method: str, world_size: int) -> None:
    ranks = pool.run(run_all, method, world_size=world_size)
    [(expected, scores)] = [run_all(0, 1, method)]
    for epoch in range(EPOCHS):
        rows = [rank[0][epoch] for rank in ranks]
        assert [id for selected, *_ in rows for id in selected] == expected[epoch][0]
        for selected, trained, stats, padded in rows:
            assert set(trained) == set(selected)
            assert stats == expected[epoch][2] and padded == rows[0][3]
        assert len({len(trained) for _, trained, *_ in rows}) == 1
        assert sum(len(trained) for _, trained, *_ in rows) == len(expected[epoch][0]) + rows[0][3]
    assert np.array_equal(np.concatenate([rank[1] for rank in ranks]), scores, equal_nan=True)


@pytest.mark.ddp
def test_no_score_is_sent(pool: Pool) -> None:
    assert pool.run(sent, "loss", world_size=2) == [0, 0]


@pytest.mark.ddp
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_rank_goes_on_where_it_was(pool: Pool, world_size: int) -> None:
    for method in ("loss", "rs2"):
        for going_on, resumed in pool.run(interrupted, method, world_size=world_size):
            assert going_on == resumed


@pytest.mark.ddp
@pytest.mark.parametrize("before,after", [(2, 3), (3, 2), (2, 1)])
def test_another_number_of_ranks_loads_a_saved_folder(pool: Pool, tmp_path: Path, before: int, after: int) -> None:
    folder = str(tmp_path / "pruner")
    trained = [id for part in pool.run(save, folder, "loss", world_size=before) for id in part]
    ranks = pool.run(load, folder, "loss", world_size=after)
    rest = {id for part, *_ in ranks for id in part}
    selected = [id for _, part, _ in ranks for id in part]
    assert set(trained) | rest == set(selected)
    assert set(trained).isdisjoint(set(selected) - set(trained))
    reference = build("loss", SIZE)
    for epoch in range(3):
        reference.select(epoch)
        train(reference, epoch)
    assert [id for *_, part in ranks for id in part] == reference.select(3).index.tolist()


@pytest.mark.ddp
def test_what_one_rank_does_wrong_all_hear_of(pool: Pool) -> None:
    for done, text in pool.outcomes(other_epochs, world_size=2):
        assert not done and "call select or sync for different epochs" in text
    for done, text in pool.outcomes(without_a_selected_sample, world_size=2):
        assert not done and "rank 0 owns no selected sample in epoch 1" in text
    first, second = pool.outcomes(bad_loss, world_size=2)
    assert not first[0] and "rank 1 recorded positions outside the dataset or scores that are not finite" in first[1]
    assert not second[0] and "scores are NaN or infinite" in second[1]


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*count as unseen")
def test_a_lost_shard_loses_its_scores_alone(tmp_path: Path) -> None:
    pruner, other = build("loss"), build("loss")
    for epoch in range(2):
        train(pruner, epoch)
    pruner.save(tmp_path)
    (tmp_path / "scores-000003.safetensors").unlink()
    (tmp_path / "scores-000004.safetensors").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="000003.safetensors is missing: the 41 rows of that shard count as unseen"):
        other.load(tmp_path)
    lost = slice(55, 55 + 41 + 17)
    assert other.book.score[lost].isnan().all()
    kept = torch.cat([pruner.book.score[: lost.start], pruner.book.score[lost.stop :]])
    assert torch.equal(torch.cat([other.book.score[: lost.start], other.book.score[lost.stop :]]), kept)
    assert set(range(lost.start, lost.stop)) <= set(other.select(2).index.tolist())


def test_a_folder_of_two_checkpoints_keeps_one(tmp_path: Path) -> None:
    pruner = build("loss")
    train(pruner, 0)
    pruner.save(tmp_path / "a")
    train(pruner, 1)
    pruner.save(tmp_path / "b")
    name = "scores-000001.safetensors"
    (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    with pytest.warns(UserWarning, match="is of another checkpoint"):
        build("loss").load(tmp_path / "b")


def test_a_folder_that_was_not_finished_is_refused(tmp_path: Path) -> None:
    pruner = build("loss")
    pruner.save(tmp_path)
    (tmp_path / "pruner.json").unlink()
    with pytest.raises(CheckpointError, match="no pruner was saved there, or not to its end"):
        build("loss").load(tmp_path)


def test_states_of_others_are_refused(tmp_path: Path) -> None:
    pruner = build("loss")
    train(pruner, 0)
    state = pruner.state_dict()
    pruner.save(tmp_path)
    with pytest.raises(CheckpointError, match="the scores are of other data"):
        build("loss", Catalog(ROWS[::-1])).load(tmp_path)
    with pytest.raises(CheckpointError, match="the scores are of other data"):
        build("loss", Catalog(ROWS, [str(shard) for shard in range(7)])).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"keep is 0.4 in the state and 0.5 here"):
        build("loss", keep=0.5).load_state_dict(state)
    with pytest.raises(CheckpointError, match="this is not the state of a sharded pruner"):
        build("loss").load_state_dict({"schema": 1})
    state["shards"] = [0, 3]
    with pytest.raises(CheckpointError, match=r"this state is of shards \[0, 3\], rank 0 owns"):
        build("loss").load_state_dict(state)


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(set(dataprune.METHODS) - {*METHODS, "emp_contrastive"}))
def test_other_methods_are_refused(method: str) -> None:
    with pytest.raises(UsageError, match=r"the policy .* does not work on a Catalog.*give len\(catalog\)"):
        build(method)


def test_balance_is_refused() -> None:
    with pytest.raises(UsageError, match="balance does not work on a Catalog"):
        build("loss", balance=torch.zeros(SIZE, dtype=torch.int64))


def test_a_loader_of_positions_is_refused() -> None:
    data = torch.utils.data.TensorDataset(torch.zeros(SIZE))
    with pytest.raises(UsageError, match=r"this pruner is of a Catalog.*iterate prune_stream"):
        dataprune.prune_loader(torch.utils.data.DataLoader(data, batch_size=4), build("loss"))


def test_ids_that_are_not_selected_or_owned_are_refused() -> None:
    pruner = build("random")
    left_out = next(id for id in range(SIZE) if id not in pruner.select(0).index.tolist())
    pruner.update(torch.tensor([left_out]), torch.ones(1))
    with pytest.raises(PlanError, match="1 of 1 samples recorded in epoch 0 were not selected for it"):
        pruner.select(1)
    with pytest.raises(IndexError, match=f"holds ids {SIZE} to {SIZE}, but rank 0 owns 0 to {SIZE - 1}"):
        build("loss").update(torch.tensor([SIZE]), torch.ones(1))
