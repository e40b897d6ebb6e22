"""Statistics of training dynamics: functions that return a `Statistic` for a `Recorder`.

Higher is more important everywhere. A *presentation* is one row of one `Recorder.update`; over a full training run a
sample has one per epoch. Windows and means are over a sample's own presentations: a sample that misses an epoch has a
shorter trajectory, and its next presentation follows its last one. All raise ValueError for arguments out of range.
A last value takes 4 bytes per sample and a mean 8; the others say what they take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import check_known
from ..modules import has_bias
from ..schedules import check_whole
from .batch import Batch

State = dict[str, Tensor]  # each (N,) or (N, values), on the CPU


@dataclass(frozen=True, eq=False)
class Accumulator:
    """Accumulates a stream of values per sample."""

    allocate: Callable[[int], State]  # the state of so many samples
    add: Callable[[State, Tensor, Tensor], None]  # a value (K,) to each of the unique positions (K,), in place
    score: Callable[[State], Tensor]  # (N,), NaN where there is none


@dataclass(frozen=True, eq=False)
class Statistic:
    """A value computed of each sample in a batch, and its accumulation; it holds no data itself."""

    name: str  # the call that made it, as in "el2n(epochs=10, reduce='mean')"; saved states are checked by it
    observe: Callable[[Batch], Float[Tensor, " b"]]  # statistics that share this function share its values
    accumulator: Accumulator
    until: int | None = None  # only presentations of the epochs before this one count; None counts all
    features: bool = False  # whether `observe` reads the features
    before: bool = False  # whether `observe` reads each sample's log-probabilities at its last presentation
    window: int = 1  # presentations that a sample needs to have a score
    snapshot: bool = False  # whether one pass of a trained model gives it; the others need the course of training


def forgetting(never: Literal["last", "zero"] = "last") -> Statistic:
    """Forgetting events: how often a sample is correct at one presentation and wrong at the next.

    The prediction is the first class of highest logit; 10 bytes per sample.

    Args:
        never: score of a sample that was never correct. "last" gives it the largest number of presentations of any
            sample, which no count reaches, so that it is pruned last; "zero" leaves its count, 0.
    Source: Toneva et al. 2019, arXiv:1812.05159, section 3. Differs: for never-learned samples the paper's code takes
        the number of epochs, here it is counted; the two agree where every sample is seen once per epoch.
    """
    check_known(never, ("last", "zero"), what="value of never")
    accumulator = _count_forgetting(never_is_last=never == "last")
    return Statistic(_call("forgetting", never=never), Batch.correct, accumulator)


def el2n(epochs: int = 10, reduce: Literal["mean", "last"] = "mean") -> Statistic:
    """Norm of the error vector ‖softmax(outputs) − onehot(y)‖₂, in [0, √2], early in training.

    Args:
        epochs: presentations of epochs 0 to epochs - 1 count.
        reduce: "mean" over these, or the "last" of them.
    Source: Paul et al. 2021, arXiv:2107.07075, definition 2.3. Differs: recorded while training, between updates, where
        the paper evaluates one set of weights; "mean" over epochs is not in it. Its mean over models is `average`.
    """
    check_whole("epochs", epochs)
    check_known(reduce, ("mean", "last"), what="value of reduce")
    accumulator = _mean() if reduce == "mean" else _last()
    name = _call("el2n", epochs=epochs, reduce=reduce)
    return Statistic(name, Batch.error_norm, accumulator, until=epochs, snapshot=True)


def grand(bias: bool | nn.Module = True) -> Statistic:
    """Norm of the gradient of the last linear layer, ‖softmax(outputs) − onehot(y)‖₂ · √(1 + ‖features‖²), averaged.

    The 1 is that of the bias: short features of a layer without one would otherwise have a norm far too large.

    The mean is over all presentations; stop recording, or use a separate recorder, to score early weights.
    `Recorder.update` then needs the features that the last layer reads.

    Args:
        bias: whether the last layer has a bias; or that layer itself.
    Raises:
        TypeError: if bias is neither.
    Source: Paul et al. 2021, arXiv:2107.07075, definition 2.1. Differs: the gradient of the last layer's weight and
        bias stands for that of all weights; the mean is over presentations of one run, and `average` adds models.
    """
    if has_bias(bias):
        return Statistic("grand()", Batch.last_layer_norm, _mean(), features=True, snapshot=True)
    return Statistic("grand(bias=False)", Batch.last_weight_norm, _mean(), features=True, snapshot=True)


def aum(space: Literal["logits", "probabilities"] = "logits") -> Statistic:
    """Minus the area under the margin: the mean over presentations of z_y − max of the other z, times −1.

    Highest are the hardest samples and those with wrong labels.

    Args:
        space: whether z are "logits" or, as in the code of CCS, "probabilities".
    Source: Pleiss et al. 2020, arXiv:2001.10528, the AUM statistic. Differs: the sign, as highest means kept first.
    """
    check_known(space, ("logits", "probabilities"), what="space")
    observe = Batch.logit_lead if space == "logits" else Batch.probability_lead
    return Statistic(_call("aum", space=space), observe, _mean(sign=-1.0))


def entropy() -> Statistic:
    """Entropy of the last recorded prediction, in nats, in [0, log C].

    Source: "entropy" in Coleman et al. 2020, arXiv:1906.11829. Differs: the paper evaluates the trained
        model; record such a pass after training to have the same.
    """
    return Statistic("entropy()", Batch.entropy, _last(), snapshot=True)


def least_confidence() -> Statistic:
    """1 − the highest probability of the last recorded prediction, in [0, 1 − 1/C].

    Source: "least confidence" in Coleman et al. 2020, arXiv:1906.11829. Differs: as `entropy`.
    """
    return Statistic("least_confidence()", Batch.least_confidence, _last(), snapshot=True)


def margin() -> Statistic:
    """Minus the lead of the most probable class over the second, −(p₁ − p₂), of the last recorded prediction.

    Source: Scheffer et al. 2001, "Active hidden Markov models for information extraction", in the form of the
        DeepCore benchmark, arXiv:2204.08499. Differs: as `entropy`; an additive 1 is left out.
    """
    return Statistic("margin()", Batch.minus_margin, _last(), snapshot=True)


def loss() -> Statistic:
    """Cross-entropy −log p_y at the last presentation.

    Source: the score of Loshchilov and Hutter 2015, arXiv:1511.06343, taken once. Differs: they rank during training.
    """
    return Statistic("loss()", Batch.cross_entropy, _last(), snapshot=True)


def dyn_unc(window: int = 10) -> Statistic:
    """Dynamic uncertainty: the mean over sliding windows of the standard deviation of p_y.

    NaN for a sample with fewer presentations than a window; 4 · window + 12 bytes per sample.

    Args:
        window: presentations in a window, at least 2.
    Source: He et al. 2023, arXiv:2306.05175, the dynamic uncertainty: the unbiased deviation, over
        T − window + 1 windows of T presentations. Differs: the authors' code leaves out the last window (record T − 1
        presentations to have its result); some public code multiplies by 10.
    """
    check_whole("window", window, 2)
    accumulator = _windows(window, lambda values: values.std(dim=1))
    return Statistic(_call("dyn_unc", window=window), Batch.target_probability, accumulator, window=window)


def dual(window: int = 10, until: int = 30) -> Statistic:
    """Difficulty and uncertainty: the mean over sliding windows of std(p_y) · (1 − mean(p_y)), early in training.

    Args:
        window: as for `dyn_unc`, and so is the result.
        until: presentations of epochs 0 to until - 1 count; at least a window.
    Source: Cho et al. 2025, arXiv:2502.06905, the DUAL score. Differs: nothing but a factor of 10 in the paper's code.
    """
    _check_window(window, until)
    accumulator = _windows(window, lambda values: values.std(dim=1) * (1 - values.mean(dim=1)))
    name = _call("dual", window=window, until=until)
    return Statistic(name, Batch.target_probability, accumulator, until=until, window=window)


def difficulty(until: int | None = 30) -> Statistic:
    """Difficulty: 1 − the mean of p_y, early in training; the confidence of dataset cartography turned around.

    Args:
        until: presentations of epochs 0 to until - 1 count, by default those of `dual`; None counts all.
    Source: Swayamdipta et al. 2020, arXiv:2009.10795, section 2, the confidence. Differs: one minus it, as highest
        means kept first; the mean stops at an epoch, where DUAL's does.
    """
    if until is not None:
        check_whole("until", until)
    accumulator = _mean(sign=-1.0, offset=1.0)
    return Statistic(_call("difficulty", until=until), Batch.target_probability, accumulator, until=until)


def tdds(
    window: int = 10,
    decay: float | None = 0.9,
    until: int | None = None,
    difference: Literal["kl", "ce", "el2n"] = "kl",
    magnitude: bool = True,
    variant: Literal["paper", "official"] = "paper",
) -> Statistic:
    """Temporal dual-depth score: how much a sample's contribution varies within windows of its trajectory.

    With p_t the probabilities at presentation t, its contribution is

        kl:   Δ_t = Σ_c p_{t+1,c} · (log p_{t+1,c} − log p_{t,c})    (Eq. 10)
        ce:   Δ_t = log p_{t+1,y} − log p_{t,y}                      (Eq. 9)
        el2n: Δ_t = ‖p_t − onehot(y)‖₂                               (Table 5, "EL2N + outer")

    and each window scores R_t = Σ (|Δ| − mean |Δ|)² (Eq. 11). Windows are joined by R ← decay · R_t + (1 − decay) · R
    from R = 0 (Eq. 12).

    NaN for a sample with fewer presentations than a window. Only one window of Δ is kept, 4 · window + 8 bytes per
    sample (4 more for "ce" and "el2n"), and for "kl" a row of the C previous probabilities, as logarithms: stored in
    float16 (`Recorder(dtype=torch.float16)`) a Δ is off by at most 2⁻¹¹ · Σ_c p_{t+1,c} · |log p_{t,c}|.

    Args:
        window: K, presentations in a window. It holds K - 1 differences, or K values for "el2n".
        decay: β, in (0, 1]; None takes the plain mean over windows, which the paper's figures call β = 0.
        until: T, only presentations of epochs 0 to T - 1 count; None counts all. The paper tunes (pruned, T, K) on
            CIFAR-100: (30 %, 90, 10), (50 %, 70, 10), (70 %, 60, 20), (80 %, 20, 10), (90 %, 10, 5).
        difference: which Δ, as above.
        magnitude: False leaves the sign of Δ in place (Figure 6a). For the paper's "kl" and for "el2n", which are not
            negative, it changes nothing.
        variant: "official" computes what the authors' code does: Σ_c |p · (log p − log p)| for "kl", the root of the
            sum of squares for R_t, and 1e-8 added to probabilities under a logarithm. Without `magnitude` the absolute
            value is left out where it stands: inside the sum.
    Source: Zhang et al. 2024, arXiv:2311.13613, Eq. 9 to 12 and Algorithm 1. Differs: Eq. 11 writes K terms, but K
        presentations have K - 1 differences, and the paper's count of T - K + 1 windows (and its code) means these.
    """
    _check_window(window, until)
    if decay is not None and not 0 < decay <= 1:
        raise ValueError(f"decay is the weight of the newest window, in (0, 1], or None for the mean, got {decay}")
    check_known(difference, ("kl", "ce", "el2n"), what="difference")
    check_known(variant, ("paper", "official"), what="variant")
    official, magnitude = variant == "official", bool(magnitude)
    shape = {"window": window, "decay": decay, "until": until}
    name = _call("tdds", **shape, difference=difference, magnitude=magnitude, variant=variant)

    def spread(values: Tensor) -> Tensor:
        squares = (values - values.mean(dim=1, keepdim=True)).square().sum(dim=1)
        return squares.sqrt() if official else squares

    inside = official and difference == "kl"  # absolute values are taken inside the sum
    length = window if difference == "el2n" else window - 1
    accumulator = _windows(length, spread, decay=decay, magnitude=magnitude and not inside)
    observe = Batch.error_norm
    if difference == "ce":
        accumulator = _differences(accumulator)
        observe = Batch.official_target_log_probability if official else Batch.target_log_probability
    elif difference == "kl" and official:
        observe = Batch.official_magnitudes if magnitude else Batch.official_divergence
    elif difference == "kl":
        observe = Batch.divergence
    return Statistic(name, observe, accumulator, until=until, before=difference == "kl", window=window)


STATISTICS: dict[str, Callable[..., Statistic]] = {
    make.__name__: make
    for make in (forgetting, el2n, grand, aum, entropy, least_confidence, margin, loss, difficulty, dyn_unc, dual, tdds)
}


# -- accumulators: a few numbers per sample, whatever the number of epochs --------------------------------------------


def _last() -> Accumulator:
    """Keep the last value."""

    def add(state: State, at: Tensor, value: Tensor) -> None:
        state["value"][at] = value

    return Accumulator(lambda size: {"value": _floats(size, torch.nan)}, add, lambda state: state["value"])


def _mean(sign: float = 1.0, offset: float = 0.0) -> Accumulator:
    """Average all values, times `sign`, plus `offset`."""
    return Accumulator(_no_mean, _add_to_mean, lambda state: sign * _counted(state["mean"], state["count"]) + offset)


def _count_forgetting(*, never_is_last: bool) -> Accumulator:
    """Count changes from 1 to 0 in a stream of zeros and ones."""

    def allocate(size: int) -> State:
        counts = {name: torch.zeros(size, dtype=torch.int32) for name in ("forgotten", "count")}
        return counts | {name: torch.zeros(size, dtype=torch.bool) for name in ("correct", "learned")}

    def add(state: State, at: Tensor, value: Tensor) -> None:
        correct = value > 0.5
        state["forgotten"][at] += (state["correct"][at] & ~correct).int()
        state["correct"][at] = correct
        state["learned"][at] |= correct
        state["count"][at] += 1

    def score(state: State) -> Tensor:
        forgotten, count = state["forgotten"].float(), state["count"]
        if never_is_last:
            forgotten[~state["learned"]] = float(count.max())
        return _counted(forgotten, count)

    return Accumulator(allocate, add, score)


def _windows(
    length: int, reduce: Callable[[Tensor], Tensor], *, decay: float | None = None, magnitude: bool = False
) -> Accumulator:
    """Average a statistic of the last `length` values over all full windows.

    `reduce` makes it (K,) of the (K, length) values of full windows, in any rotation, or of their absolute values.
    `decay` is the weight of the newest window in a moving average that starts at 0; None averages all equally.
    """

    def allocate(size: int) -> State:
        return {
            "window": _floats(size * length).view(size, length),
            "filled": torch.zeros(size, dtype=torch.int32),
            **_no_mean(size),
        }

    def add(state: State, at: Tensor, value: Tensor) -> None:
        known = ~value.isnan()  # the difference at the first presentation is NaN
        at, value = at[known], value[known].abs() if magnitude else value[known]
        state["window"][at, state["filled"][at].long() % length] = value
        state["filled"][at] += 1
        at = at[state["filled"][at] >= length]
        if not len(at):
            return
        reduced = reduce(state["window"][at])
        if decay is None:
            _add_to_mean(state, at, reduced)
        else:
            state["mean"][at] = decay * reduced + (1 - decay) * state["mean"][at]
            state["count"][at] += 1

    return Accumulator(allocate, add, lambda state: _counted(state["mean"], state["count"]))


def _differences(accumulator: Accumulator) -> Accumulator:
    """Pass on each value minus the one before; NaN at the first presentation."""

    def allocate(size: int) -> State:
        return accumulator.allocate(size) | {"before": _floats(size, torch.nan)}

    def add(state: State, at: Tensor, value: Tensor) -> None:
        accumulator.add(state, at, value - state["before"][at])
        state["before"][at] = value

    return Accumulator(allocate, add, accumulator.score)


def _no_mean(size: int) -> State:
    return {"mean": _floats(size), "count": torch.zeros(size, dtype=torch.int32)}


def _floats(size: int, initial: float = 0.0) -> Tensor:
    return torch.full((size,), initial, dtype=torch.float32)


def _add_to_mean(state: State, at: Tensor, value: Tensor) -> None:
    count = state["count"][at] + 1
    before = state["mean"][at]
    state["mean"][at] = before + (value - before) / count
    state["count"][at] = count


def _counted(value: Tensor, count: Tensor) -> Tensor:
    return value.masked_fill(count == 0, torch.nan)


# -- arguments -------------------------------------------------------------------------------------------------------


def _call(function: str, **arguments: object) -> str:
    return f"{function}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _check_window(window: int, until: int | None) -> None:
    check_whole("window", window, 2)
    if until is None:
        return
    check_whole("until", until)
    if until < window:
        raise ValueError(f"until={until} epochs are fewer than a window of {window}: no window would ever be full")
