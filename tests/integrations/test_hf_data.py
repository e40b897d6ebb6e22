"""A position belongs to its sample in a Trainer too: samplers, collators, looks at the data, other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

from integrations.hf_tiny import INDEX, Items, Pruned, train
from torch.utils.data import RandomSampler, SequentialSampler, Subset, WeightedRandomSampler
from transformers import Trainer, TrainerCallback, default_data_collator

import dataprune
from dataprune import CheckpointError
from dataprune.integrations.huggingface import PrunedTrainerMixin

SIZE = 48


def emp(**options: Any) -> Any:
    """48, 15, 15, 48 samples."""
    return dataprune.emp(SIZE, **({"keep": 0.3125, "epochs": 4, "anneal": 0.25} | options))


# -- samplers ----------------------------------------------------------------------------------------------------------


class Hardest(RandomSampler):
    """An order of its own."""

    def __iter__(self) -> Any:
        return iter(range(SIZE - 1, -1, -1))


def sampling(make: Any) -> type:
    class Own(Pruned):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return make(train_dataset)

    return Own


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("WeightedRandomSampler", lambda data: WeightedRandomSampler([1.0] * SIZE, SIZE)),
        ("Hardest", Hardest),
        ("RandomSampler", lambda data: RandomSampler(data, replacement=True)),
        ("RandomSampler", lambda data: RandomSampler(data, num_samples=24)),
        ("SubsetRandomSampler", lambda data: torch.utils.data.SubsetRandomSampler(range(0, SIZE, 2))),
        ("list", lambda data: list(range(SIZE))),
    ],
)
def test_a_sampler_that_chooses_itself_is_refused(name: str, make: Any) -> None:
    with pytest.raises(TypeError, match=rf"sampler \({name}\) chooses or orders samples itself.* _get_train_sampler"):
        train(sampling(make), pruner=emp())


def test_the_sampler_of_a_loader_below_the_mixin_is_refused_too() -> None:
    class Weighted(Trainer):
        def get_train_dataloader(self) -> Any:
            sampler = WeightedRandomSampler([1.0] * SIZE, SIZE)
            return torch.utils.data.DataLoader(Items(), batch_size=8, sampler=sampler)

    class Below(PrunedTrainerMixin, Weighted):
        pass

    with pytest.raises(TypeError, match="WeightedRandomSampler"):
        train(Below, pruner=emp())


def test_samplers_of_torch_are_served() -> None:
    ordered = train(sampling(SequentialSampler), pruner=emp())
    assert all(epoch == sorted(epoch) for epoch in ordered.epochs())
    shuffled = train(sampling(lambda data: torch.utils.data.SubsetRandomSampler(range(SIZE))), pruner=emp())
    assert shuffled.epochs()[0] != sorted(shuffled.epochs()[0])
    assert [len(epoch) for epoch in shuffled.epochs()] == [48, 15, 15, 48]


# -- length ------------------------------------------------------------------------------------------------------------


class Uneven(Items):
    """Sequences of 1 to 16 tokens, which `pad` pads."""

    lengths = (torch.arange(SIZE) * 7 % 16 + 1).tolist()

    def __getitem__(self, i: int) -> dict[str, Any]:
        ids = [i, *[1] * (self.lengths[i] - 1)]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": i % 3, "idx": i, "length": len(ids)}


def pad(items: list[Any]) -> Any:
    longest = max(len(item["input_ids"]) for item in items)
    filled = [
        {k: v + [0] * (longest - len(v)) if isinstance(v, list) else v for k, v in item.items()} for item in items
    ]
    return default_data_collator(filled)


@pytest.mark.slow
def test_batches_of_similar_length(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_collator": pad, "data": Uneven(), "per_device_train_batch_size": 2}
    options |= {"train_sampling_strategy": "group_by_length"}
    grouped = train(
        pruner=dataprune.rs2(SIZE, keep=0.5, epochs=4), folder=tmp_path, save_strategy="steps", save_steps=1, **options
    )
    plain = train(pruner=dataprune.rs2(SIZE, keep=0.5, epochs=4), **options | {"train_sampling_strategy": "random"})
    for ours, other in zip(grouped.epochs(), plain.epochs(), strict=True):
        assert len(ours) == 24 and ours != other and sorted(ours) == sorted(other)
        lengths = [Uneven.lengths[i] for i in ours]
        assert lengths[0] == max(lengths)

    def cells(trainer: Any) -> int:
        return sum(len(ids) * max(Uneven.lengths[i] for i in ids) for _, ids in trainer.seen)

    assert cells(grouped) < 0.9 * cells(plain)  # an epoch of 24 has pieces of three batches
    for at in (1, 12, 30):  # the same order after resuming, in an epoch and between two
        again = train(
            pruner=dataprune.rs2(SIZE, keep=0.5, epochs=4), resume=str(tmp_path / f"checkpoint-{at}"), **options
        )
        assert [ids for _, ids in again.seen] == [ids for _, ids in grouped.seen[at:]]
        assert all(map(torch.equal, again.model.parameters(), grouped.model.parameters()))


def test_lengths_from_a_column() -> None:
    datasets = pytest.importorskip("datasets")
    rows = Uneven()
    data = datasets.Dataset.from_list([rows[i] | {"size": -rows.lengths[i]} for i in range(SIZE)])
    options = {"data_collator": pad, "data": data, "train_sampling_strategy": "group_by_length"}
    for column, sign in (("length", 1), ("size", -1)):  # by what the column says, whatever it is
        ours = train(pruner=emp(), length_column_name=column, **options)
        assert [len(epoch) for epoch in ours.epochs()] == [48, 15, 15, 48]
        for epoch in ours.epochs():
            assert sign * Uneven.lengths[epoch[0]] == max(sign * Uneven.lengths[i] for i in epoch)


# -- collators ---------------------------------------------------------------------------------------------------------


def by_length(items: list[Any]) -> Any:
    return default_data_collator(sorted(items, key=lambda item: int(item["labels"])))


def in_place(items: list[Any]) -> Any:
    items.sort(key=lambda item: -int(item["input_ids"][1]))
    return default_data_collator(items)


@pytest.mark.parametrize("collate", [by_length, in_place])
@pytest.mark.parametrize("remove", [True, False])
def test_a_collator_that_reorders_is_refused(collate: Any, remove: bool) -> None:
    with pytest.raises(TypeError, match="puts the samples of a batch into another order"):
        train(pruner=emp(), data_collator=collate, remove_unused_columns=remove)


class Unreadable(Items):
    """Samples of which every sixteenth cannot be read."""

    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i) if i % 16 else None


def readable(items: list[Any]) -> Any:
    return default_data_collator([item for item in items if item is not None])


def test_a_collator_that_drops_what_cannot_be_read_is_served() -> None:
    seen = []

    class Looks(Pruned):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **kwargs: Any) -> Any:
            seen.append((inputs[INDEX].tolist(), inputs["input_ids"][:, 0].tolist()))
            return super().compute_loss(model, inputs, *rest, **kwargs)

    options: Any = {"data": Unreadable(), "data_collator": readable, "remove_unused_columns": False}
    with pytest.warns(UserWarning, match=r"recorded in none \(positions 32\)"):
        trainer = train(Looks, pruner=emp(), **options)
    assert all(index == first for index, first in seen)
    scored = trainer.pruner.book.score.isfinite()
    assert scored.tolist() == [bool(i % 16) for i in range(SIZE)]


# -- looks at the data -------------------------------------------------------------------------------------------------


class Look(TrainerCallback):
    """Measures the accuracy over the training loader wherever it is called."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.seen: list[tuple[int, list[int]]] = []

    def look(self, args: Any, state: Any, control: Any, model: Any, **rest: Any) -> None:
        ids: list[int] = []
        for batch in self.trainer.get_train_dataloader():
            with torch.no_grad():
                model(**batch)
                self.trainer.compute_loss(model, batch)
            ids += batch["input_ids"][:, 0].tolist()
        self.seen.append((int(state.epoch or 0), ids))

    on_train_begin = on_epoch_begin = on_epoch_end = on_train_end = look


