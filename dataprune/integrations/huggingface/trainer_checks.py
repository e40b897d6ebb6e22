"""Errors raised where the mistake is made: what dataset, arguments and pruner of a Hugging Face Trainer must be."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import distributed
from ...indexed import Indexed
from ..trainers import check_batch_size, check_epochs, check_pruner
from .sample_losses import SampleLosses

HOOKS = ("get_train_dataloader", "_get_train_sampler", "set_initial_training_values", "create_scheduler",
         "compute_loss", "log", "loss_is_scaled_for_ga", "_init_training_state", "_run_epoch", "_save_checkpoint",
         "_get_output_dir")  # fmt: skip

_FIRST = "put PrunedTrainerMixin first among the bases, before transformers.Trainer or a subclass of it"


def check_bases(trainer: type, mixin: type) -> None:
    """Raise TypeError where a Trainer comes before the mixin among the bases of a class."""
    before = trainer.__mro__[: trainer.__mro__.index(mixin)]
    if any("set_initial_training_values" in vars(base) for base in before):
        raise TypeError(f"{trainer.__name__}: {_FIRST}")


def check_version(trainer: Any) -> None:
    """Raise ImportError unless a Trainer has the methods that are overridden."""
    missing = [name for name in HOOKS if not hasattr(trainer, name)]
    if missing:
        raise ImportError(
            f"the Trainer to mix this into has no {', '.join(missing)}: {_FIRST}, and use transformers 5.19 or later"
        )


def check(trainer: Any) -> None:
    """Raise ValueError or TypeError unless pruner, dataset and arguments of a Trainer fit."""
    pruner, args = trainer.pruner, trainer.args
    check_pruner(pruner)
    _check_dataset(trainer.train_dataset, pruner.size)
    if args.max_steps <= 0:
        advice = "give both the same number (or stop early with max_steps)"
        check_epochs("num_train_epochs", args.num_train_epochs, pruner, advice)
    if args.train_sampling_strategy not in ("random", "sequential", "group_by_length"):
        raise ValueError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} makes batches of its own, and the pruner plans "
            "its steps for batches of one size: use 'random', 'sequential' or 'group_by_length'"
        )
    if args.ignore_data_skip:
        raise ValueError(
            "ignore_data_skip=True would train the beginning of a resumed epoch twice: leave it False; here skipping "
            "reads no data"
        )
    if args.accelerator_config.split_batches or args.accelerator_config.dispatch_batches:
        raise ValueError(
            "accelerator_config asks for split_batches or dispatch_batches, but the pruner shares the samples among "
            "the ranks: leave both out"
        )
    if trainer.compute_loss_func is not None and trainer.per_sample_loss is None:
        raise ValueError(
            "compute_loss_func returns one number for a batch, and the pruner needs one per sample: pass "
            "per_sample_loss=(outputs, labels) -> (B,) in its place"
        )
    check_one_gpu(args)
    if trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size() > 1:
        raise ValueError(
            "ranks that share a sample (tensor, context or sequence parallelism) are not supported: train data-parallel"
        )
    if args.world_size != distributed.world_size():
        raise ValueError(
            f"there are {distributed.world_size()} processes, but the Trainer sees {args.world_size}: on CPUs set "
            "TrainingArguments(use_cpu=True), and train data-parallel"
        )
    check_batch_size(pruner, trainer._train_batch_size, args.world_size, args.dataloader_drop_last)


def check_one_gpu(args: Any) -> None:
    """Raise ValueError where one process would train on several GPUs."""
    if args.n_gpu > 1:
        raise ValueError(
            "several GPUs in one process (DataParallel) are not supported: start with torchrun or accelerate launch, "
            "or show it one GPU by CUDA_VISIBLE_DEVICES"
        )


def _check_dataset(dataset: Any, size: int) -> None:
    if dataset is None:
        raise ValueError("a pruner needs the train_dataset that it selects from: pass train_dataset=...")
    if hasattr(dataset, "keys") and hasattr(dataset, "column_names"):
        raise TypeError(f'the train_dataset is a {type(dataset).__name__}: give one split, as in splits["train"]')
    if len(Indexed(dataset)) != size:
        raise ValueError(
            f"the train_dataset has {len(dataset)} samples (as the Trainer prepared it: packing changes their number), "
            f"the pruner was built for {size}: build it with size={len(dataset)}"
        )


def check_loader(loader: Any) -> None:
    """Raise TypeError where the batches do not come from the pruner's sampler."""
    if loader is None:
        raise TypeError(
            "get_train_dataloader was overridden, and its loader trains what the pruner did not select: start from "
            "super().get_train_dataloader(), or put your class after PrunedTrainerMixin among the bases"
        )


def check_attached(losses: Tensor) -> None:
    """Raise ValueError where the losses have no gradient."""
    if not losses.requires_grad:
        raise ValueError("per_sample_loss returned losses without a gradient: leave out detach() and no_grad()")


def check_rows(losses: Tensor, index: Tensor) -> None:
    """Raise ValueError unless there are as many losses as samples."""
    if len(losses) != len(index):
        raise ValueError(
            f"the model's outputs have {len(losses)} rows for {len(index)} samples: padding_free and packing (TRL) "
            "join samples into one row, switch them off"
        )


def check_sum(loss: Tensor, losses: SampleLosses, items: Any, ranks: int) -> None:
    """Raise ValueError unless the losses of the samples add up to the Trainer's own, before they are weighted.

    `items` is what the Trainer counted in all micro-batches of the step, or None.
    """
    total, counts = losses.total.detach().sum(), [losses.count.sum().clamp(min=1)]
    if items is not None:
        counts.append(items)
    means = [float(total * factor / count) for count in counts for factor in (1, ranks)]
    value = float(loss.detach())
    if not any(abs(mean - value) <= 1e-2 * abs(value) + 1e-4 for mean in means):
        raise ValueError(
            f"this method weights samples, but the mean of their losses is {means[0]:.4g} where the Trainer's loss is "
            f"{value:.4g}: that is not the plain loss of the model. Pass per_sample_loss=(outputs, labels) -> (B,)"
        )
