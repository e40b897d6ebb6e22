"""Gradual pruning follows its schedule to the weight, and resumes."""

from __future__ import annotations

import pytest
import torch
from network.tiny_net import OPTIMIZERS, small, train, weights
from torch import nn

from dataprune import network
from dataprune.errors import CheckpointError, UsageError


def test_cubic_is_the_published_formula() -> None:
    final, initial, start, pruned, every = 0.9, 0.1, 5, 4, 3  # pruned: times, every so many steps
    schedule = network.cubic(final, pruned * every, initial=initial, start=start, every=every)
    for step in range(start):
        assert schedule(step) == 0
    for time in range(pruned + 1):
        t = start + time * every
        expected = final + (initial - final) * (1 - (t - start) / (pruned * every)) ** 3
        assert schedule(t) == pytest.approx(expected, abs=1e-12)
        if time < pruned:
            assert schedule(t + 1) == schedule(t + every - 1) == schedule(t)  # constant until the next time
    assert schedule(start) == pytest.approx(initial)
    assert schedule(start + pruned * every) == schedule(10_000) == final


def test_cubic_reaches_its_end_where_the_interval_does_not_divide_the_steps() -> None:
    schedule = network.cubic(0.8, 10, every=3)
    values = [schedule(step) for step in range(12)]
    assert values == sorted(values)
    assert values[9] < values[10] == 0.8


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sparsity_follows_the_schedule_while_training(scope: str) -> None:
    model = small()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    schedule = network.cubic(0.8, 20, start=3, every=4)
    gradual = network.Gradual(model, schedule, scope=scope)
    zeros = {name: array == 0 for name, array in weights(model).items()}
    seen = []

    def after() -> None:
        nonlocal zeros
        gradual.step()
        measured = network.sparsity(model)
        allowed = 1 if scope == "global" else len(measured.sizes)
        assert abs(sum(measured.zeros.values()) - schedule(gradual.steps) * sum(measured.sizes.values())) <= allowed
        now = {name: array == 0 for name, array in weights(model).items()}
        assert all((now[name] | ~zeros[name]).all() for name in now)  # what was zero still is
        zeros = now
        seen.append(gradual.amount)

    train(model, optimizer, 30, after)
    assert seen[-1] == gradual.amount == 0.8
    assert len(set(seen)) == 6  # before the start, and five prunings
    network.finalize(model)
    assert network.sparsity(model).overall == pytest.approx(0.8, abs=0.01)


def test_it_prunes_only_when_the_share_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    gradual = network.Gradual(model, lambda step: [0.0, 0.5, 0.5, 0.2, 0.6][step])
    calls = []
    monkeypatch.setattr("dataprune.network._prune.prune", lambda *args, **named: calls.append(args[1]))
    for _ in range(4):
        gradual.step()
    assert calls == [0.5, 0.6]


def test_a_gradual_run_resumes_exactly() -> None:
    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, network.Gradual]:
        model = small(seed)
        gradual = network.Gradual(model, network.cubic(0.9, 12, every=2), exclude="fc")
        return model, OPTIMIZERS["adamw"](model.parameters()), gradual

    model, optimizer, gradual = build(0)
    train(model, optimizer, 7, gradual.step)
    states = [part.state_dict() for part in (model, optimizer, gradual)]
    states = torch.load(_saved(states), weights_only=True)
    train(model, optimizer, 7, gradual.step)

    fresh, again, position = build(3)
    network.apply(fresh, network.Masks.of(states[0]))
    for part, state in zip((fresh, again, position), states):
        part.load_state_dict(state)
    train(fresh, again, 7, position.step)
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in model.state_dict().items())
    assert position.state_dict() == gradual.state_dict() == {"steps": 14, "amount": 0.9}
    assert network.sparsity(fresh).layers["fc"] == 0


def _saved(value: object):
    import io

    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(final=1.0, steps=3), "final"),
        (dict(final=-0.1, steps=3), "final"),
        (dict(final=0.5, steps=3, initial=1.0), "initial"),
        (dict(final=0.5, steps=3, initial=0.6), "initial is above final"),
        (dict(final=0.5, steps=0), "steps"),
        (dict(final=0.5, steps=3, start=-1), "start"),
        (dict(final=0.5, steps=3, every=0), "every"),
        (dict(final=float("nan"), steps=3), "final"),
    ],
)
def test_schedules_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network.cubic(**arguments)


def test_wrong_arguments_raise_before_training() -> None:
    schedule = network.cubic(0.5, 3)
    with pytest.raises(UsageError, match="scope"):
        network.Gradual(small(), schedule, scope="model")
    with pytest.raises(UsageError, match="exclude"):
        network.Gradual(small(), schedule, exclude="head")
    with pytest.raises(ValueError, match="nothing to prune"):
        network.Gradual(nn.ReLU(), schedule)
    with pytest.raises(ValueError, match="amount"):
        network.Gradual(small(), lambda step: 1.5).step()
    with pytest.raises(CheckpointError, match="not the state of a Gradual"):
        network.Gradual(small(), schedule).load_state_dict({"epoch": 3})
