"""What a batch says of its samples: pure functions from (losses, outputs, targets) to one score per sample.

A score is higher for a sample that should be kept first. Every criterion takes the same three arguments, whether it
reads them or not, so that any of them fits any pruner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import suggest

Criterion = Callable[[Tensor, Any, Any], Tensor]
Reads = Literal["losses", "probabilities", "classes", "features", "nothing"]
Distribution = Literal["softmax", "bernoulli", "gaussian"]

IGNORED = -100  # torch's own ignore_index: a token that carries no loss
_LOWEST = torch.finfo(torch.float32).min
_SUM_TO_ONE = 0.02  # rounding of soft labels, in half precision as well
_EXCLUSIVE = ("softmax", "multi-hot")  # the second may be soft labels
_CHUNK = 1 << 22  # logits softened at a time, so that no second (B, S, V) tensor ever exists


@runtime_checkable
class Declared(Protocol):
    """A criterion that declares more of itself than a plain function can; dataclasses inherit the defaults.

    Attributes:
        values: shape of one sample's score: () for a number, (V,) for a row, which the policy's own book takes in; -1
            where the first batch says how many.
        reads: what it looks at beside the losses.
    """

    values: tuple[int, ...] = ()
    reads: Reads = "probabilities"

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
    """Whether it is one of ours that takes the softmax of outputs (B, C): probabilities would be softened twice."""
    return criterion is entropy or isinstance(criterion, (entropy_of, information, loss_plus_entropy))


def values(criterion: Criterion) -> tuple[int, ...]:
    """Shape of one sample's score."""
    return criterion.values if isinstance(criterion, Declared) else ()


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
    kind = _distribution(outputs, targets) if distribution is None else distribution
    if kind == "gaussian":
        return _gaussian_entropy(outputs, len(losses))
    if len(outputs) != len(losses):
        raise ValueError(f"{len(losses)} losses but {len(outputs)} rows of outputs: pass those of the same batch")
    if kind == "bernoulli":
        return _bernoulli_entropy(outputs)
    if kind == "multi-hot":
        return _soft_or_multi_hot(outputs, targets.to(outputs.device))
    if outputs.ndim == 2:
        return _plogp(outputs).neg_()
    return _token_entropy(outputs, targets)


@dataclass(frozen=True)
class entropy_of(Declared):
    """The `entropy` of a distribution that is named, in place of one found from outputs and targets.

    Args:
        distribution: "softmax", "bernoulli" or "gaussian".
    Raises:
        ValueError: for another name; when called, as `entropy`.
    """

    distribution: Distribution

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

    def __call__(self, losses: Tensor, outputs: Any, targets: Any) -> Tensor:
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or _distribution(outputs, targets) not in _EXCLUSIVE:
            shown = f"a tensor {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"`information` reads logits (B, C) of exclusive classes, got {shown}: use `memory` there")
        return torch.softmax(outputs, -1, dtype=torch.promote_types(outputs.dtype, torch.float32))


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
        kind = _distribution(outputs, targets) if self.distribution is None else self.distribution
        if kind == "gaussian" and (isinstance(outputs, Tensor) or outputs[1] is None):
            return losses
        if kind == "softmax" and outputs.shape[:-1] == losses.shape:
            return torch.add(losses, _plogp(outputs), alpha=-self.beta)  # the common case, with one call less
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


def check_distribution(name: str) -> None:
    """Raise ValueError unless it is the name of a distribution."""
    if name not in get_args(Distribution):
        raise ValueError(suggest(str(name), list(get_args(Distribution)), what="distribution"))


def _distribution(outputs: Any, targets: Any) -> Any:
    """A `Distribution`, or "multi-hot" where the values of (B, C) targets decide between soft and several labels."""
    if isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1:
        if not isinstance(targets, Tensor) or targets.shape != outputs.shape:
            return "softmax"
        return "multi-hot" if targets.is_floating_point() else "bernoulli"
    if isinstance(outputs, (tuple, list)) and len(outputs) == 2:
        return "gaussian"
    if isinstance(outputs, Tensor) and outputs.ndim == 3 and outputs.shape[-1] > 1:
        if targets is None:
            raise ValueError(
                f"outputs {tuple(outputs.shape)} may be (B, S, C) or (B, C, S): pass the targets (B, S) too, or "
                'distribution="softmax" with the classes last. The names are "softmax", "bernoulli" and "gaussian"'
            )
        return "softmax"
    if isinstance(outputs, Tensor) and (outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1)):
        if not isinstance(targets, Tensor):
            raise ValueError(
                f"outputs {tuple(outputs.shape)} may be the logit of a binary classifier or a regression: pass the "
                'targets too, or distribution="bernoulli" or "gaussian" ("softmax" needs logits (B, C))'
            )
        binary = not targets.is_floating_point() or bool(((targets == 0) | (targets == 1)).all())
        return "bernoulli" if binary else "gaussian"
    shown = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
    raise ValueError(
        f"the memory term needs outputs that carry a distribution, got {shown}: pass logits (B, C) or (B, S, C) "
        "(flatten positions into S), or (mean, variance) for regression"
    )


