"""Score a super-batch without gradients, and choose the rows to train from their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .. import criteria
from ..checks import WHOLE, check_floating
from ..criteria import Criterion
from ..errors import CheckpointError, UsageError
from ..hashing import Key
from ..modules import device_of
from ..schedules import check_fraction

FORWARD = 1 / 3  # cost of a row's forward pass, where training it costs 1: a backward pass is about two forward passes
_FLOOR = 1e-3  # of the mean score: least probability of being drawn, so that weights are bounded
_DRAW, _START, _SCORING = 1, 2, 3  # draws of a row's hash beside that which breaks ties, 0
OWN = 4  # first draw that is a subclass's own
_NEGATIVE = (criteria.loss_minus_distance,)  # criteria whose scores can be negative
_SCHEMA = 1


class Chooser:
    """Chooses which rows of a super-batch to train, from their losses and outputs.

    Every super-batch of B rows gives k = max(1, floor(keep * B + 0.5)) rows, on every rank from its own rows. Nothing
    waits for the device: values on a GPU are checked at the next `stats` or `state_dict`.

    Args:
        criterion: scores the rows, as those of `dataprune.criteria`; higher is chosen first.
        keep: fraction of a super-batch that is trained, in (0, 1].
        sample: draw rows without replacement, with probabilities in proportion to their scores as far as none is above
            1, and weight them so that the weighted mean of the chosen losses has the super-batch's mean as its
            expectation. By default the k highest scores are taken, with weights of 1.
        seed: decides draws, and between equal scores.
    Raises:
        ValueError: if keep is outside (0, 1], or `sample` meets a criterion whose scores can be negative.
    Source: the highest losses: selective backprop, Jiang et al. 2019, arXiv:1910.00762; the inclusion probabilities:
        Tillé 2006, Sampling Algorithms, section 2.10; drawn by systematic sampling in random order. Differs: selective
        backprop keeps a row with a probability by its loss's rank; here the number of rows is fixed.
    """

    def __init__(self, criterion: Criterion, keep: float, *, sample: bool = False, seed: int = 0):
        check_fraction("keep", keep)
        if not callable(criterion):
            raise TypeError(f"criterion must be callable as criterion(losses, outputs, targets), got {criterion!r}")
        negative = isinstance(criterion, _NEGATIVE) or (
            isinstance(criterion, criteria.loss_plus_entropy) and criterion.beta < 0
        )
        if sample and negative:
            raise ValueError(
                "sample=True draws in proportion to the scores, and those of this criterion can be negative"
            )
        self.criterion, self.keep, self.sample, self.seed = criterion, keep, sample, seed
        self._step = 0
        self._scored, self._trained = 0, 0
        self._forwards = 0.0  # rows forwarded without gradients, in forward passes of the trained model
        self._cost = 1.0  # of scoring a row, in forward passes of the trained model
        self._bad: Tensor | None = None  # on the device: whether a value was not finite, or negative where drawn

    def __repr__(self) -> str:
        name = getattr(self.criterion, "__name__", repr(self.criterion))
        return f"Chooser({name}, keep={self.keep}, sample={self.sample}, seed={self.seed})"

    @contextmanager
    def scoring(self, model: nn.Module, *, cost: float = 1.0) -> Iterator[None]:
        """Context manager for the forward pass that scores.

        It has no gradients. On an accelerator it runs under autocast, on a CPU as the surroundings do. Batch norm uses
        the statistics of the super-batch, as in training, and leaves its running ones as they are.

        Args:
            model: the model that is trained, or a cheaper one that stands for it: a proxy, a stale copy.
            cost: of a forward pass on what is scored, in forward passes of the trained model on a whole row; below 1
                for a smaller model, a lower resolution or shorter sequences.
        Raises:
            UsageError: if the model is in evaluation mode and has parameters that are trained: after validating, one
                forgets model.train().
            ValueError: if the cost is negative or not finite.
        """
        if not 0 <= cost < math.inf:
            raise ValueError(f"cost is that of a forward pass, in those of the trained model, at least 0, got {cost}")
        if not model.training and any(parameter.requires_grad for parameter in model.parameters()):
            raise UsageError(
                "the model that scores is in evaluation mode: call model.train() after validating. A proxy that is to "
                "score in evaluation mode is not trained: freeze it, proxy.requires_grad_(False)"
            )
        self._cost = cost
        device = device_of(model).type
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if device != "cpu" and not torch.is_autocast_enabled(device):
                half = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else None
                stack.enter_context(torch.autocast(device, dtype=half))
            stack.enter_context(_running_statistics_kept(model))
            self._watch(stack, model)
            yield

    def choose(
        self, losses: Float[Tensor, " b"], outputs: Any = None, targets: Any = None, *, ids: Any = None
    ) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
        """Choose the rows of a super-batch to train.

        Args:
            losses: a loss for every row, from reduction="none".
            outputs: of the scoring pass, as the criterion reads them; those of the core read logits.
            targets: as the criterion reads them.
            ids: (B,) whole numbers that tell samples apart, for `window` and tables of reference losses.
        Returns:
            rows: ascending positions in the super-batch, on the losses' device.
            weight: multipliers of the chosen rows' losses, float32; ones unless rows are drawn.
        Raises:
            TypeError: if losses are no floating-point tensor.
            ValueError: if losses are not one for each row, or on a CPU not finite; as the criterion does.
        """
        losses = _checked(losses)
        batch = len(losses)
        count = max(1, math.floor(self.keep * batch + 0.5))
        with torch.no_grad():
            score = self._score(losses, outputs, targets, ids)
            if not isinstance(score, Tensor) or score.shape != losses.shape:
                shown = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
                raise ValueError(f"the criterion must give one score for each of the {batch} rows, got {shown}")
            score = score.float()
            self._check(~(losses.isfinite() & score.isfinite()))
            rows, weight = self._rows(score, count, outputs, targets)
        self._step += 1
        self._scored, self._trained = self._scored + batch, self._trained + count
        self._forwards += batch * self._cost
        return rows, weight

    @property
    def step_seed(self) -> int:
        """A seed of this step, for what is random in its scoring pass, such as dropout."""
        return int(Key(self.seed, self._step).hash(torch.tensor(0), _SCORING)) & 0x7FFFFFFF

    def stats(self) -> dict[str, float]:
        """What was scored and trained so far.

        Returns:
            `scored` and `trained`: rows; `flops`: in units of a training row, a third for each row that was scored;
            `keep`: trained / scored.
        Raises:
            ValueError: if a value on a GPU was not finite, or negative where rows are drawn.
        """
        self._raise_if_bad()
        keep = self._trained / self._scored if self._scored else math.nan
        flops = self._trained + FORWARD * self._forwards
        return {"scored": self._scored, "trained": self._trained, "flops": flops, "keep": keep}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to choose as an uninterrupted one; raises as `stats`."""
        self._raise_if_bad()
        counts = {"step": self._step, "scored": self._scored, "trained": self._trained, "forwards": self._forwards}
        return {"schema": _SCHEMA, "chooser": repr(self), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; CheckpointError if it is none, or of a chooser with other arguments."""
        if not isinstance(state, dict) or state.get("schema") != _SCHEMA or "chooser" not in state:
            raise CheckpointError("this is not the state of a chooser: pass what `state_dict()` returned")
        if state["chooser"] != repr(self):
            raise CheckpointError(
                f"the state is of {state['chooser']}, this is {self!r}: build it with the same arguments"
            )
        self._step, self._scored, self._trained = state["step"], state["scored"], state["trained"]
        self._forwards = state["forwards"]

    # -- what recipes change ------------------------------------------------------------------------------------------

    def _watch(self, stack: ExitStack, model: nn.Module) -> None:
        """Look at the scoring pass, for recipes that run something beside it."""

    def _score(self, losses: Tensor, outputs: Any, targets: Any, ids: Any) -> Tensor:
        return self.criterion(losses, outputs, targets)

    def _rows(self, score: Tensor, count: int, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Rows and weights of the super-batch, from its scores (B,), finite float32."""
        if not self.sample:
            order = self._bits(score).argsort()
            rows = order[score[order].argsort(descending=True, stable=True)[:count]]
            return rows.sort().values, torch.ones_like(score[:count])
        self._check(score < 0, "negative")
        probability = inclusion(score, count)
        rows = self._systematic(probability, count)
        return rows, (count / (len(score) * probability[rows])).float()

    # -- chance -------------------------------------------------------------------------------------------------------

    def _bits(self, score: Tensor, draw: int | Tensor = 0) -> Int[Tensor, "*draws b"]:
        return Key(self.seed, self._step).hash(torch.arange(len(score), device=score.device), draw)

    def _uniform(self, score: Tensor, draw: int | Tensor) -> Float[Tensor, "*draws b"]:
        """Random numbers in (0, 1), one for every row, and draw (K, 1)."""
        bits = self._bits(score, draw) >> 40 & 0xFFFFFF
        return (bits.to(widest(score)) + 0.5) * 2.0**-24

    def _systematic(self, probability: Float[Tensor, " b"], count: int) -> Int[Tensor, " k"]:
        """Rows under a comb of `count` teeth at distance 1, thrown over the probabilities laid end to end."""
        # rows that are sure come first, where their ends are whole numbers without rounding
        order = self._bits(probability, _DRAW).where(probability < 1, torch.iinfo(torch.int64).min).argsort(stable=True)
        ends = probability[order].cumsum(0)
        start = self._uniform(probability[:1], _START)
        teeth = start + torch.arange(count, device=ends.device, dtype=ends.dtype)
        places = torch.searchsorted(ends, teeth, right=True).clamp(max=len(ends) - 1)
        return order[places].sort().values

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check(self, wrong: Bool[Tensor, " b"], what: str = "NaN or infinite") -> None:
        wrong = wrong.any()
        if wrong.is_cpu:
            self._bad = wrong
            self._raise_if_bad(what)
        else:
            self._bad = wrong if self._bad is None else self._bad | wrong

    def _raise_if_bad(self, what: str = "NaN or infinite, or negative where rows are drawn") -> None:
        bad, self._bad = self._bad, None
        if bad is not None and bool(bad):
            raise ValueError(
                f"losses or scores of a super-batch are {what}: training has diverged, or the criterion does not fit. "
                "Lower the learning rate, or leave such a batch out before choosing"
            )


def inclusion(score: Float[Tensor, " b"], count: int) -> Float[Tensor, " b"]:
    """Probabilities in proportion to the scores that sum to `count`: those above 1 are 1, and shared out anew.

    Scores are floored at a thousandth of their mean; all equal where all are 0. In float64 where the device has it.
    """
    score = score.to(widest(score))
    floored = score.clamp(min=_FLOOR * score.mean())
    floored = torch.where(floored.sum() > 0, floored, 1.0)
    ordered = floored.sort(descending=True).values
    left = ordered.flip(0).cumsum(0).flip(0)  # sum of this score and all lower ones
    sure = torch.arange(len(score), device=score.device)
    factor = (count - sure) / left  # where the `sure` highest are 1
    fits = factor * ordered <= 1 + 1e-12
    first = fits.int().argmax(0, keepdim=True)  # the fewest sure ones; with as many as are drawn it fits in any case
    return (floored * factor[first]).clamp(max=1.0)


def _checked(losses: Any) -> Float[Tensor, " b"]:
    check_floating("losses", losses, ", a loss for every row")
    if losses.ndim == 0:
        raise ValueError("losses is a single number, one per row is needed: compute the loss with reduction='none'")
    if losses.ndim != 1 or not len(losses):
        raise ValueError(f"losses must be (B,), one for each row, got {tuple(losses.shape)}: average over the rest")
    return losses.detach()


def check_ids(ids: Any, batch: int, what: str) -> Int[Tensor, " b"]:
    """Return ids as int64 (B,), else ValueError; `what` is its text where there are none."""
    if ids is None:
        raise ValueError(what)
    ids = torch.as_tensor(ids)
    if ids.shape != (batch,) or ids.dtype not in WHOLE:
        raise ValueError(f"ids must be whole numbers (B,), one for each of the {batch} rows, got {tuple(ids.shape)}")
    return ids.long()


def widest(values: Tensor) -> torch.dtype:
    """float64 where the device has it: sums of many probabilities are rounded."""
    return torch.float32 if values.device.type == "mps" else torch.float64


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Context manager: normalisation layers use the batch's statistics, and do not average them into their own."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    instance = [m for m in model.modules() if isinstance(m, _InstanceNorm) and m.training and m.track_running_stats]
    momenta = [module.momentum for module in instance]
    for module in norms:
        module.track_running_stats = False
    for module in instance:  # it would average in any case
        module.momentum = 0.0
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True
        for module, momentum in zip(instance, momenta, strict=True):
            module.momentum = momentum
