"""Hugging Face's Trainer on what a pruner selects: `PrunedTrainer`, and the mixin for Trainers of your own.

    pruner = dataprune.emp(len(train_set), keep=0.3, epochs=3)
    trainer = PrunedTrainer(model, TrainingArguments(num_train_epochs=3), train_dataset=train_set, pruner=pruner)
    trainer.train()

Needs the extra `hf`. The methods that are overridden are not all stable API of transformers; tests pin them.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, SequentialSampler

from ... import checks
from ...indexed import Indexed
from ...learning_rate import Progress
from ...online import Chooser
from ...pruner import Pruner
from ...schedules import epoch_steps
from ..trainers import Savings, check_new
from . import checkpoints, loading, online, sample_losses, trainer_checks
from .loading import INDEX, WholeEpochs
from .online import ChosenBatches
from .sample_losses import SampleLosses, outputs_of

PerSampleLoss = Callable[[Any, Any], Tensor]  # (the model's outputs, labels) -> (B,)


class PrunedTrainerMixin(ChosenBatches):
    """Makes a Trainer train what a pruner selects: `class Mine(PrunedTrainerMixin, SFTTrainer): pass`.

    It comes first among the bases; methods of your own that do not call `super()`, such as `compute_loss`, go into a
    class after it. What is back-propagated is the loss of the Trainer it is mixed into; the scores come from the
    outputs of the model, which are read on the way. Where a method weights samples (`infobatch`), or `per_sample_loss`
    is given, the loss is the weighted one.

    Args:
        pruner: new, built with size=len(train_dataset) and epochs=num_train_epochs, alike on every rank; or a chooser
            of `dataprune.online`, which trains `per_device_train_batch_size` rows of every super-batch.
        per_sample_loss: (outputs, labels) -> (B,) losses, attached to the graph; in place of the model's own loss.
    Raises:
        ValueError, TypeError: if dataset, arguments and pruner do not fit; the message says what to do.
        ImportError: if transformers is too old.
    """

    def __init_subclass__(cls, **more: Any):
        super().__init_subclass__(**more)
        trainer_checks.check_bases(cls, PrunedTrainerMixin)

    def __init__(
        self, *args: Any, pruner: Pruner | Chooser, per_sample_loss: PerSampleLoss | None = None, **kwargs: Any
    ):
        trainer_checks.check_version(super())
        self.chooser = pruner if isinstance(pruner, Chooser) else None
        if kwargs.get("train_dataset") is not None and self.chooser is None:
            Indexed(kwargs["train_dataset"])  # refuses a stream, for which the Trainer would only ask for max_steps
        super().__init__(*args, **kwargs)
        self.pruner: Any = pruner
        self.per_sample_loss = per_sample_loss
        if per_sample_loss is not None:
            self.loss_is_scaled_for_ga = False  # a mean over the micro-batch, which the Trainer divides
        self._weights_agree = False  # whether weighted and plain loss have been compared
        self._warned = False
        if isinstance(pruner, Chooser):
            online.check(self)
            self._new_chooser = copy.deepcopy(pruner.state_dict())
            return
        trainer_checks.check(self)
        check_new(pruner.begun, "Trainer", "train(resume_from_checkpoint=...)")
        self._new_pruner = copy.deepcopy(pruner.state_dict())
        self._loader: DataLoader | None = None  # that was built last
        self._sampler: WholeEpochs | None = None  # that training iterates
        self._savings = Savings()
        self._evaluation_seconds = 0.0
        self._index: Tensor | None = None  # of the batch that was recorded last
        self._progress: Progress | None = None  # where the losses decide how long epochs are
        self._begin = 0  # global step that the epoch began with

    # -- planning ---------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's own loader, rebuilt around the pruner's sampler; batches carry their positions under INDEX.

        One that a callback asks for while training runs yields the running selection, without positions, and changes
        nothing.
        """
        if self.chooser is not None:
            return super().get_train_dataloader()
        dataset: Any = self.train_dataset
        order = self._get_train_sampler(dataset)
        loading.check_sampler(order, self.pruner.size)  # accelerate would replace subclasses of RandomSampler
        sampler = WholeEpochs(
            self.pruner,
            batch_size=self._train_batch_size,
            drop_last=self.args.dataloader_drop_last,
            shuffle=not isinstance(order, SequentialSampler),
            ends_epoch=False,
            lengths=getattr(order, "lengths", None),  # of `group_by_length`
        )
        loader = super().get_train_dataloader()
        self._loader = loading.rebuilt(loader, sampler, self.accelerator, indexed=not self.is_in_train)
        return self._loader

    def set_initial_training_values(
        self, args: Any, dataloader: DataLoader
    ) -> tuple[int, int, int, int, int, int | None, int]:
        """The numbers of the run, from the pruner's plan in place of the first epoch's length."""
        if self.chooser is not None:
            return super().set_initial_training_values(args, dataloader)
        trainer_checks.check(self)
        trainer_checks.check_loader(self._loader)
        self._sampler = loading.train_on(self._loader)
        self.pruner.bind(self.train_dataset)
        total, sizes = self.get_total_train_batch_size(args), self.pruner.epoch_sizes()
        plan = [self._steps(size) for size in sizes]
        steps = args.max_steps if args.max_steps > 0 else sum(plan)
        if steps > sum(plan):
            raise ValueError(
                f"max_steps={steps}, but the pruner's {self.pruner.epochs} epochs have {sum(plan)} steps: build it "
                "with more epochs, or lower max_steps"
            )
        samples = steps * total if args.max_steps > 0 else sum(sizes)
        return self.pruner.epochs, plan[0], self.pruner.size, samples, total, self._batches(sizes[0]), steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's schedule; over the share of the run that is done where epoch lengths are not known before."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.chooser is not None:
            return scheduler
        if self._progress is not None and self._created_lr_scheduler and isinstance(scheduler, LambdaLR):
            progress = self._progress
            done = lru_cache(maxsize=1)(lambda step: progress.step())  # asked once for each group of parameters

            def over_share(shape: Callable[..., float]) -> Callable[[int], float]:
                return lambda step: shape(done(step) * num_training_steps)

            scheduler.lr_lambdas = [over_share(shape) for shape in scheduler.lr_lambdas]
        return scheduler

    def _run(self) -> dict[str, Any]:
        """What the length of an epoch in steps depends on."""
        return {
            "batch_size": self._train_batch_size,
            "world_size": self.args.world_size,
            "accumulate": self.args.gradient_accumulation_steps,
            "drop_last": self.args.dataloader_drop_last,
        }

    def _steps(self, samples: int) -> int:
        return epoch_steps(samples, **self._run())

    def _batches(self, samples: int) -> int:
        return epoch_steps(samples, **dict(self._run(), accumulate=1))

    # -- training ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's training; True resumes from the newest checkpoint that was written whole."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoints.newest(str(self.args.output_dir)) or True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, **loop: Any) -> None:
        if self.chooser is not None:
            return super()._run_epoch(**loop)
        epoch = loop["epoch"]
        count = len(self.pruner.select(epoch))
        steps = self._steps(count)
        if not (epoch == loop["epochs_trained"] and loop["steps_trained_in_current_epoch"]):
            self._begin = self.state.global_step
        if self._progress is not None:  # lengths are known up to this epoch
            self.state.max_steps = self._begin + steps + sum(map(self._steps, self.pruner.epoch_sizes()[epoch + 1 :]))
        self._savings.kept = count / self.pruner.size
        super()._run_epoch(**loop | {"steps_in_epoch": self._batches(count), "num_update_steps_per_epoch": steps})
        assert self._sampler is not None
        if self.state.global_step - self._begin == steps:
            self._sampler.finish(epoch)
        if self.control.should_training_stop or epoch + 1 == self.pruner.epochs:
            self.pruner.sync()  # the last scores

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss; while training, scores are recorded and the method's weights applied.

        Of several passes over a batch only the first is recorded, at the weights that the sample was trained with.
        """
        if self.chooser is not None:
            return self._chosen_loss(model, inputs, return_outputs, num_items_in_batch)
        index, record = inputs.get(INDEX), False
        if index is not None:
            inputs = copy.copy(inputs)  # a second pass, as SAM makes one, finds the index and the labels in its batch
            del inputs[INDEX]
            record = index is not self._index
            self._index = index
            self._savings.add(record * len(index) * self.args.world_size)
        if self.per_sample_loss is not None:
            return self._custom_loss(model, inputs, index, return_outputs, record)
        options = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if index is None:  # evaluation
            return super().compute_loss(model, inputs, **options)
        original = dict(inputs)  # the Trainer may remove the labels
        with outputs_of(model) as seen:
            result: Any = super().compute_loss(model, inputs, **options)
        loss, outputs = result if return_outputs else (result, None)
        with torch.set_grad_enabled(self.pruner.weighted):
            losses = self._read(seen[0] if seen else None, original)
        if losses is None:  # fall back to the batch mean for every sample; a 1-d output tells that there are no logits
            scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            batch = loss.detach() * (self.current_gradient_accumulation_steps if scaled else 1)
            scored = (batch.expand(len(index)), (batch.expand(len(index)), None), None)
        else:
            trainer_checks.check_rows(losses.total, index)
            scored = (losses.mean().detach(), losses.outputs, losses.targets)
        if record:
            self.pruner.update(index, *scored)
        if self.pruner.weighted:
            loss = self._weighted(loss, losses, self.pruner.weight(index), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _read(self, outputs: Any, inputs: dict[str, Any]) -> SampleLosses | None:
        shifted = inputs.get("shift_labels")
        config = getattr(self.model, "config", None)
        losses = sample_losses.read(
            outputs,
            inputs.get("labels") if shifted is None else shifted,
            shift=shifted is None and self._loss_shifts_labels,
            smoothing=self.args.label_smoothing_factor,
            problem=getattr(config, "problem_type", None),
        )
        if losses is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"no losses per sample can be read from {type(outputs).__name__}: every sample of a batch is scored by "
                "the loss of the batch. Pass per_sample_loss=(outputs, labels) -> (B,) losses to score them one by one",
                UserWarning,
                stacklevel=3,
            )
        return losses

    def _weighted(self, loss: Tensor, losses: SampleLosses | None, weight: Tensor, items: Any) -> Tensor:
        """The Trainer's loss with each sample's share multiplied by its weight, in the Trainer's own normalisation."""
        if losses is None:
            return weight.mean() * loss
        if not self._weights_agree:
            trainer_checks.check_sum(loss, losses, items, self.accelerator.num_processes)
            self._weights_agree = True
        total = losses.total.detach().sum()
        # how models divide by items, micro-batches and ranks differs: what this one did is in its own loss
        scale = loss.detach() / total.where(total != 0, 1)
        return (weight * losses.total).sum() * scale

    def _custom_loss(self, model: Any, inputs: Any, index: Tensor | None, return_outputs: bool, record: bool) -> Any:
        assert self.per_sample_loss is not None
        labels = inputs.pop("labels", None)
        outputs = model(**inputs)
        losses = self.per_sample_loss(outputs, labels)
        if index is None:
            loss = losses.mean()
        else:
            trainer_checks.check_attached(losses)
            with torch.no_grad():  # for what the criterion may read
                read = sample_losses.read(outputs, labels, shift=self._loss_shifts_labels)
            carried = (losses.detach(), None) if read is None else (read.outputs, read.targets)
            loss = self.pruner.loss(index, losses, *carried, record=record)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's logs, and in those of training what pruning does: `kept`, `samples_trained`, `samples_saved`.

        `samples_saved` is the share that full epochs would have trained besides; `seconds_saved` at the end is the
        training time of as many samples, an estimate.
        """
        if self.chooser is not None:
            logs |= self._online_logs() if self.is_in_train and ("loss" in logs or "train_runtime" in logs) else {}
            return super().log(logs, start_time)
        if self.is_in_train and "loss" not in logs and "train_runtime" not in logs:
            self._evaluation_seconds += sum(value for name, value in logs.items() if name.endswith("_runtime"))
        elif self.is_in_train and self._savings.trained:
            logs |= {name: round(value, 6) for name, value in self._savings.values().items()}
            if "train_runtime" in logs:
                seconds = max(0.0, logs["train_runtime"] - self._evaluation_seconds)
                logs["seconds_saved"] = round(seconds * (self._savings.replaced / self._savings.trained - 1), 4)
        super().log(logs, start_time)

    # -- resuming ---------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.args.save_only_model:
            if self.chooser is None:
                self.pruner.sync()  # on every rank; then any rank's state is whole
            folder = os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            if self.args.should_save:
                checkpoints.save(folder, self._state())
        super()._save_checkpoint(model, trial)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Where to start, as (epoch, micro-batches trained in it); the Trainer divides by steps per epoch."""
        place = super()._init_training_state(*args, **kwargs)
        checkpoint = kwargs.get("resume_from_checkpoint", args[3] if len(args) > 3 else None)
        if self.chooser is not None:
            saved = checkpoint is not None and os.path.isfile(os.path.join(checkpoint, checkpoints.LAST))
            state = checkpoints.load(str(checkpoint)).get("chooser") if saved else self._new_chooser
            self.chooser.load_state_dict(state or {})
            return place
        self._begin, self._savings, self._evaluation_seconds = 0, Savings(), 0.0
        self._progress, self._weights_agree = None, False
        if self.args.max_steps <= 0 and not self.pruner.policy.exact:
            self._progress = Progress(self.pruner, **self._run())
        if checkpoint is None or not os.path.isfile(os.path.join(checkpoint, checkpoints.LAST)):
            self.pruner.load_state_dict(self._new_pruner)  # a second train() starts anew, as the Trainer does
            return 0, 0
        return self._resume(checkpoint)

    def _state(self) -> dict[str, Any]:
        if self.chooser is not None:
            return {"chooser": self.chooser.state_dict()}
        return {
            "pruner": self.pruner.state_dict(),
            "run": self._run(),
            "begin": self._begin,
            "savings": self._savings.state_dict(),
            "pace": None if self._progress is None else {"progress": self._progress.state_dict()},
        }

    def _resume(self, checkpoint: str) -> tuple[int, int]:
        state = checkpoints.load(checkpoint)
        checks.check_run(self._run(), state["run"])
        self.pruner.load_state_dict(state["pruner"])
        self._begin = state["begin"]
        self._savings.load_state_dict(state["savings"])
        if self._progress is not None and state["pace"] is not None:
            self._progress.load_state_dict(state["pace"]["progress"])
        epoch, steps = state["pruner"]["epoch"], self.state.global_step - self._begin
        count = len(self.pruner.select(epoch))
        self._savings.kept = count / self.pruner.size
        return (epoch + 1, 0) if steps >= self._steps(count) else (epoch, steps * self.args.gradient_accumulation_steps)
