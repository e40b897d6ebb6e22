"""Static methods by name, as the command line knows them: which selector, fed with what. `METHODS` is their index."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..dynamics import STATISTICS
from ..errors import UsageError, suggest
from ..selection import Selection
from . import boundary, facility_location, geometry, gradients, influences, replay, scores
from .extraction import Extracted

WEIGHTS = ("none", "mean-one", "raw")

Needs = Literal["nothing", "scores", "features", "logits", "gradients", "validation", "model"]


class Named(NamedTuple):
    """A static method.

    Attributes:
        selector: the function of `coresets` that carries it out.
        needs: what it selects from.
        statistic: the score it reads, where `needs` is "scores"; None where the user must say.
        weights: whether its samples are weighted: by the score, or as the selector says.
        keeps: what it keeps, in a line.
        source: the paper.
    """

    selector: Callable[..., Selection]
    needs: Needs
    statistic: str | None = None
    weights: bool = False
    keeps: str = ""
    source: str = ""

    def options(self) -> list[str]:
        """Names of the selector's own parameters, and of those that `choose` adds."""
        named = [
            name for name, one in inspect.signature(self.selector).parameters.items() if one.kind is one.KEYWORD_ONLY
        ]
        shared = ("keep", "labels", "seed", "val_errors", "val_features")
        own = [name for name in named if name not in shared]
        return [*own, "weights", *(["statistic"] if self.free else [])]

    @property
    def free(self) -> bool:
        """Whether the score it reads may be chosen; a method that is named after its score has but that."""
        return self.needs == "scores" and self is not METHODS.get(str(self.statistic))


class Given(NamedTuple):
    """What methods select from; each part is asked for only by those that need it.

    Attributes:
        size: samples in the dataset, N.
        labels: class ids; None where they are not known.
        scores: the score of that name, (N,).
        extracted: features, logits and labels of the dataset.
        validation: the same of a validation set.
        model: the model, and the dataset's samples as it takes them.
    """

    size: int
    labels: Int[Tensor, " n"] | None
    scores: Callable[[str], Float[Tensor, " n"]]
    extracted: Callable[[], Extracted]
    validation: Callable[[], Extracted]
    model: Callable[[], tuple[nn.Module, Tensor]]


