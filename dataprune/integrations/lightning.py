"""Lightning's Trainer on what a pruner selects: `PruneCallback`.

    pruner = dataprune.emp(len(train_set), keep=0.3, epochs=10)
    trainer = Trainer(max_epochs=10, callbacks=[PruneCallback(pruner)], use_distributed_sampler=False)
    trainer.fit(model, dataprune.prune_loader(loader, pruner))  # training_step calls pruner.loss

Needs the extra `lightning`. Lightning reads the length of an epoch once; the callback sets it for every epoch. The
attributes of Lightning's loops that it sets are no stable API; tests pin them.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import DataLoader

try:
    from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
except ImportError as error:
    raise ImportError(
        f"PruneCallback needs lightning: pip install -c constraints.txt -e '.[lightning]' ({error})"
    ) from error

from .. import checks
from ..errors import CheckpointError, PlanError
from ..loading import PruneSampler
from ..online import Chooser
from ..pruner import Pruner
from ..schedules import epoch_steps
from .trainers import Savings, check_batch_size, check_epochs, check_new, check_pruner

__all__ = ["PruneCallback"]


class PruneCallback(Callback):
    """Makes a Trainer follow a pruner: the length of every epoch, checkpoints, and logs.

    The training loader is `prune_loader(loader, pruner)`, or one of your own around `PruneSampler(pruner)`, and the
    module's `training_step` calls `pruner.loss`. Logged at the end of each epoch: `kept` (share of the data in its
    selection), `samples_trained` (so far, on all ranks), `samples_saved` (share of what full epochs would have
    trained).

    Args:
        pruner: new, built with epochs=max_epochs, alike on every rank; or a chooser of `dataprune.online`, which
            `training_step` asks for the rows of its super-batch: the callback saves its state, and logs what it counts.
    Raises:
        ImportError: if lightning is missing, or too old or too new.
        ValueError, TypeError: when training starts, if Trainer, loader and pruner do not fit; says what to do.
        CheckpointError: if the checkpoint to resume from was written without this callback, or with another pruner.
    """

    def __new__(cls, pruner: Pruner | Chooser) -> PruneCallback:
        """A callback of the kind that the argument needs."""
        kind: Any = _ChooserCallback if isinstance(pruner, Chooser) else cls
        return super().__new__(kind)

    def __init__(self, pruner: Pruner):
        check_pruner(pruner)
        super().__init__()
        self.pruner = pruner
        self._savings = Savings()
        self._state: dict[str, Any] | None = None  # of the checkpoint that training resumes from
        self._used = False  # whether the pruner had begun before this fit
        self._run: dict[str, Any] | None = None  # what the steps of an epoch depend on
        self._counted = 0  # samples of the epoch that are in the savings
        self._ends_epoch = True  # whether the sampler does outside training

    # -- hooks ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check version and flags, before anything is loaded."""
        self._state = None  # a checkpoint that was only tested is not resumed
        if stage == "fit":
            check_version(trainer)
            _check_trainer(trainer, self.pruner)
            self._used = trainer.current_epoch == 0 and self.pruner.begun

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Load the state of a checkpoint, and set the length of the first epoch."""
        # only now: Lightning has read a length, which must not be 0, and its own loops know where they are
        saved = None if self._state is None else self._state.get("run")
        resumed = self._resume()
        if not resumed:
            check_new(self._used, "fit", "fit(ckpt_path=...)")
            _check_place(trainer, self.pruner)
        done = _batches_done(trainer.fit_loop)
        loader, sampler = _pruned_loader(trainer, self.pruner)
        self._run = {
            "ranks": trainer.world_size,
            "batch size": loader.batch_size,
            "drop_last": loader.drop_last,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
        }
        if saved is not None:
            checks.check_run(self._run, saved)
        _check_plan(trainer, self.pruner, loader, sampler)
        # `on_train_epoch_end` ends epochs: workers fetch ahead
        self._ends_epoch, sampler.ends_epoch = sampler.ends_epoch, False
        if trainer.current_epoch < self.pruner.epochs:
            self._begin_epoch(trainer, done, resumed=resumed)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Select, and set the length of the epoch. Not called where training resumes in the middle of one."""
        self._begin_epoch(trainer, 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the samples, as recorded: a hook of the module may have made anything of the batch."""
        if self._run is not None:
            _check_accumulation(trainer, {self._run["accumulate_grad_batches"]})
        self._savings.add((self.pruner.recorded - self._counted) * trainer.world_size)
        self._counted = self.pruner.recorded

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End the pruner's epoch, unless it was left early, and log."""
        if trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches:
            _pruned_loader(trainer, self.pruner)[1].finish(trainer.current_epoch)
        if trainer.current_epoch == 0:
            self.pruner.sync()
            _check_recorded(self.pruner)
        values = {name: float(value) for name, value in self._savings.values().items()}
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Exchange the last scores, and restore the loader's sampler."""
        self.pruner.sync()
        _pruned_loader(trainer, self.pruner)[1].ends_epoch = self._ends_epoch

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Load the state of a finished run's checkpoint, with which training does not start."""
        self._resume()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State for Lightning's checkpoints. Collective, as writing a checkpoint is: all ranks call it."""
        self.pruner.sync()
        return {"pruner": self.pruner.state_dict(), "savings": self._savings.state_dict(), "run": self._run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts; testing a checkpoint does not change the pruner."""
        if not isinstance(state_dict, dict) or not {"pruner", "savings"} <= state_dict.keys():
            raise CheckpointError("the checkpoint's entry for PruneCallback is not one that PruneCallback wrote")
        self._state = state_dict

    def _resume(self) -> bool:
        if self._state is None:
            return False
        self.pruner.load_state_dict(self._state["pruner"])
        self._savings.load_state_dict(self._state["savings"])
        self._state = None
        return True

    def _begin_epoch(self, trainer: Any, done: int, *, resumed: bool = False) -> None:
        """Select the current epoch; set its length in Lightning, of which `done` batches are trained already."""
        epoch, loop = trainer.current_epoch, trainer.fit_loop
        loader, sampler = _pruned_loader(trainer, self.pruner)
        sampler.set_epoch(epoch)
        self._savings.kept = len(self.pruner.select(epoch)) / self.pruner.size
        self._counted = self.pruner.recorded
        remaining = len(loader)
        if trainer.fast_dev_run:
            remaining = min(remaining, trainer.limit_train_batches)
        loop._combined_loader.limits = [remaining]
        if resumed:  # the present iterator was made before the state was loaded
            iter(loop._data_fetcher)
        loop.max_batches = loop._data_fetcher.length = done + remaining
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
            trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))


class _ChooserCallback(PruneCallback):
    """`PruneCallback` for a chooser: loader, sampler and lengths are the user's own."""

    def __init__(self, pruner: Chooser):
        Callback.__init__(self)
        self.chooser = pruner
        self._saved: dict[str, Any] | None = None  # of the checkpoint that training resumes from

    @property
    def state_key(self) -> str:
        """That of a pruner's callback, so that one is not resumed as the other in silence."""
        return PruneCallback.__qualname__

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget a checkpoint that was only tested."""
        self._saved = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Load the state of a checkpoint."""
        if self._saved is not None:
            self.chooser.load_state_dict(self._saved)
        elif trainer.global_step and not self.chooser.stats()["scored"]:
            raise CheckpointError(
                "the checkpoint has no state of PruneCallback: it can only resume what was trained with one"
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Nothing."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Nothing."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log `rows_scored`, `rows_trained` and `flops_in_rows`, on all ranks; PlanError where nothing was chosen."""
        stats = self.chooser.stats()
        if not stats["scored"]:
            raise PlanError("training_step never called chooser.choose: nothing was chosen, and all rows are trained")
        names = {"rows_scored": "scored", "rows_trained": "trained", "flops_in_rows": "flops"}
        values = {name: float(stats[key] * trainer.world_size) for name, key in names.items()}
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Nothing."""

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """State for Lightning's checkpoints."""
        return {"chooser": self.chooser.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        if not isinstance(state_dict, dict) or "chooser" not in state_dict:
            raise CheckpointError("the checkpoint was not written by a PruneCallback of a chooser")
        self._saved = state_dict["chooser"]


def _batches_done(loop: Any) -> int:
    """Batches of the epoch to resume that the checkpoint had trained; of an epoch that begins, 0."""
    batches = loop.epoch_loop
    progress = batches.batch_progress
    if not loop.restarted_mid_epoch:
        return 0
    # Lightning compares an epoch's steps with those taken so far, which says nothing where lengths change
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    if not (batches.restarted_on_train_batch_end and progress.is_last_batch):
        return progress.current.completed + int(batches.restarted_on_train_batch_end)
    # written after the last batch of an epoch: Lightning has counted the epoch, and would notice that the next one
    # begins only if that is not longer. So it begins as any other does
    progress.increment_completed()
    batches._batches_that_stepped += 1
    loop.reset_restart_stage()
    batches.reset_restart_stage()
    loop.restarting = False
    return 0


# -- checks: errors where the mistake is made --------------------------------------------------------------------------

LOOP = ("max_batches", "restarted_mid_epoch", "reset_restart_stage", "_combined_loader", "_data_fetcher")
EPOCH_LOOP = ("batch_progress", "restarted_on_train_batch_end", "reset_restart_stage", "_batches_that_stepped")

_REPLACES_SAMPLER = (
    "with several processes Lightning puts a sampler of its own around the pruner's, of a length that never changes: "
    "Trainer(use_distributed_sampler=False). The pruner shares the samples among the ranks itself"
)


def check_version(trainer: Any) -> None:
    """Raise ImportError unless a Trainer's loops have what the callback sets."""
    loop = trainer.fit_loop
    missing = [name for name in LOOP if not hasattr(loop, name)]
    missing += [name for name in EPOCH_LOOP if not hasattr(loop.epoch_loop, name)]
    if missing:
        raise ImportError(
            f"this version of lightning has no {', '.join(missing)}: PruneCallback is tested with lightning 2.6.6"
        )


def _check_trainer(trainer: Any, pruner: Pruner) -> None:
    """Raise ValueError where a flag of the Trainer cuts epochs off or replaces the sampler."""
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ValueError(_REPLACES_SAMPLER)
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
    check_epochs("max_epochs", trainer.max_epochs, pruner, f"Trainer(max_epochs={pruner.epochs})")


def _pruned_loader(trainer: Any, pruner: Pruner) -> tuple[DataLoader, PruneSampler]:
    """The Trainer's training loader and its sampler; raises unless it is one loader around this pruner's sampler."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"the training data is a {type(loader).__name__}, one DataLoader is needed: prune_loader(loader, pruner)"
        )
    # a loader with a batch sampler of the user's own has the pruner's sampler in that
    samplers = (loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    sampler = next((sampler for sampler in samplers if isinstance(sampler, PruneSampler)), None)
    if sampler is None:
        raise TypeError(
            _REPLACES_SAMPLER
            if trainer.world_size > 1
            else "the training loader is not pruned: give the Trainer dataprune.prune_loader(loader, pruner)"
        )
    if sampler.pruner is not pruner:
        raise ValueError("PruneCallback and the training loader have different pruners: give both the same")
    return loader, sampler


def _check_place(trainer: Any, pruner: Pruner) -> None:
    """Raise CheckpointError where a Trainer resumes in another epoch than its pruner."""
    if trainer.current_epoch != pruner.epoch or trainer.fit_loop.restarted_mid_epoch:
        raise CheckpointError(
            f"the Trainer resumes in epoch {trainer.current_epoch}, the pruner is in epoch {pruner.epoch}: the "
            "checkpoint has no state of PruneCallback. It can only resume what was trained with one"
        )


def _check_recorded(pruner: Pruner) -> None:
    """Raise PlanError where an epoch has been trained and no score is in the book."""
    if not bool(pruner.book.score.isfinite().any()):
        raise PlanError(
            "training_step never called pruner.loss, so there are no scores to select by: index, batch = batch; "
            "compute losses of shape (B,), and return pruner.loss(index, losses, outputs, targets)"
        )


def _check_plan(trainer: Any, pruner: Pruner, loader: DataLoader, sampler: PruneSampler) -> None:
    """Raise ValueError unless ranks, batches and validation fit the plan; warn of a schedule that does not."""
    shared = trainer.distributed_sampler_kwargs
    replicas = 1 if shared is None else shared["num_replicas"]
    if not replicas == sampler.world_size == trainer.world_size:
        raise ValueError(
            f"the loader shares samples among {sampler.world_size} ranks, the Trainer trains data on {replicas} of "
            f"{trainer.world_size}: give prune_loader neither rank nor world_size, and train data-parallel"
        )
    if loader.batch_size is None:
        return
    check_batch_size(pruner, loader.batch_size, replicas, loader.drop_last)
    options = {"world_size": replicas, "drop_last": loader.drop_last}
    smallest = epoch_steps(min(pruner.counts), loader.batch_size, accumulate=1, **options)
    every = trainer.val_check_interval
    if isinstance(every, int) and trainer.enable_validation and trainer.check_val_every_n_epoch and every > smallest:
        raise ValueError(
            f"val_check_interval={every}, but an epoch of the pruner has {smallest} batches and would not be "
            "validated: give it a share such as 1.0, or add check_val_every_n_epoch=None to count batches across epochs"
        )
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            _check_accumulation(trainer, {callback.get_accumulate_grad_batches(e) for e in range(pruner.epochs)})
    _check_schedules(trainer, pruner, loader.batch_size, options | {"accumulate": trainer.accumulate_grad_batches})


def _check_accumulation(trainer: Any, factors: set[int]) -> None:
    """Raise ValueError where the accumulation is not always the same, under a schedule that counts its steps."""
    factors = factors | {trainer.accumulate_grad_batches}
    if len(factors) > 1 and any(config.interval == "step" for config in trainer.lr_scheduler_configs):
        raise ValueError(
            f"accumulate_grad_batches changes while training ({sorted(factors)}, as GradientAccumulationScheduler "
            "makes it), so that planned_steps, which counts with one number, is not the length of the learning-rate "
            "schedule: Trainer(accumulate_grad_batches=...) with one number, or a schedule of interval 'epoch'"
        )


def _check_schedules(trainer: Any, pruner: Pruner, batch_size: int, options: dict[str, Any]) -> None:
    """Raise ValueError where max_steps is not the plan's number of steps; warn where a schedule does not span them."""
    planned = pruner.planned_steps(batch_size, **options)
    if trainer.max_steps not in (-1, planned) and not trainer.fast_dev_run:
        raise ValueError(
            f"max_steps={trainer.max_steps}, but the pruner's plan has {planned} steps: leave it out, and for a "
            "shorter run build the pruner with fewer epochs (EarlyStopping works)"
        )
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
