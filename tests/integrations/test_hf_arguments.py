"""What the Trainer is given: errors that say what to do, columns, logs; and the hooks of transformers, pinned."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra hf is not installed: pip install -c constraints.txt -e '.[hf]'")

import datasets
import transformers
from integrations.hf_tiny import INDEX, TOKENS, Items, Pruned, Stock, arguments, bert, train
from torch.utils.data import IterableDataset
from transformers import Trainer, default_data_collator

import dataprune
from dataprune.integrations import huggingface
from dataprune.integrations.huggingface import PrunedTrainer, PrunedTrainerMixin, loading, trainer_checks

SIZE = 48


def pruner(epochs: int = 4, size: int = SIZE, **options: Any) -> Any:
    return dataprune.emp(size, keep=0.3125, epochs=epochs, **options)


def build(kind: Any = PrunedTrainer, data: Any = None, prune: Any = None, **changes: Any) -> Any:
    options = {name: changes.pop(name) for name in ("compute_loss_func", "per_sample_loss") if name in changes}
    return kind(
        bert(),
        arguments(**changes),
        train_dataset=Items() if data is None else data,
        pruner=prune or pruner(),
        **options,
    )


# -- errors ------------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from Items()


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "num_train_epochs=3, but the pruner was built for 4 epochs", {"num_train_epochs": 3}),
        (ValueError, "num_train_epochs=3.5, but the pruner", {"num_train_epochs": 3.5}),
        (ValueError, "train_dataset has 40 samples .* built for 48: build it with size=40", {"data": Items(40)}),
        (TypeError, "map-style dataset with __len__ and __getitem__, got Stream", {"data": Stream()}),
        (TypeError, "map-style dataset", {"data": Stream(), "max_steps": 3}),
        (ValueError, "'batch_rebalance' makes batches of its own", {"train_sampling_strategy": "batch_rebalance"}),
        (ValueError, "ignore_data_skip=True would train", {"ignore_data_skip": True}),
        (ValueError, "leave both out", {"accelerator_config": {"split_batches": True}}),
        (ValueError, "leave both out", {"accelerator_config": {"dispatch_batches": True}}),
        (ValueError, "compute_loss_func returns one number", {"compute_loss_func": lambda *a, **k: None}),
        (TypeError, "must be a dataprune.Pruner, such as dataprune.emp", {"prune": "emp"}),
        (
            ValueError,
            "forwards what an epoch leaves out, which a Trainer does not",
            {"prune": dataprune.ies(48, keep=0.5, epochs=4)},
        ),
        (
            ValueError,
            "keeps 15 samples per rank, fewer than one batch of 16",
            {"per_device_train_batch_size": 16, "dataloader_drop_last": True},
        ),
    ],
)
def test_wrong_arguments_say_what_to_do(error: type[Exception], message: str, options: dict) -> None:
    with pytest.raises(error, match=message):
        build(**options)


def test_a_stream_of_the_datasets_library() -> None:
    stream = datasets.Dataset.from_dict({"input_ids": [[1, 2]], "label": [0]}).to_iterable_dataset()
    with pytest.raises(TypeError, match="map-style"):
        build(data=stream)
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"input_ids": [[1, 2]], "label": [0]})})
    with pytest.raises(TypeError, match="is a DatasetDict: give one split"):
        build(data=splits)


def test_no_train_dataset() -> None:
    with pytest.raises(ValueError, match="pass train_dataset"):
        PrunedTrainer(bert(), arguments(), pruner=pruner())


def test_arguments_changed_after_the_trainer_was_built() -> None:
    trainer = build()
    trainer.args.num_train_epochs = 5
    with pytest.raises(ValueError, match="num_train_epochs=5"):
        trainer.train()


def test_max_steps_frees_num_train_epochs() -> None:
    assert build(num_train_epochs=3, max_steps=4).train().global_step == 4


def test_a_used_pruner() -> None:
    used = pruner()
    used.select(0)  # a look at the plan
    build(prune=used)
    used.update(torch.arange(2), torch.ones(2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="has begun to train already: build a new one for each Trainer"):
        build(prune=used)


def test_the_mixin_comes_first() -> None:
    with pytest.raises(TypeError, match="Wrong: put PrunedTrainerMixin first among the bases"):

        class Wrong(Trainer, PrunedTrainerMixin):
            pass

    class Alone(PrunedTrainerMixin):
        pass

    with pytest.raises(ImportError, match=r"put PrunedTrainerMixin first .* transformers 5.19 or later"):
        build(Alone)


class Loss:
    """A Trainer's loss that nobody else hears of."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **rest: Any) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_a_custom_loss_belongs_below_the_mixin() -> None:
    class Above(Loss, PrunedTrainerMixin, Trainer):
        pass

    class Base(Loss, Trainer):
        pass

    class Below(PrunedTrainerMixin, Base):
        pass

    with pytest.warns(UserWarning, match="none was recorded, and this method selects by scores.* after PrunedTrainerM"):
        build(Above).train()
    trainer = build(Below)
    trainer.train()
    assert trainer.pruner.book.score.isfinite().all()


