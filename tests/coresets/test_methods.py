"""Static methods by name choose what their selectors choose."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import dataprune
from dataprune import UsageError, coresets, dynamics
from dataprune.coresets import METHODS, Extracted, Inputs, Method

SIZE, CLASSES, WIDTH, KEEP = 120, 3, 6, 0.25


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(SIZE) % CLASSES
    inputs = torch.randn(CLASSES, WIDTH, generator=draw)[labels] + torch.randn(SIZE, WIDTH, generator=draw)
    model = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw))
    extracted = coresets.extract(model, [(inputs, labels)])
    held = coresets.extract(model, [(inputs[:30] + 0.1, labels[:30])])
    scores = {name: torch.rand(SIZE, generator=draw) for name in dynamics.STATISTICS}
    return {"labels": labels, "inputs": inputs, "model": model, "all": extracted, "held": held, "scores": scores}


@pytest.fixture
def inputs(parts: dict[str, Any]) -> Inputs:
    return Inputs(
        SIZE,
        parts["labels"],
        lambda name: parts["scores"][name],
        lambda: parts["all"],
        lambda: parts["held"],
        lambda: (parts["model"], parts["inputs"]),
    )


def options(name: str) -> dict[str, Any]:
    return {"statistic": "loss"} if name in ("top", "bottom", "stratified") else {}


@pytest.mark.parametrize("name", METHODS)
def test_each_is_its_selector(name: str, inputs: Inputs, parts: dict[str, Any]) -> None:
    method, everything = METHODS[name], parts["all"]
    shared: dict[str, Any] = {"keep": KEEP, "seed": 3}
    if "labels" in inspect.signature(method.select).parameters:
        shared["labels"] = parts["labels"]
    statistic = options(name).get("statistic", method.statistic)
    direct = {
        "nothing": lambda: method.select(SIZE, **shared),
        "scores": lambda: method.select(*(parts["scores"][score] for score in (statistic, *method.also)), **shared),
        "features": lambda: method.select(everything.features, **shared),
        "logits": lambda: method.select(everything.logits, **shared),
        "gradients": lambda: method.select(everything.errors(), everything.features, **shared),
        "validation": lambda: method.select(
            everything.errors(),
            everything.features,
            val_errors=parts["held"].errors(),
            val_features=parts["held"].features,
            **shared,
        ),
        "model": lambda: method.select(parts["model"], parts["inputs"], **shared),
    }[method.needs]()
    result = coresets.choose(name, inputs, keep=KEEP, seed=3, options=options(name))
    assert torch.equal(result.index, direct.index) and len(result.index) == 30
    if not method.weights:
        assert bool((result.weight == 1).all())
        return
    assert result.weight.mean().item() == pytest.approx(1, rel=1e-5)
    plain = coresets.choose(name, inputs, keep=KEEP, seed=3, options={"weights": "none"})
    assert torch.equal(plain.index, result.index) and bool((plain.weight == 1).all())
    raw = coresets.choose(name, inputs, keep=KEEP, seed=3, options={"weights": "raw"})
    torch.testing.assert_close(raw.weight / raw.weight.mean(), result.weight)
    if statistic is None:
        assert torch.equal(raw.weight, direct.weight) and not result.by_batch
        with pytest.raises(UsageError, match="unknown weights of"):
            coresets.choose(name, inputs, keep=KEEP, seed=3, options={"weights": "paper"})
        return
    scores = parts["scores"][statistic]
    assert result.by_batch and torch.equal(raw.weight, coresets.weighted(direct, scores, raw=True).weight)
    for weights, is_raw in (("paper", False), ("paper-raw", True)):
        each = coresets.choose(name, inputs, keep=KEEP, seed=3, options={"weights": weights})
        assert not each.by_batch
        assert torch.equal(each.weight, coresets.weighted(direct, scores, raw=is_raw, variant="paper").weight)


def test_every_method_says_what_it_keeps_and_where_it_comes_from() -> None:
    for name, method in METHODS.items():
        assert method.keeps.startswith("Keep") or name in ("ccs", "stratified", "influence"), name
        assert re.search("[0-9]{4}", method.source), name
        assert method.statistic in (None, *dynamics.STATISTICS), name
    assert METHODS["el2n"].keeps.startswith("Keep the highest scores. Norm of the error vector")
    assert METHODS["el2n"].source.startswith("Paul et al. 2021") and METHODS["top"].source.startswith("Coleman")
    assert METHODS["ccs"].source.startswith("Zheng et al. 2023")


def test_names_are_the_same_in_python_and_unique_across_static_and_dynamic_methods() -> None:
    """A name means one method wherever methods are named, as in `dataprune compare --methods`."""
    assert not set(METHODS) & set(dataprune.METHODS)
    for name, method in METHODS.items():
        if name != method.statistic:  # not named after the score
            assert getattr(coresets, name) is method.select
    assert coresets.ccs is coresets.stratified


def test_methods_named_after_a_score_read_it_alone() -> None:
    assert {name for name, method in METHODS.items() if method.any_statistic} == {"ccs", "top", "bottom", "stratified"}
    for name, method in METHODS.items():
        assert isinstance(method, Method) and (method.needs == "scores" or method.statistic is None), name


def test_options(inputs: Inputs) -> None:
    balanced = coresets.choose("el2n", inputs, keep=KEEP, options={"balance": "class"})
    assert torch.bincount(inputs.labels[balanced.index]).tolist() == [10, 10, 10]  # type: ignore[index]
    other = coresets.choose("ccs", inputs, keep=KEEP, options={"statistic": "loss", "bins": 5, "cutoff": 0.1})
    same = coresets.stratified(inputs.scores("loss"), keep=KEEP, bins=5, cutoff=0.1)
    assert torch.equal(other.index, same.index)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("el3n", {}, "did you mean 'el2n'"),
        ("random", {}, "random is a dynamic method.*random_coreset"),
        ("loss", {}, "loss is a statistic.*--method top --statistic loss"),
        ("ccs", {"cutof": 1}, "did you mean 'cutoff'"),
        ("ccs", {"weights": "men-one"}, "did you mean 'mean-one'"),
        ("top", {}, "--statistic"),
        ("k_center", {"statistic": "aum"}, "unknown option of k_center"),
        ("el2n", {"statistic": "aum"}, "unknown option of el2n"),
        ("glister", {"step": "all"}, "glister: an option has a value of the wrong type"),
    ],
)
def test_unknown_names_and_options(name: str, options: dict[str, Any], message: str, inputs: Inputs) -> None:
    with pytest.raises(UsageError, match=message):
        coresets.choose(name, inputs, keep=KEEP, options=options)


@pytest.mark.parametrize("name", ["craig", "grad_match", "glister", "influence"])
def test_a_head_without_a_bias_is_asked(name: str, parts: dict[str, Any], inputs: Inputs) -> None:
    def headed(bias: bool) -> Inputs:
        return replace(inputs, extracted=lambda: replace(parts["all"], features=parts["all"].features / 100, bias=bias))

    with_bias, without = (coresets.choose(name, headed(bias), keep=KEEP) for bias in (True, False))
    assert not torch.equal(with_bias.index, without.index)
    with pytest.raises(UsageError, match="unknown option"):
        coresets.choose(name, inputs, keep=KEEP, options={"bias": False})


def test_inputs_are_read_only_by_the_methods_that_need_them(parts: dict[str, Any]) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("this input is not needed")

    empty = Extracted(parts["all"].features, torch.empty(0), torch.empty(0))
    only = Inputs(SIZE, parts["labels"], refuse, lambda: empty, refuse, refuse)
    assert len(coresets.choose("herding", only, keep=KEEP).index) == 30
    assert len(coresets.choose("random_coreset", only, keep=KEEP).index) == 30