def choose(
    name: str, given: Given, *, keep: float, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Selection:
    """The coreset of a static method.

    Args:
        name: one of `METHODS`.
        given: what there is to select from.
        keep: fraction kept, in (0, 1].
        seed: of what is random.
        options: of the selector; `statistic`, the score that a method from scores reads; `weights`: "none", "mean-one"
            (weights scaled to mean 1: by default where the method has weights) or "raw".
    Raises:
        UsageError: for an unknown name or option.
        ValueError: as the selector.
    """
    method = METHODS[known(name)]
    own = dict(options or {})
    for option in own:
        if option not in method.options():
            raise UsageError(suggest(option, method.options(), what=f"option of {name}"))
    kind = own.pop("weights", "mean-one" if method.weights else "none")
    if kind not in WEIGHTS:
        raise UsageError(suggest(str(kind), WEIGHTS, what=f"weights of {name}"))
    column = own.pop("statistic", method.statistic)
    read: Tensor | None = None
    arguments: tuple[Any, ...]
    if method.needs == "scores":
        if column is None:
            raise UsageError(f"{name} selects from a score: say which, with --statistic NAME")
        read = given.scores(str(column))
        arguments = (read,)
    elif method.needs == "nothing":
        arguments = (given.size,)
    elif method.needs == "model":
        arguments = given.model()
    else:
        extracted = given.extracted()
        if method.needs == "features":
            arguments = (extracted.features,)
        elif method.needs == "logits":
            arguments = (extracted.logits,)
        else:
            arguments = (extracted.errors(), extracted.features)
    if method.needs == "validation":
        held = given.validation()
        own |= {"val_errors": held.errors(), "val_features": held.features}
    if "labels" in inspect.signature(method.selector).parameters:
        own["labels"] = given.labels
    try:
        selection = method.selector(*arguments, keep=keep, seed=seed, **own)
    except TypeError as error:
        if not options:
            raise
        raise UsageError(f"{name}: an option has a value of the wrong kind ({error})") from error
    if kind == "none":
        return Selection.of(selection.index)
    if read is not None:
        return replay.weighted(selection, read, raw=kind == "raw")
    return selection if kind == "raw" else replay.mean_one(selection)


def known(name: str) -> str:
    """The name, if there is such a static method.

    Raises:
        UsageError: if there is none.
    """
    if name in STATISTICS and name not in METHODS:
        raise UsageError(f"{name} is a statistic, not a method of this name: --method top --statistic {name}")
    if name not in METHODS:
        raise UsageError(suggest(name, METHODS, what="static method"))
    return name


def _highest(statistic: str, keeps: str, source: str, *, weights: bool = False) -> Named:
    return Named(scores.top, "scores", statistic, weights, keeps, source)


_COLEMAN = "Coleman et al. 2020, arXiv:1906.11829"
_PAUL = "Paul et al. 2021, arXiv:2107.07075"

METHODS: dict[str, Named] = {
    "forgetting": _highest("forgetting", "most often forgotten", "Toneva et al. 2019, arXiv:1812.05159"),
    "el2n": _highest("el2n", "largest error vectors early in training", _PAUL),
    "grand": _highest("grand", "largest gradients of the last layer", _PAUL),
    "aum": _highest("aum", "smallest area under the margin", "Pleiss et al. 2020, arXiv:2001.10528"),
    "entropy": _highest("entropy", "highest entropy of the last prediction", _COLEMAN),
    "least_confidence": _highest("least_confidence", "lowest confidence of the last prediction", _COLEMAN),
    "margin": _highest("margin", "smallest margin of the last prediction", "Scheffer et al. 2001"),
    "dyn_unc": _highest("dyn_unc", "most uncertain over windows", "He et al. 2023, arXiv:2306.05175"),
    "dual": _highest("dual", "most uncertain and difficult early", "Cho et al. 2025, arXiv:2502.06905"),
    "tdds": _highest(
        "tdds",
        "contributions that vary most over windows, weighted by their score",
        "Zhang et al. 2024, arXiv:2311.13613",
        weights=True,
    ),
    "ccs": Named(
        scores.stratified,
        "scores",
        "aum",
        keeps="evenly over the difficulty, without the hardest (option cutoff)",
        source="Zheng et al. 2023, arXiv:2210.15809",
    ),
    "moderate": Named(
        geometry.moderate, "features", keeps="at the median distance from their class", source="Xia et al. 2023"
    ),
    "herding": Named(geometry.herding, "features", keeps="what has the mean of its class", source="Welling 2009"),
    "k_center": Named(
        geometry.k_center,
        "features",
        keeps="what covers the features",
        source="Sener and Savarese 2018, arXiv:1708.00489",
    ),
    "contextual_diversity": Named(
        geometry.contextual_diversity,
        "logits",
        keeps="what covers the predictions",
        source="Agarwal et al. 2020, arXiv:2008.05723",
    ),
    "craig": Named(
        facility_location.craig,
        "gradients",
        weights=True,
        keeps="what stands for all gradients, weighted by how many",
        source="Mirzasoleiman et al. 2020, arXiv:1906.01827",
    ),
    "grad_match": Named(
        gradients.grad_match,
        "gradients",
        weights=True,
        keeps="weighted, what sums to the full gradient",
        source="Killamsetty et al. 2021, arXiv:2103.00123",
    ),
    "glister": Named(
        gradients.glister,
        "validation",
        keeps="what lowers the validation loss",
        source="Killamsetty et al. 2021, arXiv:2012.10630",
    ),
    "influence": Named(
        influences.influence,
        "gradients",
        keeps="all but what changes the last layer least",
        source="Yang et al. 2023, arXiv:2205.09329",
    ),
    "deepfool": Named(
        boundary.deepfool,
        "model",
        keeps="closest to a decision boundary",
        source="Ducoffe and Precioso 2018, arXiv:1802.09841",
    ),
    "random": Named(scores.random, "nothing", keeps="a random subset", source=_COLEMAN),
    "top": Named(scores.top, "scores", keeps="the highest of a score of your choice", source=_COLEMAN),
    "bottom": Named(
        scores.bottom,
        "scores",
        keeps="the lowest of a score of your choice",
        source="Sorscher et al. 2022, arXiv:2206.14486",
    ),
    "stratified": Named(
        scores.stratified,
        "scores",
        keeps="`ccs` of a score of your choice",
        source="Zheng et al. 2023, arXiv:2210.15809",
    ),
}
