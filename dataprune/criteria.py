"""What a batch says of its samples: pure functions from (losses, outputs, targets) to one score per sample.

A score is higher for a sample that should be kept first. Every criterion takes the same three arguments, whether it
reads them or not, so that any of them fits any pruner.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from . import distributions
from .distributions import Distribution, check_distribution, plogp

Criterion = Callable[[Tensor, Any, Any], Tensor]
Reads = Literal["losses", "probabilities", "classes", "features", "nothing"]

_EXCLUSIVE = ("softmax", "multi-hot")  # the second may be soft labels


@runtime_checkable
class Declared(Protocol):
    """A criterion that declares more of itself than a plain function can; dataclasses inherit the defaults.

    Attributes:
        values: shape of one sample's score: () for a number, (V,) for a row, which the policy's own book takes in; -1
            where the first batch says how many.
        reads: what it looks at beside the losses.
        softens: whether it takes the softmax of outputs (B, C): probabilities would be softened twice.
    """

    values: tuple[int, ...] = ()
    reads: Reads = "probabilities"
    softens: bool = False

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        """Score a batch: (B, *values)."""
        ...


def reads(criterion: Criterion) -> Reads:
    """What a criterion looks at: a plain function of your own may look at the outputs."""
    if isinstance(criterion, Declared):
        return criterion.reads
    return "losses" if criterion is loss else "probabilities"


def carries_losses(criterion: Criterion) -> bool:
    """Whether a score is NaN or infinite where the loss is."""
    return criterion is loss or isinstance(criterion, (loss_plus_entropy, loss_minus_distance))


def reads_logits(criterion: Criterion) -> bool:
    """Whether it takes the softmax of outputs (B, C), as it says."""
    return criterion is entropy or (isinstance(criterion, Declared) and criterion.softens)


def values(criterion: Criterion) -> tuple[int, ...]:
    """Shape of one sample's score."""
    return criterion.values if isinstance(criterion, Declared) else ()


def state_of(criterion: Criterion) -> dict[str, Tensor]:
    """A criterion's own state, empty where it has none."""
    return criterion.state_dict() if hasattr(criterion, "state_dict") else {}  # type: ignore[attr-defined]


def load_state(criterion: Criterion, state: dict[str, Tensor]) -> None:
    """Restore what `state_of` gave; ValueError if it does not fit."""
    if hasattr(criterion, "load_state_dict"):
        criterion.load_state_dict(state)  # type: ignore[attr-defined]


def loss(losses: Float[Tensor, " b"], outputs: Any, targets: Any) -> Float[Tensor, " b"]:
    """The training loss itself: hard samples first.

    Args:
        losses: per-sample training losses.
        outputs: unused.
        targets: unused.
    Returns:
        The losses.
    Example:
        >>> loss(torch.tensor([0.5, 2.0]), None, None)
        tensor([0.5000, 2.0000])

    Source: Raju et al. 2021, arXiv:2111.12621, section 3; "LFL" in Xiao et al., arXiv:2408.16031. Differs: nothing.
    """
    return losses


def entropy(
    losses: Float[Tensor, " b"], outputs: Any, targets: Any, *, distribution: Distribution | None = None
) -> Float[Tensor, " b"]:
    """Entropy H of the model's predictive distribution, in nats: the memory term of EMP on its own.

    Args:
        losses: unused.
        outputs: what the distribution is read from.
            "softmax": (B, C) logits, or (B, S, C) logits of sequences, averaged over the tokens whose target is not
            -100; classes may also come second, (B, C, S), where targets are (B, S).
            "bernoulli": (B,), (B, 1) or (B, C) logits of independent sigmoids, averaged over the labels.
            "gaussian": a pair (mean, variance) of (B,) or (B, D) tensors of one shape, summed over D.
        targets: (B, S) class ids where outputs are (B, S, C). Where no distribution is given, multi-hot (B, C) targets
            (integers, or zeros and ones in rows of which some do not sum to 1) and one logit with targets 0 and 1 mean
            "bernoulli".
        distribution: one of the three; by default found from outputs and targets where these are certain.
    Returns:
        Entropies in [0, log C] for classes, [0, log 2] for sigmoids, any real number for a Gaussian; 0 for a sample
        without a valid token.
    Raises:
        ValueError: if outputs carry no distribution, not that which is given, or it is not certain which one.
    Example:
        >>> entropy(torch.zeros(1), torch.zeros(1, 4), None)
        tensor([1.3863])
        >>> entropy(torch.zeros(1), torch.zeros(1, 4), None, distribution="bernoulli")
        tensor([0.6931])

    Source: Xiao et al., arXiv:2408.16031, second term of Eq. 8. The paper derives it from Eq. 7, which does not hold:
        what this measures is uncertainty (docs/theory/entropy-bound.md). Differs: sequences, sigmoids and variances
        are not in the paper.
    """
    kind = distributions.find(outputs, targets) if distribution is None else distribution
    if kind == "gaussian":
        return distributions.gaussian_entropy(outputs, len(losses))
    if len(outputs) != len(losses):
        raise ValueError(f"{len(losses)} losses but {len(outputs)} rows of outputs: pass those of the same batch")
    if kind == "bernoulli":
        return distributions.bernoulli_entropy(outputs)
    if kind == "multi-hot":
        soft, several = plogp(outputs).neg_(), distributions.bernoulli_entropy(outputs)
        return distributions.soft_or_multi_hot(targets.to(outputs.device), soft, several)
    if outputs.ndim == 2:
        return plogp(outputs).neg_()
    return -distributions.token_mean(lambda logits, ids: plogp(logits), outputs, targets)