def test_a_custom_loader_is_refused() -> None:
    class Own(PrunedTrainerMixin, Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(Items(), batch_size=8)

    with pytest.raises(TypeError, match=r"start from super\(\).get_train_dataloader\(\)"):
        build(Own).train()


def test_processes_that_the_trainer_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_checks.distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"there are 2 processes, but the Trainer sees 1: .*use_cpu=True"):
        build()


def test_a_collator_that_makes_no_dictionary() -> None:
    with pytest.raises(TypeError, match="batches are dictionaries, but data_collator returned a tuple"):
        train(pruner=pruner(), data_collator=lambda items: (len(items),))


# -- columns -----------------------------------------------------------------------------------------------------------


class Strict(torch.nn.Module):
    """A model that notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.given = bert(), set()

    def forward(self, input_ids: Any, labels: Any = None, **others: Any) -> Any:
        self.given |= {"input_ids", "labels", *others}
        return self.inner(input_ids=input_ids, labels=labels)


def test_the_stock_trainer_drops_an_index_column() -> None:
    seen: set[str] = set()

    class Looks(Stock):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **kwargs: Any) -> Any:
            seen.update(inputs)
            return super().compute_loss(model, inputs, *rest, **kwargs)

    train(Looks, pruner=None, max_steps=1)
    assert "idx" not in seen  # the column of positions that Items has


@pytest.mark.parametrize("remove", [True, False])
def test_the_index_reaches_the_loss_and_not_the_model(remove: bool) -> None:
    model, seen = Strict(), []

    class Looks(Pruned):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **kwargs: Any) -> Any:
            seen.append((inputs[INDEX].tolist(), inputs["input_ids"][:, 0].tolist()))
            return super().compute_loss(model, inputs, *rest, **kwargs)

    train(Looks, model=model, pruner=pruner(), remove_unused_columns=remove)
    assert seen and all(index == first for index, first in seen)
    assert model.given - {"idx", "num_items_in_batch"} == {"input_ids", "labels"}
    assert ("idx" in model.given) is not remove


@pytest.mark.slow
@pytest.mark.parametrize("remove", [True, False])
def test_datasets_of_the_datasets_library(remove: bool) -> None:
    items = Items()
    columns = {"input_ids": items.ids.tolist(), "label": items.labels.tolist()}
    if remove:
        columns["text"] = ["unused"] * SIZE
    ours = train(pruner=pruner(), data=datasets.Dataset.from_dict(columns), remove_unused_columns=remove)
    assert ours.epochs() == train(pruner=pruner()).epochs()


def test_a_collator_that_pads() -> None:
    ragged = [
        {"input_ids": item["input_ids"][: 2 + i % TOKENS], "label": item["labels"]} for i, item in enumerate(Items())
    ]

    def pad(items: list[Any]) -> Any:
        ids = torch.nn.utils.rnn.pad_sequence([item["input_ids"] for item in items], batch_first=True)
        return transformers.BatchEncoding({"input_ids": ids, "labels": torch.stack([item["label"] for item in items])})

    ours = train(pruner=pruner(), data=ragged, data_collator=pad)
    assert [len(epoch) for epoch in ours.epochs()] == [48, 15, 15, 15]


# -- logs --------------------------------------------------------------------------------------------------------------


def test_logs_say_what_pruning_does() -> None:
    ours = train(pruner=pruner(), eval_dataset=Items(8), eval_strategy="epoch")
    assert ours.column("kept")[:-1] == [1.0] * 6 + [15 / 48] * 6
    trained = [8, 16, 24, 32, 40, 48, 56, 63, 71, 78, 86, 93]
    assert ours.column("samples_trained")[:-1] == trained
    assert ours.column("samples_saved")[-1] == pytest.approx(1 - 93 / (4 * 48), abs=1e-6)
    end = ours.state.log_history[-1]
    elsewhere = sum(ours.column("eval_runtime"))
    assert end["seconds_saved"] == pytest.approx((end["train_runtime"] - elsewhere) * (192 / 93 - 1), abs=1e-2)
    assert "kept" not in next(entry for entry in ours.state.log_history if "eval_loss" in entry)


# -- the hooks of transformers, which are not stable API ---------------------------------------------------------------


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_overridden_methods_exist_and_are_called_as_before() -> None:
    assert parameters(Trainer._run_epoch) == [
        "self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
        "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained",
        "steps_trained_in_current_epoch",
    ]  # fmt: skip
    loop = inspect.getsource(Trainer._inner_training_loop)
    assert "self._run_epoch(\n                model=model,\n                epoch=epoch," in loop
    assert parameters(Trainer._init_training_state) == [
        "self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial",
    ]  # fmt: skip
    assert parameters(Trainer.set_initial_training_values) == ["self", "args", "dataloader"]
    assert parameters(Trainer.create_scheduler) == ["self", "num_training_steps", "optimizer"]
    assert parameters(Trainer.compute_loss) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    assert parameters(Trainer._save_checkpoint) == ["self", "model", "trial"]
    assert parameters(Trainer._get_output_dir) == ["self", "trial"]
    assert parameters(Trainer.log) == ["self", "logs", "start_time"]
    assert parameters(Trainer.train)[:2] == ["self", "resume_from_checkpoint"]
    assert parameters(Trainer.get_train_dataloader) == ["self"]
    assert parameters(Trainer._get_train_sampler) == ["self", "train_dataset"]
    assert "train_dataloader = self.get_train_dataloader()" in loop  # and no other is trained
    assert Trainer.loss_is_scaled_for_ga is None


def test_the_numbers_of_a_run_have_the_order_of_the_stock_trainer() -> None:
    stock = Stock(bert(), arguments(gradient_accumulation_steps=2), train_dataset=Items())
    expected = stock.set_initial_training_values(stock.args, stock.get_train_dataloader())
    ours = build(gradient_accumulation_steps=2, prune=dataprune.full(SIZE, epochs=4))
    assert ours.set_initial_training_values(ours.args, ours.get_train_dataloader()) == expected


def test_attributes_read_exist() -> None:
    trainer = build()
    for name in ("_loss_shifts_labels", "_train_batch_size", "_created_lr_scheduler", "model_accepts_loss_kwargs"):
        assert hasattr(trainer, name)
    assert trainer.args.train_sampling_strategy == "random"


def test_the_loader_has_every_option_of_the_stock_loader() -> None:
    options = {
        "dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    ours, reference = build(**options), Stock(bert(), arguments(**options), train_dataset=Items())
    loader, stock = ours.get_train_dataloader(), reference.get_train_dataloader()
    for name in loading.TAKEN_OVER:
        if name != "worker_init_fn":
            assert getattr(loader, name) == getattr(stock, name), name
    assert loader.worker_init_fn.func is stock.worker_init_fn.func
    batch = next(iter(loader))
    assert set(batch) == set(default_data_collator([{"input_ids": [1], "label": 0}])) | {INDEX}


def test_the_module_can_be_read_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    monkeypatch.delitem(vars(huggingface), "PrunedTrainer", raising=False)
    with pytest.raises(ImportError, match=r"pip install -c constraints.txt -e '.\[hf\]'"):
        huggingface.PrunedTrainer  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        huggingface.Trainer  # noqa: B018
