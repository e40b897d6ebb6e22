"""TRL's GRPOTrainer on the prompts that a policy proposes: `PromptPruner`.

    prompts = dataprune.prompts.Prompts(len(train_set), dataprune.prompts.greso())
    trainer = GRPOTrainer(model, reward_funcs, args, train_dataset=train_set)
    PromptPruner(prompts).attach(trainer)
    trainer.train()

Needs the extra `trl`; tested with trl 1.16.0. Five methods of the trainer are wrapped, which are no stable API; tests
pin them. The sampler is not replaced: the trainer's loader reads batches ahead, so that a proposal made there would not
know the last rewards.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import distributed, files
from ..errors import CheckpointError, needs
from ..prompts import Prompts

with needs("PromptPruner needs TRL", "trl"):
    from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]  # its modules load lazily

__all__ = ["PromptPruner"]

STATE = "prompts.pt"  # in a checkpoint's folder
_LAST = "trainer_state.json"  # what the Trainer writes last


class PromptPruner:
    """Makes a GRPOTrainer roll out the prompts that a policy proposes, and the policy learn from their rewards.

    Each time the trainer generates, the rows of its batch are replaced by those of newly proposed prompts,
    `num_generations` times each. The numbers of steps, completions and epochs stay those of the trainer; what changes
    is which prompts they are spent on.

    Logged with the trainer's metrics: `prompts/no_variance`, the share of groups without variance since the last log;
    `prompts/rollouts`, of which the policy knows; for `greso` `prompts/rollouts_saved`, those that the skipped prompts
    would have taken; and more of `Prompts.stats`.

    A checkpoint has the state in `prompts.pt`. One that is saved before a generation batch is used up
    (`steps_per_generation` or `num_iterations` above what one step takes) loses the rest of it when training resumes:
    the trainer does not save completions.

    Args:
        prompts: with size=len(train_dataset), alike on every rank.
        score: (n, number of reward functions) rewards -> (n,) scores in [0, 1], NaN where a completion could not be
            scored. By default the weighted sum of the rewards, which is what the trainer computes advantages from.
    Raises:
        TypeError: if prompts is no `Prompts`.
    """

    def __init__(self, prompts: Prompts, *, score: Callable[[Float[Tensor, "n f"]], Float[Tensor, " n"]] | None = None):
        if not isinstance(prompts, Prompts):
            raise TypeError(f"prompts must be a dataprune.prompts.Prompts, got {type(prompts).__name__}")
        self.prompts = prompts
        self.score = score
        self._ids: Tensor | None = None  # of the completions that this rank generates
        self._shares: list[float] = []  # of groups without variance, since the last log
        self._new: dict[str, Any] = {}  # state when attached

    def attach(self, trainer: Any) -> Any:
        """Wrap the methods of a trainer, before it trains; on every rank.

        Args:
            trainer: a GRPOTrainer.
        Returns:
            The same trainer.
        Raises:
            TypeError, ValueError: if trainer and prompts do not fit, or it has a pruner already; says what to do.
            ImportError: if this version of TRL has no such methods.
            CheckpointError: if the prompts were bound to another data set.
        """
        self._check(trainer)
        self.prompts.bind(trainer.train_dataset)
        self._new = copy.deepcopy(self.prompts.state_dict())
        self._trainer = trainer
        for name, wrapper in self._wrappers().items():
            setattr(trainer, name, partial(wrapper, getattr(trainer, name)))
        return trainer

    def _wrappers(self) -> dict[str, Callable[..., Any]]:
        return {
            "_generate_and_score_completions": self._generate,
            "_calculate_rewards": self._record,
            "_init_training_state": self._begin,
            "_save_checkpoint": self._save,
            "log": self._log,
        }

    # -- around the trainer's methods; the first argument is the method itself ----------------------------------------

    def _generate(self, generate: Callable[..., Any], inputs: list[dict[str, Any]]) -> Any:
        trainer = self._trainer
        self._ids = None
        if not trainer.model.training:
            return generate(inputs)
        rank, ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
        proposed = self.prompts.propose(len(inputs) * ranks // trainer.num_generations)
        self._ids = proposed.repeat_interleave(trainer.num_generations)[rank * len(inputs) :][: len(inputs)]
        loader = trainer.callback_handler.train_dataloader
        rows = {i: loader.dataset[i] for i in self._ids.unique().tolist()}
        return generate(loader.collate_fn([copy.copy(rows[i]) for i in self._ids.tolist()]))

    def _record(
        self, calculate: Callable[..., Tensor], inputs: list[dict[str, Any]], *rest: Any, **more: Any
    ) -> Tensor:
        rewards = calculate(inputs, *rest, **more)
        if (ids := self._ids) is not None:
            scores = self._scores(rewards)
            groups = scores.view(-1, self._trainer.num_generations)
            lowest, highest = groups.nan_to_num(torch.inf).amin(1), groups.nan_to_num(-torch.inf).amax(1)
            self._shares.append(float((lowest >= highest).float().mean()))
            local = scores[self._trainer.accelerator.process_index * len(ids) :][: len(ids)]
            different = ids.unique()
            self._tell(different, [local[(ids == i) & ~local.isnan()] for i in different])
            self._ids = None
        return rewards

    def _begin(self, begin: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = begin(*args, **kwargs)
        checkpoint = kwargs.get("resume_from_checkpoint", args[3] if len(args) > 3 else None)
        self._ids, self._shares = None, []
        if checkpoint is None or not os.path.isfile(os.path.join(checkpoint, _LAST)):
            self.prompts.load_state_dict(self._new)  # a second train() starts anew, as the trainer does
            return result
        path = Path(checkpoint, STATE)
        if not path.is_file():
            raise CheckpointError(
                f"no {path}: the checkpoint was saved without a PromptPruner; resume it without one, or start again"
            )
        self.prompts.load_state_dict(files.read_state(path, "resume from an older checkpoint, or start again"))
        return result

    def _save(self, save: Callable[..., Any], model: Any, trial: Any) -> Any:
        trainer = self._trainer
        if not trainer.args.save_only_model:
            self.prompts.sync()  # on every rank; then any rank's state is whole
            folder = Path(trainer._get_output_dir(trial=trial), f"checkpoint-{trainer.state.global_step}")
            if trainer.args.should_save:
                folder.mkdir(parents=True, exist_ok=True)
                files.write_state(folder / STATE, self.prompts.state_dict())
        return save(model, trial)

    def _log(self, log: Callable[..., Any], logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        if self._trainer.model.training:
            if "train_runtime" in logs:
                self.prompts.sync()  # the last rewards; this log is made by all ranks
            numbers = self.prompts.stats()
            named = ("rollouts", "rollouts_saved", "p_easy", "p_hard", "explored", "never_seen")
            logs.update({f"prompts/{name}": numbers[name] for name in named if name in numbers})
            if self._shares:
                logs["prompts/no_variance"] = sum(self._shares) / len(self._shares)
                self._shares = []
        return log(logs, *args, **kwargs)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _scores(self, rewards: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
        rewards = rewards.detach().cpu().float()
        if self.score is None:
            scores = (rewards * self._trainer.reward_weights.cpu()).nansum(dim=1)
            return torch.where(rewards.isnan().all(dim=1), torch.nan, scores)
        scores = torch.as_tensor(self.score(rewards)).float()
        if scores.shape != rewards.shape[:1]:
            raise ValueError(f"score must return (n,) numbers for {tuple(rewards.shape)}, got {tuple(scores.shape)}")
        return scores

    def _tell(self, ids: Tensor, groups: list[Tensor]) -> None:
        try:
            self.prompts.record(ids, groups)
        except ValueError as error:
            names = ", ".join(self._trainer.reward_func_names)
            raise ValueError(
                f"{error}. Here: PromptPruner(prompts, score=...), a function from the (n, f) rewards of {names} to n "
                "scores, such as `lambda rewards: rewards[:, 0]`, the first alone"
            ) from error

    def _check(self, trainer: Any) -> None:
        if not isinstance(trainer, GRPOTrainer):
            raise TypeError(f"PromptPruner serves TRL's GRPOTrainer and classes derived from it, not {_kind(trainer)}")
        wrapped = self._wrappers()
        if missing := [name for name in wrapped if not hasattr(trainer, name)]:
            raise ImportError(f"GRPOTrainer has no {', '.join(missing)}: use trl 1.16, which this is tested with")
        if any(name in vars(trainer) for name in wrapped):
            raise ValueError("methods of this trainer are wrapped already: attach one PromptPruner, once")
        args: Any = trainer.args
        data = trainer.train_dataset
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(
                f"the train_dataset is a stream ({_kind(data)}), whose prompts have no numbers: give a Dataset, as by "
                "load_dataset(..., streaming=False)"
            )
        if self.prompts.policy.discards:
            raise ValueError(
                f"{self.prompts.policy} throws groups away and proposes more for the same step, but GRPOTrainer trains "
                "on every group it generated: use greso(), mopps() or uniform()"
            )
        if (count := args.generation_batch_size // trainer.num_generations) > self.prompts.size:
            raise ValueError(
                f"a generation batch has {count} prompts, more than the {self.prompts.size} there are: lower "
                "generation_batch_size (per_device_train_batch_size * ranks * steps_per_generation)"
            )
        if not trainer.shuffle_dataset:
            raise ValueError(
                "shuffle_dataset=False asks for the order of the data set, but the policy chooses the prompts: leave "
                "it True"
            )
        several = trainer.multi_objective_aggregation != "sum_then_normalize" and len(trainer.reward_funcs) > 1
        if several and self.score is None:
            raise ValueError(
                f"multi_objective_aggregation={trainer.multi_objective_aggregation!r} makes advantages of each reward "
                "function by itself: say by PromptPruner(prompts, score=...) which tell whether a prompt is solved"
            )
        if args.world_size != distributed.world_size():
            raise ValueError(
                f"there are {distributed.world_size()} processes, but the trainer sees {args.world_size}: on CPUs set "
                "GRPOConfig(use_cpu=True), and train data-parallel"
            )


def _kind(value: Any) -> str:
    return type(value).__name__
