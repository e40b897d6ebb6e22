"""Choose the rows to train inside every batch: the methods `online:NAME`, NAME a recipe of `dataprune.online`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ... import distributed, online
from ...errors import UsageError, suggest
from ...online import Chooser
from ...pruner import Pruner
from .device import reseed, stream
from .run_folder import PASSES
from .settings import ONLINE, Settings, require
from .tasks import Task

RECIPES = {
    "uniform": online.uniform,
    "loss": online.loss,
    "memory": online.memory,
    "divbs": online.divbs,
    "window": online.window,
}
NAMES = tuple(ONLINE + name for name in RECIPES)
_CLASSES = ("memory", "divbs")  # recipes that read the logits of classes


def check(method: str, task: str) -> None:
    """Check that there is such a recipe, and that the task has what it reads."""
    name = method.removeprefix(ONLINE)
    require(
        name != "excess",
        "online:excess needs a reference model, which no option gives: choose by dataprune.online.excess in a loop of "
        f"your own, or take {', '.join(RECIPES)}",
    )
    require(name in RECIPES, suggest(name, RECIPES, what="online recipe"))
    require(
        task != "contrastive", "a view's loss depends on the whole batch in contrastive learning: leave online: out"
    )
    require(
        task != "glue/stsb" or name not in _CLASSES,
        f"{method} reads classes, and {task} predicts a score: take online:loss",
    )


def build(settings: Settings) -> Chooser:
    """Build the chooser of the settings' method."""
    recipe, options = RECIPES[settings.online], settings.options()
    arguments = options.get("", {}) | options.get(settings.method, {})
    known = [name for name in inspect.signature(recipe).parameters if name not in ("keep", "seed", "criterion")]
    for name in arguments:
        require(name in known, suggest(name, known, what=f"option of {settings.method}"))
    require(
        settings.online != "window" or distributed.world_size() == 1,
        "online:window remembers the scores of one process, so that several could not be resumed: use one",
    )
    try:
        return recipe(settings.kept, seed=settings.seed, **arguments)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def step_cost(settings: Settings) -> float:
    """What a step counts against `--steps`: with `count_forwards` its super-batch's scoring is added."""
    if not (settings.online and settings.count_forwards):
        return 1.0
    return 1 + settings.rows_read / (PASSES * settings.batch_size)


class Choosing:
    """Chooses what a run trains of each super-batch, and counts how often each sample was trained.

    A rank's counts stay on its device; they are added over ranks at checkpoints and when an epoch ends.
    """

    def __init__(self, settings: Settings, pruner: Pruner, device: torch.device, task: Task, model: nn.Module):
        self.settings, self.pruner, self.task, self.model, self.device = settings, pruner, task, model, device
        self.chooser = build(settings)
        self.counts = torch.zeros(
            pruner.size, dtype=torch.int32, device=device
        )  # of the open epoch, trained by this rank
        self.scored = settings.rows_read * distributed.world_size()  # rows that a step scores, on all ranks
        self._steps = 0  # of the open epoch
        self._weight = torch.ones(0)

    def choose(self, index: Int[Tensor, " s"], inputs: Any, labels: Tensor, step: int) -> tuple[Any, Tensor]:
        """Inputs and labels of the rows of a super-batch that a forward pass without gradients chooses."""
        reseed(self.device, stream(self.settings.seed, "scoring", step, distributed.rank()))  # for dropout
        with self.chooser.scoring(self.model):
            output = self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)
            losses, outputs, _ = self.task.losses(output, labels)
        self.pruner.update(index, losses)  # whose position in the epoch is what it has seen
        rows, self._weight = self.chooser.choose(losses, outputs, labels, ids=index)
        self.counts[index.to(self.device)[rows]] += 1
        self._steps += 1
        return self.task.take(inputs, rows), labels[rows]

    def loss(self, losses: Tensor) -> Tensor:
        """The weighted mean of the chosen rows' losses (K,)."""
        return (self._weight * losses).mean()

    def close(self, before: Int[Tensor, " n"]) -> tuple[Int[Tensor, " k"], dict[str, Any]]:
        """End an epoch. Collective.

        Args:
            before: how often each sample was trained in earlier epochs.
        Returns:
            The samples trained in this one, and what its record has of `Pruner.stats`.
        """
        counts, scored = self._total(), self._steps * self.scored
        keep = int(counts.sum()) / scored if scored else self.settings.kept
        never = float((before + counts == 0).double().mean())
        self.counts.zero_()
        self._steps = 0
        return (counts > 0).nonzero()[:, 0], {"reached_keep": keep, "overlap": None, "never_seen": never}

    def sync(self) -> None:
        """Collective: bring the counts of all ranks to rank 0, whose state then holds all."""
        counts = self._total()
        self.counts.copy_(counts if distributed.rank() == 0 else torch.zeros_like(counts))

    def state_dict(self) -> dict[str, Any]:
        """State of this rank."""
        return {"chooser": self.chooser.state_dict(), "counts": self.counts.cpu(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of rank 0."""
        self.chooser.load_state_dict(state["chooser"])
        self._steps = state["steps"]
        self.counts.zero_()
        if distributed.rank() == 0:
            self.counts += state["counts"].to(self.device)

    def _total(self) -> Int[Tensor, " n"]:
        return torch.from_numpy(distributed.total(self.counts.cpu().numpy().copy()))
