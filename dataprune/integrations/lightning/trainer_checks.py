"""Errors raised where the mistake is made: what flags, loader and pruner of a Lightning Trainer must be."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import DataLoader

from ... import checks
from ...errors import CheckpointError, PlanError
from ...loading import PruneSampler
from ...pruner import Pruner, epoch_steps

LOOP = ("max_batches", "restarted_mid_epoch", "reset_restart_stage", "_combined_loader", "_data_fetcher")
EPOCH_LOOP = ("batch_progress", "restarted_on_train_batch_end", "reset_restart_stage", "_batches_that_stepped")


def check_version(trainer: Any) -> None:
    """Raise ImportError unless a Trainer's loops have what the callback sets."""
    loop = trainer.fit_loop
    missing = [name for name in LOOP if not hasattr(loop, name)]
    missing += [name for name in EPOCH_LOOP if not hasattr(loop.epoch_loop, name)]
    if missing:
        raise ImportError(
            f"this version of lightning has no {', '.join(missing)}: PruneCallback is tested with lightning 2.6.6"
        )


def check_trainer(trainer: Any, pruner: Pruner) -> None:
    """Raise ValueError where a flag of the Trainer cuts epochs off or takes the sampler away."""
    connector = getattr(trainer, "_accelerator_connector", None)
    if trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
        raise ValueError(_TAKES_SAMPLER)
    if trainer.overfit_batches:
        raise ValueError(
            f"overfit_batches={trainer.overfit_batches} replaces the pruner's sampler: leave it out, and to overfit "
            "give pruner and loader torch.utils.data.Subset(dataset, indices)"
        )
    if trainer.fast_dev_run:
        return
    if isinstance(trainer.limit_train_batches, int) or trainer.limit_train_batches != 1.0:
        raise ValueError(
            f"limit_train_batches={trainer.limit_train_batches} would cut off what the pruner selects: leave it out, "
            "and for shorter epochs build the pruner with a smaller keep"
        )
    if trainer.max_epochs != pruner.epochs:
        raise ValueError(
            f"max_epochs={trainer.max_epochs}, but the pruner was built for {pruner.epochs} epochs: "
            f"Trainer(max_epochs={pruner.epochs})"
        )
    if trainer.max_steps != -1:
        raise ValueError(
            f"max_steps={trainer.max_steps} would end the run inside the pruner's plan: leave it out, and build the "
            "pruner with fewer epochs (EarlyStopping works)"
        )


_TAKES_SAMPLER = (
    "with several processes Lightning puts a sampler of its own around the pruner's, of a length that never changes: "
    "Trainer(use_distributed_sampler=False). The pruner shares the samples among the ranks itself"
)


def pruned_loader(trainer: Any, pruner: Pruner) -> tuple[DataLoader, PruneSampler]:
    """The Trainer's training loader and its sampler.

    Raises:
        TypeError, ValueError: if it is not one loader around this pruner's sampler.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"the training data is a {type(loader).__name__}, one DataLoader is needed: prune_loader(loader, pruner)"
        )
    sampler = loader.sampler
    if not isinstance(sampler, PruneSampler):  # of a loader with a batch sampler of its own
        sampler = getattr(loader.batch_sampler, "sampler", None)
    if not isinstance(sampler, PruneSampler):
        raise TypeError(
            _TAKES_SAMPLER
            if trainer.world_size > 1
            else "the training loader is not pruned: give the Trainer dataprune.prune_loader(loader, pruner)"
        )
    if sampler.pruner is not pruner:
        raise ValueError("PruneCallback and the training loader have different pruners: give both the same")
    return loader, sampler


def check_new(trainer: Any, pruner: Pruner, *, used: bool) -> None:
    """Raise where pruner and Trainer are not at the same place, without a state that would bring them there.

    Args:
        used: whether the pruner had begun to train before the Trainer did.
    """
    if used:
        raise ValueError(
            "the pruner has begun to train already: build a new one for each fit; fit(ckpt_path=...) brings its state "
            "back"
        )
    if trainer.current_epoch != pruner.epoch or trainer.fit_loop.restarted_mid_epoch:
        raise CheckpointError(
            f"the Trainer resumes in epoch {trainer.current_epoch}, the pruner is in epoch {pruner.epoch}: the "
            "checkpoint has no state of PruneCallback. It can only resume what was trained with one"
        )


def run_of(trainer: Any, loader: DataLoader) -> dict[str, Any]:
    """What the steps of an epoch depend on."""
    return {
        "ranks": trainer.world_size,
        "batch size": loader.batch_size,
        "drop_last": loader.drop_last,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def check_recorded(pruner: Pruner) -> None:
    """Raise PlanError where an epoch has been trained and no score is in the book."""
    if not bool(pruner.book.score.isfinite().any()):
        raise PlanError(
            "training_step never called pruner.loss, so there are no scores to select by: index, batch = batch; "
            "compute losses of shape (B,), and return pruner.loss(index, losses, outputs, targets)"
        )


def check_plan(trainer: Any, pruner: Pruner, loader: DataLoader, sampler: PruneSampler) -> None:
    """Raise ValueError unless ranks, batches and validation fit the plan; warn of a schedule that cannot.

    Args:
        loader, sampler: from `pruned_loader`.
    """
    shared = trainer.distributed_sampler_kwargs
    replicas = 1 if shared is None else shared["num_replicas"]
    if not replicas == sampler.world_size == trainer.world_size:
        raise ValueError(
            f"the loader shares samples among {sampler.world_size} ranks, the Trainer trains data on {replicas} of "
            f"{trainer.world_size}: give prune_loader neither rank nor world_size, and train data-parallel"
        )
    if loader.batch_size is None:
        return
    options = {"world_size": replicas, "drop_last": loader.drop_last}
    if loader.drop_last:
        checks.check_batch_size("a pruned epoch", -(-min(pruner.counts) // replicas), loader.batch_size)
    every, smallest = (
        trainer.val_check_interval,
        epoch_steps(min(pruner.counts), loader.batch_size, accumulate=1, **options),
    )
    if isinstance(every, int) and trainer.enable_validation and trainer.check_val_every_n_epoch and every > smallest:
        raise ValueError(
            f"val_check_interval={every}, but an epoch of the pruner has {smallest} batches and would not be "
            "validated: give it a share such as 1.0, or add check_val_every_n_epoch=None to count batches across epochs"
        )
    _check_schedules(trainer, pruner, loader.batch_size, options | {"accumulate": trainer.accumulate_grad_batches})


def _check_schedules(trainer: Any, pruner: Pruner, batch_size: int, options: dict[str, Any]) -> None:
    planned = pruner.planned_steps(batch_size, **options)
    estimated = pruner.epochs * epoch_steps(pruner.epoch_sizes()[0], batch_size, **options)
    for config in trainer.lr_scheduler_configs:
        span = getattr(config.scheduler, "total_steps", None) or getattr(config.scheduler, "T_max", None)
        if config.interval == "step" and span == estimated != planned:
            warnings.warn(
                f"the learning-rate schedule spans {span} steps, as trainer.estimated_stepping_batches says, but "
                f"{planned} are planned: use pruner.planned_steps({batch_size}, world_size=trainer.world_size, "
                f"accumulate={trainer.accumulate_grad_batches}, drop_last={options['drop_last']})",
                UserWarning,
                stacklevel=2,
            )