def looked(kind: Any = Pruned, **options: Any) -> tuple[Any, Look]:
    look = Look()

    class Looks(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            look.trainer = self

    return train(Looks, callbacks=[look], **options), look


@pytest.mark.parametrize(
    "build", [emp, pytest.param(lambda: dataprune.rs2(SIZE, keep=0.25, epochs=4), marks=pytest.mark.slow)]
)
def test_a_look_at_the_training_loader_changes_nothing(build: Any) -> None:
    alone, (trainer, look) = train(pruner=build()), looked(pruner=build())
    assert trainer.epochs() == alone.epochs()
    for looking, plain in zip(trainer.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(looking, plain)
    assert torch.equal(trainer.pruner.book.score, alone.pruner.book.score)
    assert sorted(look.seen[0][1]) == list(range(SIZE))  # before anything is selected: all
    ends = [sorted(ids) for _, ids in look.seen[2:-1:2]]
    assert ends == [sorted(epoch) for epoch in alone.epochs()]  # the running selection


@pytest.mark.slow
def test_a_look_before_and_between_two_runs() -> None:
    trainer = train(pruner=emp())
    first = trainer.epochs()[0]
    assert len(list(trainer.get_train_dataloader())) == 6 == len(trainer.get_train_dataloader())
    del trainer.seen
    trainer.train()
    assert trainer.epochs()[0] == first and [len(epoch) for epoch in trainer.epochs()] == [48, 15, 15, 48]


# -- other data --------------------------------------------------------------------------------------------------------


def test_a_resumed_run_with_its_samples_in_another_order_is_refused(tmp_path: Path) -> None:
    options = {"folder": tmp_path, "save_strategy": "epoch"}
    train(pruner=emp(), data=Subset(Items(), range(SIZE)), **options)
    with pytest.raises(CheckpointError, match="of the same samples in another order"):
        train(pruner=emp(), data=Subset(Items(), range(SIZE - 1, -1, -1)), resume=True, **options)
