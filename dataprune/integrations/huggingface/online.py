"""A Hugging Face Trainer whose batches are chosen from super-batches, by a `dataprune.online.Chooser`."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...online import Chooser
from ...online._excess import Excess
from .sample_losses import SampleLosses, outputs_of
from .trainer_checks import check_one_gpu

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

_MULTIPLE = 8
WEIGHT = "dataprune_weight"  # in a batch on its way to compute_loss; no model sees it


class ChosenBatches(_Trainer):
    """The part of `PrunedTrainerMixin` that serves a chooser; `per_device_train_batch_size` is what is trained."""

    chooser: Chooser | None = None
    per_sample_loss: Any
    model: Any
    _read: Any
    _weighted: Any

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        if self.chooser is not None and kwargs.get("is_training", description == "Training"):
            trained, batch_size = batch_size, super_batch(batch_size, self.chooser.keep)
            samples = len(dataset) // self.args.world_size if hasattr(dataset, "__len__") else batch_size
            if samples < trained:
                raise ValueError(
                    f"a batch of {trained} is chosen from a super-batch of {batch_size}, but there are {samples} "
                    "samples per rank: use a smaller per_device_train_batch_size, or a larger keep"
                )
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of the next step, each the chosen rows of a super-batch."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.chooser is None or not batches:
            return batches, items
        self.model.train()  # as the step that follows; an evaluation may have come before
        batches = [self._chosen(batch) for batch in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def _chosen(self, batch: Any) -> Any:
        assert self.chooser is not None
        if not isinstance(batch, MutableMapping):
            raise TypeError(
                f"the Trainer's batches are dictionaries, but data_collator returned a {type(batch).__name__}"
            )
        inputs: Any = self._prepare_inputs(dict(batch))
        given = dict(inputs)
        model: Any = self.model_wrapped
        # a random state of its own: a resumed run restores the Trainer's after this
        devices = [] if self.args.device.type == "cpu" else [self.args.device]
        with (
            torch.random.fork_rng(devices, device_type=self.args.device.type),
            self.chooser.scoring(model),
            self.compute_loss_context_manager(),
        ):
            torch.manual_seed(self.chooser.step_seed)
            labels = given.pop("labels", None) if self.per_sample_loss is not None else None
            outputs = model(**given)
            self._warned = True  # what the losses of a batch would do is an error here
            losses = self._read(outputs, dict(inputs))
            if self.per_sample_loss is not None:
                scores = self.per_sample_loss(outputs, labels)
            else:
                scores = self._row_losses(losses, inputs)
        shown = (None, labels) if losses is None else (losses.outputs, losses.targets)
        rows, weight = self.chooser.choose(scores.float(), *shown)
        part = {name: _part(value, rows, len(scores)) for name, value in inputs.items()}
        if self.chooser.sample:
            part[WEIGHT] = weight
        return _without_padding(part)

    def _row_losses(self, losses: SampleLosses | None, inputs: dict[str, Any]) -> Tensor:
        batch = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.ndim), None)
        if losses is None or len(losses.total) != batch:
            raise UsageError(
                "a chooser needs a loss for every row of a super-batch, and none can be read from the model's outputs: "
                "pass per_sample_loss=(outputs, labels) -> (B,). padding_free (TRL) joins samples into one row: leave "
                "it out"
            )
        return losses.mean()

    def _chosen_loss(self, model: Any, inputs: Any, return_outputs: bool, items: Any) -> Any:
        """The Trainer's loss of chosen rows, with their weights where they are drawn."""
        assert self.chooser is not None
        inputs = dict(inputs)
        weight = inputs.pop(WEIGHT, None)
        if self.per_sample_loss is not None:
            labels = inputs.pop("labels", None)
            outputs = model(**inputs)
            losses = self.per_sample_loss(outputs, labels)
            loss = (losses if weight is None else weight * losses).mean()
            return (loss, outputs) if return_outputs else loss
        original = dict(inputs)
        options = {"return_outputs": return_outputs, "num_items_in_batch": items}
        with outputs_of(model) as seen:
            result: Any = super().compute_loss(model, inputs, **options)
        if weight is None:
            return result
        loss, outputs = result if return_outputs else (result, None)
        loss = self._weighted(loss, self._read(seen[0] if seen else None, original), weight, items)
        return (loss, outputs) if return_outputs else loss

    def _online_logs(self) -> dict[str, float]:
        assert self.chooser is not None
        stats = self.chooser.stats()
        ranks = self.args.world_size
        return {
            "rows_scored": stats["scored"] * ranks,
            "rows_trained": stats["trained"] * ranks,
            "flops_in_rows": round(stats["flops"] * ranks, 3),
        }


def check(trainer: Any) -> None:
    """Raise ValueError or TypeError unless a Trainer's arguments fit its chooser."""
    chooser, args = trainer.chooser, trainer.args
    if isinstance(chooser, Excess) and isinstance(chooser.reference, Tensor):
        raise ValueError(
            "a table of reference losses is read by position, and a Trainer's batches have none: pass a reference model"
        )
    if trainer.compute_loss_func is not None and trainer.per_sample_loss is None:
        raise ValueError(
            "compute_loss_func returns one number for a batch, and the chooser needs one per row: pass "
            "per_sample_loss=(outputs, labels) -> (B,) in its place"
        )
    check_one_gpu(args)
    if args.accelerator_config.split_batches or args.accelerator_config.dispatch_batches:
        raise ValueError(
            "accelerator_config asks for split_batches or dispatch_batches, which cut super-batches: leave it out"
        )


def super_batch(trained: int, keep: float) -> int:
    """Rows of which `keep` gives as many as are to be trained."""
    return round(trained / keep)


def _part(value: Any, rows: Tensor, batch: int) -> Any:
    """The chosen rows of what has a row for every sample."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[rows.to(value.device)]
    if isinstance(value, (list, tuple)) and len(value) == batch:
        return type(value)(value[row] for row in rows.tolist())
    return value


def _without_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """Cut the last columns where they pad every chosen row, from all that is shaped as the attention mask."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return batch
    used = mask.any(0).nonzero()
    width = int(used[-1]) + 1 if len(used) else mask.shape[1]
    if mask.shape[1] % _MULTIPLE == 0:  # as padded for the hardware
        width = -(-width // _MULTIPLE) * _MULTIPLE
    shaped = {name for name, value in batch.items() if isinstance(value, Tensor) and value.shape == mask.shape}
    return {name: value[:, :width] if name in shaped else value for name, value in batch.items()}