@dataclass(frozen=True)
class entropy_of(Declared):
    """The `entropy` of a distribution that is named, in place of one found from outputs and targets.

    Args:
        distribution: "softmax", "bernoulli" or "gaussian".
    Raises:
        ValueError: for another name; when called, as `entropy`.
    """

    distribution: Distribution
    softens = True

    def __post_init__(self) -> None:
        check_distribution(self.distribution)

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        return entropy(losses, outputs, targets, distribution=self.distribution)


@dataclass(frozen=True)
class information(Declared):
    """Give the class probabilities (B, C), from which `scores.PredictionBook` has the mutual information.

    The outputs are the logits (B, C) of exclusive classes, C at least 2.

    Raises:
        ValueError: when called, if the outputs are not such logits.
    Example:
        >>> information()(torch.zeros(1), torch.zeros(1, 2), None)
        tensor([[0.5000, 0.5000]])

    Source: this project; the mutual information is that of Houlsby et al. 2011, arXiv:1112.5745, Eq. 2 (BALD).
    """

    values = (-1,)
    softens = True

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        logits = isinstance(outputs, Tensor) and outputs.ndim == 2
        if not logits or distributions.find(outputs, targets) not in _EXCLUSIVE:
            shown = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"`information` reads logits (B, C) of exclusive classes, got {shown}: use `memory` there")
        return torch.softmax(outputs, -1, dtype=torch.promote_types(outputs.dtype, torch.float32))


@dataclass(eq=False)
class learnability(Declared):
    """Score (1 - p_y) * p_y / max p of the label y: unsure of the label, and near to predicting it.

    It is 0 for a label that the model is sure of, and for one that it holds for impossible, as a wrong one; highest, 1,
    where many classes are as likely. Of sequences the mean over tokens, of several labels at once the mean over labels,
    each of which has two classes.

    Outputs that carry no distribution (a regression), and none at all, are scored by the loss, and `by_loss` is set;
    the second with a warning.

    Args:
        distribution: as for `entropy`; by default found from outputs and targets where these are certain.
    Raises:
        ValueError: for another distribution; when called, if outputs carry another one, it is not certain which one, or
            the labels are missing.
    Example:
        >>> learnability()(torch.zeros(1), torch.zeros(1, 4), torch.tensor([2]))
        tensor([0.7500])

    Source: this project. p_y (1 - p_y) is "learnability" in the choice of tasks for reinforcement learning (Tzannetos
        et al. 2023, arXiv:2304.12877; Rutherford et al. 2024, arXiv:2408.15099). Differs: divided by max p.
    """

    distribution: Distribution | None = None
    softens = True

    def __post_init__(self) -> None:
        if self.distribution is not None:
            check_distribution(self.distribution)
        self.by_loss = False

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        if outputs is None and not self.by_loss:
            warnings.warn(
                "no outputs were given, so samples are selected by their loss: pruner.loss(index, losses, logits, y)",
                UserWarning,
                stacklevel=3,
            )
        kind = "gaussian" if outputs is None else self.distribution or distributions.find(outputs, targets)
        self.by_loss = kind == "gaussian"
        if outputs is None or self.by_loss:
            return losses
        if len(outputs) != len(losses):
            raise ValueError(f"{len(losses)} losses but {len(outputs)} rows of outputs: pass those of the same batch")
        if not isinstance(targets, Tensor):
            raise ValueError("this method reads the labels too: pruner.loss(index, losses, logits, y)")
        targets = targets.to(outputs.device)
        if kind == "bernoulli":
            return _learnable_labels(outputs, targets)
        if kind == "multi-hot" or (outputs.ndim == 2 and targets.shape == outputs.shape):
            soft = _learnable_soft(outputs, targets)
            several = soft if kind == "softmax" else _learnable_labels(outputs, targets)
            return distributions.soft_or_multi_hot(targets, soft, several)
        if outputs.ndim == 2:
            return _learnable(outputs, targets)
        if targets.is_floating_point():
            raise ValueError("the targets of sequences are ids (B, S): soft ones are not supported")
        return distributions.token_mean(_learnable, outputs, targets)

    def state_dict(self) -> dict[str, Tensor]:
        """Whether samples are scored by the loss."""
        return {"by_loss": torch.tensor(self.by_loss)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.by_loss = bool(state.get("by_loss", False))


def _learnable(logits: Float[Tensor, "*b c"], labels: Any) -> Float[Tensor, "*b"]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    label = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]  # -100 marks an ignored token
    return -torch.expm1(label - logits.logsumexp(-1)) * torch.exp(label - logits.amax(-1))


