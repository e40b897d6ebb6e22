"""Lightning's Trainer on what a pruner selects: `PruneCallback`.

    pruner = dataprune.emp(len(train_set), keep=0.3, epochs=10)
    trainer = Trainer(max_epochs=10, callbacks=[PruneCallback(pruner)], use_distributed_sampler=False)
    trainer.fit(model, dataprune.prune_loader(loader, pruner))  # training_step calls pruner.loss

Needs the extra `lightning`. Lightning reads the length of an epoch once, and the callback tells it each epoch's anew.
The attributes of its loops that it sets are no stable API; tests pin them.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ... import checks
from ...errors import CheckpointError
from ...pruner import Pruner
from ..savings import Savings
from . import trainer_checks

_missing: ImportError | None = None
if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
else:
    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError as error:  # said when it is used
        Callback, _missing = object, error


class PruneCallback(Callback):
    """Makes a Trainer follow a pruner: the length of every epoch, checkpoints, and logs.

    The training loader is `prune_loader(loader, pruner)`, or one of your own around `PruneSampler(pruner)`, and the
    module's `training_step` calls `pruner.loss`. Logged at the end of each epoch: `kept` (share of the data in its
    selection), `samples_trained` (so far, on all ranks), `samples_saved` (share of what full epochs would have
    trained).

    Args:
        pruner: new, built with epochs=max_epochs, alike on every rank.
    Raises:
        ImportError: if lightning is missing, or too old or too new.
        ValueError, TypeError: when training starts, if Trainer, loader and pruner do not fit; says what to do.
        CheckpointError: if the checkpoint to resume from was written without this callback, or with another pruner.
    """

    def __init__(self, pruner: Pruner):
        if _missing is not None:
            raise ImportError(
                f"PruneCallback needs lightning: pip install -c constraints.txt -e '.[lightning]' ({_missing})"
            ) from _missing
        if not isinstance(pruner, Pruner):
            raise TypeError(
                f"pruner must be a dataprune.Pruner, such as dataprune.emp(...), got {type(pruner).__name__}"
            )
        super().__init__()
        self.pruner = pruner
        self._savings = Savings()
        self._kept = 1.0  # share of the data in this epoch's selection
        self._state: dict[str, Any] | None = None  # of the checkpoint that training resumes from
        self._used = False  # whether the pruner had begun before this fit
        self._run: dict[str, Any] | None = None  # what the steps of an epoch depend on
        self._ends_epoch = True  # whether the sampler does outside training

    # -- hooks ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, before anything is loaded."""
        self._state = None  # a checkpoint that was only tested is not resumed
        if stage == "fit":
            trainer_checks.check_version(trainer)
            trainer_checks.check_trainer(trainer, self.pruner)
            self._used = trainer.current_epoch == 0 and self.pruner.selected is not None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take up the state of a checkpoint, and tell Lightning how long the first epoch is."""
        # only now: Lightning has read a length, which must not be 0, and its own loops know where they are
        saved = None if self._state is None else self._state.get("run")
        resumed = self._resume()
        if not resumed:
            trainer_checks.check_new(trainer, self.pruner, used=self._used)
        done = _batches_done(trainer.fit_loop)
        loader, sampler = trainer_checks.pruned_loader(trainer, self.pruner)
        self._run = trainer_checks.run_of(trainer, loader)
        if saved is not None:
            checks.check_run(self._run, saved)
        trainer_checks.check_plan(trainer, self.pruner, loader, sampler)
        self._ends_epoch, sampler.ends_epoch = (
            sampler.ends_epoch,
            False,
        )  # `on_train_epoch_end` does: workers fetch ahead
        if trainer.current_epoch < self.pruner.epochs:
            self._open(trainer, done, again=resumed)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Select, and tell Lightning how long the epoch is. Not called where training resumes in the middle of one."""
        self._open(trainer, 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count."""
        self._savings.add(len(batch[0]) * trainer.world_size, self._kept)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Say that the epoch is over, if it was not left early, and log."""
        if trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches:
            trainer_checks.pruned_loader(trainer, self.pruner)[1].finish(trainer.current_epoch)
        if trainer.current_epoch == 0:
            self.pruner.sync()
            trainer_checks.check_recorded(self.pruner)
        values = {"kept": self._kept, "samples_trained": float(self._savings.trained)}
        if self._savings.trained:
            values["samples_saved"] = 1 - self._savings.trained / self._savings.replaced
        pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Take in the last scores, and leave the loader as it was."""
        self.pruner.sync()
        trainer_checks.pruned_loader(trainer, self.pruner)[1].ends_epoch = self._ends_epoch

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Where the checkpoint was of a finished run, training did not start."""
        self._resume()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Goes into Lightning's checkpoints. Collective, as writing a checkpoint is: all ranks call it."""
        self.pruner.sync()
        return {"pruner": self.pruner.state_dict(), "savings": self._savings.state_dict(), "run": self._run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until training starts; testing a checkpoint leaves the pruner as it is."""
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

    # -- inside -----------------------------------------------------------------------------------------------------

    def _open(self, trainer: Any, done: int, *, again: bool = False) -> None:
        """Select the current epoch; tell Lightning its length, of which `done` batches are trained already."""
        epoch, loop = trainer.current_epoch, trainer.fit_loop
        loader, sampler = trainer_checks.pruned_loader(trainer, self.pruner)
        sampler.set_epoch(epoch)
        self._kept = len(self.pruner.select(epoch)) / self.pruner.size
        rest = len(loader)
        if trainer.fast_dev_run:
            rest = min(rest, trainer.limit_train_batches)
        loop._combined_loader.limits = [rest]
        if again:  # the iterator that is there was made before the state was loaded
            iter(loop._data_fetcher)
        loop.max_batches = loop._data_fetcher.length = done + rest
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
            trainer.val_check_batch = max(1, int(loop.max_batches * trainer.val_check_interval))


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
