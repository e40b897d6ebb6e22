"""Static methods by name, as the command line uses them: the selector, its input and its source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Integer
from torch import Tensor, nn

from .. import docstrings
from .. import methods as dynamic_methods
from ..contrib.coresets._dual_beta import dual_beta
from ..contrib.coresets._graph_cut import graph_cut
from ..contrib.coresets._prototypes import prototypes
from ..contrib.coresets._semdedup import semdedup
from ..dynamics import STATISTICS
from ..errors import UsageError, check_known
from ..selection import Selection
from . import replay
from ._contextual_diversity import contextual_diversity
from ._craig import craig
from ._deepfool import deepfool
from ._glister import glister
from ._grad_match import grad_match
from ._herding import herding
from ._influence import influence
from ._k_center import k_center
from ._moderate import moderate
from ._stratified import stratified
from .extraction import Extracted
from .ranking import bottom, random, top

# nothing: the size; gradients: errors and features; validation: also those of a validation set; model: also its inputs
Needs = Literal["nothing", "scores", "features", "logits", "gradients", "validation", "model"]

# parameters that are no options: `choose` passes them itself, or they are data
_PASSED = ("keep", "labels", "seed", "bias", "chosen", "val_errors", "val_features")
_SHARED = {
    "scores": "(N,), one number per sample; infinities are allowed. Arrays and lists may stand for tensors.",
    "features": "(N, D), one row per sample, of any floating-point type, on any device; beside `errors`, the input of "
    "the last linear layer. Arrays and lists may stand for tensors.",
    "errors": "(N, C), softmax(logits) − onehot(labels).",
    "keep": "fraction kept, in (0, 1]; or, from 2 on, how many samples.",
    "chosen": "positions that are chosen already, as a pool that is labelled: `keep` counts the samples beside these, "
    "which are picked as the next ones, and are all that is returned.",
    "labels": '(N,) class ids, in [0, C) beside `errors`; where they may be None, only balance="class" needs them.',
    "balance": '"none", or "class": the same number of places for every class, as far as it has samples.',
    "bias": "whether the last layer has a bias, whose gradient counts as one more feature of 1; or that layer itself.",
    "first": 'position of the first sample, instead of a random one; only with balance="none".',
    "seed": "decides between equal samples, and which class gets an odd place.",
    "max_memory": "bytes that may be used beyond the input.",
}
_RESULT = "max(1, floor(keep * N + 0.5)) ascending positions with weight one."
_ERRORS = (
    "ValueError: if an input has another shape or dtype, or is not finite, an argument is out of range, labels are "
    "missing or do not fit, a class would stay empty, or the memory needed is above max_memory."
)


@dataclass(frozen=True)
class Method:
    """A static method: a function of `coresets`, and what it needs."""

    select: Callable[..., Selection]
    needs: Needs
    statistic: str | None = None  # score that it reads by default; None: the user must choose, or it reads none
    any_statistic: bool = False  # whether another score can be chosen
    also: tuple[str, ...] = ()  # further scores, which it takes after that one
    weights: bool = False  # whether its samples are weighted: by the score, or by the selector

    @property
    def keeps(self) -> str:
        """What it keeps: the first paragraph of the selector's documentation, and of the score's."""
        return " ".join(_documentation(function)[0] for function in self._functions)

    @property
    def source(self) -> str:
        """The paper of the score that the method is named after, or else of the selector."""
        return _documentation(self._functions[-1])[1]

    @property
    def _functions(self) -> list[Callable[..., Any]]:
        named = self.statistic is not None and not self.any_statistic
        return [self.select, STATISTICS[str(self.statistic)]] if named else [self.select]

    def options(self) -> list[str]:
        """Names of the selector's own parameters, and of those that `choose` adds."""
        parameters = inspect.signature(self.select).parameters.values()
        own = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in _PASSED]
        added = {"statistic": self.any_statistic, "validation": self.needs == "validation"}
        return [*own, "weights", *(name for name, has in added.items() if has)]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of static methods; each function is called only for a method that needs it."""

    size: int  # samples in the dataset, N
    labels: Integer[Tensor, " n"] | None  # class ids; None where they are not known
    scores: Callable[[str], Float[Tensor, " n"]]  # by name
    extracted: Callable[[], Extracted]  # of the dataset
    validation: Callable[[], Extracted]  # of a validation set
    model: Callable[[], tuple[nn.Module, Tensor]]  # and the dataset's samples in the form that it takes


def choose(
    name: str, inputs: Inputs, *, keep: float, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Selection:
    """Select the coreset of a static method.

    Args:
        name: one of `METHODS`.
        options: the selector's own arguments; `statistic`, the score to read, for methods that read any score;
            `weights`: "none", "mean-one" (scaled to mean 1, the default of methods with weights) or "raw"; by scores,
            as `weighted` has them, also "paper" or "paper-raw"; `validation`: "split", or "train"
            for the training set in its place.
    Raises:
        UsageError: for an unknown name or option.
        ValueError: as the selector.
    """
    method = find(name)
    arguments = dict(options or {})
    for option in arguments:
        check_known(option, method.options(), what=f"option of {name}")
    weights = arguments.pop("weights", "mean-one" if method.weights else "none")
    papers = ("paper", "paper-raw") if method.needs == "scores" else ()
    check_known(weights, ("none", "mean-one", "raw", *papers), what=f"weights of {name}")
    on = arguments.pop("validation", "split")
    check_known(on, ("split", "train"), what=f"validation of {name}")
    statistic = arguments.pop("statistic", method.statistic)
    if method.needs == "scores" and statistic is None:
        raise UsageError(f"{name} selects by a score: choose it with --statistic NAME")
    if "labels" in inspect.signature(method.select).parameters:
        arguments["labels"] = inputs.labels
    positional = _positional(method, inputs, statistic)
    if "bias" in inspect.signature(method.select).parameters:
        arguments["bias"] = inputs.extracted().bias
    if method.needs == "validation":
        validation = inputs.extracted() if on == "train" else inputs.validation()
        arguments |= {"val_errors": validation.errors(), "val_features": validation.features}
    try:
        selection = method.select(*positional, keep=keep, seed=seed, **arguments)
    except TypeError as error:
        if not options:
            raise
        raise UsageError(f"{name}: an option has a value of the wrong type ({error})") from error
    if weights == "none":
        return Selection.of(selection.index)
    if method.needs == "scores":
        variant = "paper" if weights in papers else "official"
        return replay.weighted(selection, positional[0], raw=weights.endswith("raw"), variant=variant)
    return selection if weights == "raw" else replay.mean_one(selection)


def find(name: str) -> Method:
    """Look up a static method; UsageError if there is none of this name."""
    if name in STATISTICS and name not in METHODS:
        raise UsageError(f"{name} is a statistic, not a method of this name: --method top --statistic {name}")
    if name in dynamic_methods.METHODS:
        raise UsageError(
            f"{name} is a dynamic method, which selects anew in every epoch: use it in training or in a comparison, or "
            f"choose a static method ({', '.join(METHODS)})"
        )
    check_known(name, METHODS, what="static method")
    return METHODS[name]


def _positional(method: Method, inputs: Inputs, statistic: str | None) -> tuple[Any, ...]:
    """The selector's first arguments."""
    match method.needs:
        case "nothing":
            return (inputs.size,)
        case "scores":
            return tuple(map(inputs.scores, (str(statistic), *method.also)))
        case "model":
            return inputs.model()
        case "features":
            return (inputs.extracted().features,)
        case "logits":
            return (inputs.extracted().logits,)
        case _:
            extracted = inputs.extracted()
            return extracted.errors(), extracted.features