def _learnable_soft(logits: Float[Tensor, "b c"], labels: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
    p = torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return (labels * (1 - p) * p).sum(-1) / p.amax(-1)


def _learnable_labels(logits: Float[Tensor, "b *c"], labels: Tensor) -> Float[Tensor, " b"]:
    """Independent labels: p_y is the sigmoid of the logit, towards the label."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    towards = logits * (2 * labels.view_as(logits) - 1)
    each = torch.sigmoid(-towards) * torch.sigmoid(towards) / torch.sigmoid(logits.abs())
    return each if each.ndim == 1 else each.flatten(1).mean(dim=1)


@dataclass(frozen=True)
class loss_plus_entropy(Declared):
    """Add beta times the entropy of the prediction to the loss: EMP's score.

    Outputs with a single value per sample, (B,) or (B, 1), whose targets are not 0 and 1, and pairs (mean, None), are a
    regression: its variance, and so its entropy, is the same for all, and the score is the loss.

    Args:
        beta: weight of the memory term.
        distribution: as for `entropy`; "gaussian" with a single value per sample is such a regression head.
    Raises:
        ValueError: if beta is not a finite number; when called, if the outputs are missing, no logits, or of an
            uncertain distribution.
    Example:
        >>> loss_plus_entropy(beta=1.0)(torch.tensor([1.0]), torch.zeros(1, 4), None)
        tensor([2.3863])

    Source: Xiao et al., arXiv:2408.16031, Eq. 8. Differs: nothing.
    """

    beta: float = 5.0
    distribution: Distribution | None = None
    softens = True

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if self.distribution is not None:
            check_distribution(self.distribution)

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        if outputs is None:
            raise ValueError("EMP scores the model's outputs too: call pruner.loss(index, losses, outputs, targets)")
        if isinstance(outputs, Tensor) and not outputs.is_floating_point():
            raise ValueError(
                f"outputs hold {outputs.dtype}: pass the logits, as in pruner.loss(index, losses, logits, y)"
            )
        kind = distributions.find(outputs, targets) if self.distribution is None else self.distribution
        if kind == "gaussian" and (isinstance(outputs, Tensor) or outputs[1] is None):
            return losses
        if kind == "softmax" and outputs.shape[:-1] == losses.shape:
            return torch.add(losses, plogp(outputs), alpha=-self.beta)  # the common case, with one call less
        return torch.add(losses, entropy(losses, outputs, targets, distribution=kind), alpha=self.beta)


@dataclass(frozen=True)
class loss_minus_distance(Declared):
    """Subtract beta times the distance ‖f_i − f_j‖₂ of a sample's views from the loss: EMP's contrastive score.

    The outputs are a pair (f_i, f_j), each (B, D): what the encoder makes of the first and of the second views.

    Args:
        beta: weight of the memory term.
    Raises:
        ValueError: if beta is not a finite number; when called, if the outputs are not such a pair.
    Example:
        >>> views = (torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        >>> loss_minus_distance(beta=1.0)(torch.tensor([7.0]), views, None)
        tensor([2.])

    Source: Xiao et al., arXiv:2408.16031, Eq. 12 and 13. Differs: nothing.
    """

    beta: float = 5.0
    reads = "features"

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        return torch.add(losses, _distance(outputs, len(losses)), alpha=-self.beta)


def _distance(outputs: Any, batch: int) -> Float[Tensor, " b"]:
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2 or not all(isinstance(f, Tensor) for f in outputs):
        shown = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"outputs must be the features of the two views, pruner.loss(index, losses, (f_i, f_j)), got {shown}: this "
            "method is for contrastive learning; for logits use `emp`"
        )
    f_i, f_j = outputs
    if f_i.ndim != 2 or f_i.shape != f_j.shape or len(f_i) != batch:
        raise ValueError(
            f"the two views' features must both be (B, D) with B = {batch}, as there are losses; got "
            f"{tuple(f_i.shape)} and {tuple(f_j.shape)}"
        )
    if not f_i.is_floating_point() or not f_j.is_floating_point():
        raise ValueError(f"the two views' features must be floating point, got {f_i.dtype} and {f_j.dtype}")
    dtype = torch.promote_types(torch.promote_types(f_i.dtype, f_j.dtype), torch.float32)
    # nearby views in half precision: rounded differences would be all that is left
    return torch.linalg.vector_norm(f_i.to(dtype) - f_j.to(dtype), dim=1)


def _check_beta(beta: float) -> None:
    if isinstance(beta, bool) or not isinstance(beta, Real) or not math.isfinite(beta):
        raise ValueError(f"beta is the weight of the memory term, a finite number, got {beta!r}")
