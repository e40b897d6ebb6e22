import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dataprune.errors import UsageError
from dataprune.lab.training.optimizers import LARS, build
from dataprune.lab.training.settings import Settings


def slow_lars(weights, gradients, rates, *, momentum, decay, trust, limit, scale, clip):
    """One tensor after another, in double precision."""
    weights = [weight.double() for weight in weights]
    velocities = [torch.zeros_like(weight) for weight in weights]
    for rate, step in zip(rates, gradients, strict=True):
        for at, gradient in enumerate(step):
            weight, gradient = weights[at], gradient.double()
            size, steepness = float(weight.norm()), float(gradient.norm())
            ratio = 1.0
            if size > 0 and steepness > 0:
                ratio = min(limit, trust * size / (steepness + decay * size))
            ratio = min(ratio, limit)
            change = gradient + decay * weight
            if clip is not None:
                change = change.clamp(-clip, clip)
            if scale == "gradient":
                velocities[at] = momentum * velocities[at] + rate * ratio * change
                weights[at] = weight - velocities[at]
            else:
                velocities[at] = momentum * velocities[at] + change
                weights[at] = weight - rate * ratio * velocities[at]
    return weights


def tensors(seed, count):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (2, 1, 3, 3), (4,)]
    drawn = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(count + 1)]
    weights, gradients = drawn[0], drawn[1:]
    weights[1].zero_()  # a fresh bias
    gradients[0][2].zero_()  # a dead filter
    weights[3] *= 1e6  # whose ratio is clamped
    return weights, gradients


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    momentum=st.sampled_from([0.0, 0.9]),
    decay=st.sampled_from([0.0, 5e-4, 0.1]),
    trust=st.sampled_from([1e-3, 0.1]),
    scale=st.sampled_from(["gradient", "step"]),
    clip=st.sampled_from([None, 0.5]),
)
def test_lars_is_the_reference(seed, momentum, decay, trust, scale, clip):
    start, gradients = tensors(seed, 5)
    rates = [0.2, 1.0, 5.2, 1.0, 0.1]
    weights = [nn.Parameter(weight.clone()) for weight in start]
    optimizer = LARS(
        weights, 0.1, momentum=momentum, weight_decay=decay, trust=trust, limit=50.0, scale=scale, clip=clip
    )
    for rate, step in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        assert all(torch.equal(weight.grad, gradient) for weight, gradient in zip(weights, step, strict=True))
    expected = slow_lars(
        start, gradients, rates, momentum=momentum, decay=decay, trust=trust, limit=50.0, scale=scale, clip=clip
    )
    for weight, reference in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach().double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", ["gradient", "step"])
def test_lars_resumes_exactly(scale):
    start, gradients = tensors(0, 6)

    def advance(optimizer, steps):
        for step in steps:
            for weight, gradient in zip(optimizer.param_groups[0]["params"], step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        return optimizer.param_groups[0]["params"]

    def new(weights):
        return LARS([nn.Parameter(weight.detach().clone()) for weight in weights], 0.5, scale=scale)

    whole = advance(new(start), gradients)
    first = new(start)
    half = advance(first, gradients[:3])
    second = new(half)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert all(torch.equal(*pair) for pair in zip(whole, advance(second, gradients[3:]), strict=True))


def test_lars_leaves_weights_without_gradient_and_calls_the_closure():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([{"params": [used]}, {"params": [unused]}], 1.0)

    def closure():
        optimizer.zero_grad()
        loss = used.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert torch.equal(unused, torch.ones(2)) and (used < 1).all()


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": -0.1}, {"weight_decay": float("nan")}, {"limit": -1.0}])
def test_lars_refuses(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must not be negative"):
        LARS([nn.Parameter(torch.ones(1))], **{"lr": 0.1} | wrong)
    with pytest.raises(ValueError, match="scale must be"):
        LARS([nn.Parameter(torch.ones(1))], 0.1, scale="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_every_optimizer_lowers_a_loss(name):
    weight = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = build(Settings(optimizer=name, lr=0.05, momentum=0.9, weight_decay=1e-4), [weight])
    start = weight.detach().square().sum()
    for _ in range(50):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert weight.detach().square().sum() < start
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_settings_reach_the_optimizer():
    weight = [nn.Parameter(torch.ones(1))]
    group = build(Settings(lr=0.1, momentum=0.8), weight).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.8, 5e-4, True)
    assert not build(Settings(momentum=0.0), weight).param_groups[0]["nesterov"]  # which torch would refuse
    assert not build(Settings(nesterov=False), weight).param_groups[0]["nesterov"]
    group = build(Settings(optimizer="lars", lr=5.2), weight).param_groups[0]
    assert (group["trust"], group["limit"], group["scale"]) == (1e-3, 50.0, "gradient")
    with pytest.raises(UsageError, match="unknown optimizer 'adamx'; did you mean 'adam"):
        Settings(optimizer="adamx")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_fused_form_is_the_plain_one(name):
    values, gradients = tensors(3, 6)
    weights = [nn.Parameter(value) for value in values]
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    optimizer = build(Settings(optimizer=name, lr=0.1, momentum=0.8, weight_decay=0.01), iter(weights))
    plain = {
        "sgd": lambda weights: torch.optim.SGD(weights, 0.1, 0.8, weight_decay=0.01, nesterov=True, foreach=False),
        "adam": lambda weights: torch.optim.Adam(weights, 0.1, weight_decay=0.01, foreach=False),
        "adamw": lambda weights: torch.optim.AdamW(weights, 0.1, weight_decay=0.01, foreach=False),
    }[name](twins)
    assert optimizer.param_groups[0]["fused"]
    for step in gradients:
        for weight, twin, gradient in zip(weights, twins, step, strict=True):
            weight.grad, twin.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        plain.step()
    for weight, twin in zip(weights, twins, strict=True):
        assert torch.allclose(weight, twin, atol=1e-6)


def test_devices_without_a_fused_kernel_have_the_plain_form():
    weights = [nn.Parameter(torch.ones(2, device="meta"))]
    assert not build(Settings(optimizer="adamw"), weights).param_groups[0]["fused"]