def _soft_or_multi_hot(logits: Tensor, targets: Tensor) -> Tensor:
    """The entropy by float targets (B, C), found without waiting for the device: NaN where they are neither."""
    soft = ((targets.sum(dim=1) - 1).abs() < _SUM_TO_ONE).all() & (targets >= 0).all()
    multi_hot = ((targets == 0) | (targets == 1)).all()
    if targets.is_cpu and not bool(soft | multi_hot):
        raise ValueError(
            'targets (B, C) are neither class probabilities, distribution="softmax", nor zeros and ones, "bernoulli": '
            'name the distribution, and for a regression pass outputs (mean, variance) or (mean, None), "gaussian"'
        )
    neither = torch.where(multi_hot, _bernoulli_entropy(logits), torch.nan)
    return torch.where(soft, _plogp(logits).neg_(), neither)


def _bernoulli_entropy(logits: Tensor) -> Tensor:
    """Mean over the labels of log(1 + exp(-|z|)) + |z| / (1 + exp(|z|)), which neither overflows nor cancels."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)).abs().clamp(max=100)
    each = torch.exp(-z)
    each = torch.log1p(each) + z * each / (1 + each)
    return each if each.ndim == 1 else each.flatten(1).mean(dim=1)


def _plogp(logits: Float[Tensor, "... c"]) -> Float[Tensor, "..."]:
    """Minus the entropy: sum of p log p. Row by row: a score must not depend on the batch, so nor on the ranks."""
    logs = torch.log_softmax(logits, -1, dtype=None if logits.element_size() > 2 else torch.float32)
    logs.clamp_(min=_LOWEST)  # an excluded class, at -inf, must give 0 * finite, not NaN
    return logs.exp().mul_(logs).sum(-1)


def _token_entropy(logits: Float[Tensor, "b s c"], targets: Any) -> Float[Tensor, " b"]:
    if logits.ndim != 3:
        raise ValueError(f"outputs must be (B, C) or (B, S, C), got {tuple(logits.shape)}: flatten positions into S")
    if isinstance(targets, Tensor) and logits.shape[:2] != targets.shape == (len(logits), logits.shape[2]):
        logits = logits.transpose(1, 2)  # classes second, as torch's own cross_entropy takes them
    batch, tokens, classes = logits.shape
    valid = torch.ones(batch, tokens, dtype=torch.bool, device=logits.device)
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        if targets.shape != logits.shape[:2]:
            raise ValueError(
                f"outputs {tuple(logits.shape)} and targets {tuple(targets.shape)} do not agree: "
                "outputs are (B, S, C) with the classes last, targets (B, S)"
            )
        valid = targets.to(logits.device) != IGNORED
    rows = max(1, _CHUNK // classes)
    samples = max(1, min(batch, rows))
    span = max(1, rows // samples)
    # split, not flattened: logits[:, :-1], as language models shift them, would be copied whole
    each = torch.cat(
        [torch.cat([_plogp(part) for part in group.split(span, dim=1)], dim=1) for group in logits.split(samples)]
    )  # (b, s)
    # filled, not multiplied by 0: what stands at an ignored token may be anything
    return -each.masked_fill(~valid, 0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def _gaussian_entropy(outputs: Any, batch: int) -> Tensor:
    pair = (
        isinstance(outputs, (tuple, list)) and len(outputs) == 2 and all(isinstance(part, Tensor) for part in outputs)
    )
    if not pair or outputs[0].shape != outputs[1].shape or outputs[1].ndim not in (1, 2) or len(outputs[1]) != batch:
        if isinstance(outputs, Tensor) or (len(outputs) == 2 and outputs[1] is None):
            shown = "no variance. A regression without one has no memory term: use `loss` there"
        else:
            shown = str([tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in outputs])
        raise ValueError(
            f"a Gaussian's outputs are (mean, variance) of one shape, (B,) or (B, D) with B = {batch}, got {shown}. Of "
            "(logits, features) pass the logits alone"
        )
    variance = outputs[1].to(torch.promote_types(outputs[1].dtype, torch.float32))
    if variance.is_cpu and not bool((variance > 0).all()):  # on other devices the scores are checked when flushed
        raise ValueError(
            "the second of a pair of outputs must be the predicted variance, which is positive: exponentiate a "
            "log-variance, and of (logits, features) pass the logits alone"
        )
    each = 0.5 * torch.log(2 * math.pi * math.e * variance)
    return each if each.ndim == 1 else each.sum(dim=1)