def _documentation(function: Callable[..., Any]) -> tuple[str, str]:
    """First paragraph and source of a function's docstring."""
    text, source = (inspect.getdoc(function) or "").split("Source:", 1)
    return " ".join(text.split("\n\n", 1)[0].split()), " ".join(source.split("Differs:", 1)[0].split())


METHODS: dict[str, Method] = {
    # of the loss only the dynamic method has that name, and of "random" the one that draws a new subset every epoch
    **{name: Method(top, "scores", name, weights=name == "tdds") for name in STATISTICS if name != "loss"},
    "ccs": Method(stratified, "scores", "aum", any_statistic=True),
    "moderate": Method(moderate, "features"),
    "herding": Method(herding, "features"),
    "k_center": Method(k_center, "features"),
    "contextual_diversity": Method(contextual_diversity, "logits"),
    "craig": Method(craig, "gradients", weights=True),
    "grad_match": Method(grad_match, "gradients", weights=True),
    "glister": Method(glister, "validation"),
    "influence": Method(influence, "gradients"),
    "deepfool": Method(deepfool, "model"),
    "random_coreset": Method(random, "nothing"),
    "top": Method(top, "scores", any_statistic=True),
    "bottom": Method(bottom, "scores", any_statistic=True),
    "stratified": Method(stratified, "scores", any_statistic=True),
    "dual_beta": Method(dual_beta, "scores", "dual", also=("difficulty",)),
    "semdedup": Method(semdedup, "features"),
    "prototypes": Method(prototypes, "features"),
    "graph_cut": Method(graph_cut, "features"),
}

for _selector in {method.select for method in METHODS.values()}:
    docstrings.complete(_selector, _SHARED, returns=_RESULT, raises=_ERRORS)
