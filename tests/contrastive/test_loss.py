"""NT-Xent against a double loop in float64, over ranks against one process, and its memory."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pool import Pool
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataprune.contrastive import nt_xent


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside, as they come and go."""

    def __init__(self, least: int = 0):
        super().__init__()
        self.least = least  # bytes of a tensor that counts as large
        self.now = self.peak = self.large = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() in given or storage.data_ptr() in self.seen:
                    continue
                self.seen.add(storage.data_ptr())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                self.large += storage.nbytes() >= self.least
                weakref.finalize(storage, self._gone, storage.data_ptr(), storage.nbytes())
        return result

    def _gone(self, pointer: int, nbytes: int) -> None:
        self.seen.discard(pointer)
        self.now -= nbytes


def draw(batch: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    other = z + 0.5 * torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    return z.to(dtype), other.to(dtype)


def slow(z_i: Tensor, z_j: Tensor, temperature: float) -> list[float]:
    """Eq. 1 of the SimCLR paper, pair by pair."""
    z = [row / math.sqrt(sum(value * value for value in row)) for row in torch.cat([z_i, z_j]).double().numpy()]
    batch, losses = len(z_i), []
    for sample in range(batch):
        both = 0.0
        for anchor, positive in ((sample, sample + batch), (sample + batch, sample)):
            others = [math.exp(float(z[anchor] @ z[k]) / temperature) for k in range(2 * batch) if k != anchor]
            both -= math.log(math.exp(float(z[anchor] @ z[positive]) / temperature) / sum(others))
        losses.append(both / 2)
    return losses


def plain(z_i: Tensor, z_j: Tensor, temperature: float) -> Tensor:
    """The same with autograd's own gradient."""
    z = F.normalize(torch.cat([z_i, z_j]), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    targets = torch.arange(len(z)).roll(len(z_i))
    each = F.cross_entropy(logits, targets, reduction="none")
    return (each[: len(z_i)] + each[len(z_i) :]) / 2


# -- values and gradients --------------------------------------------------------------------------------------------


@given(
    batch=st.integers(2, 7),
    dim=st.integers(1, 6),
    temperature=st.sampled_from([0.05, 0.5, 1.0, 7.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, derandomize=True)
def test_equals_the_double_loop(batch: int, dim: int, temperature: float, seed: int) -> None:
    z_i, z_j = draw(batch, dim, seed)
    wanted = torch.tensor(slow(z_i, z_j, temperature), dtype=torch.float64)
    torch.testing.assert_close(nt_xent(z_i, z_j, temperature, "none"), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(nt_xent(z_i, z_j, temperature), wanted.mean(), rtol=1e-9, atol=1e-9)


def test_temperature_is_a_half_by_default() -> None:
    z_i, z_j = draw(5, 3)
    torch.testing.assert_close(nt_xent(z_i, z_j), torch.tensor(slow(z_i, z_j, 0.5), dtype=torch.float64).mean())


def test_losses_average_to_the_usual_mean_over_both_directions() -> None:
    z_i, z_j = draw(9, 4)
    torch.testing.assert_close(nt_xent(z_i, z_j, reduction="none").mean(), nt_xent(z_i, z_j))
    torch.testing.assert_close(nt_xent(z_i, z_j), nt_xent(z_j, z_i))
    torch.testing.assert_close(nt_xent(z_i, z_j), nt_xent(3 * z_i, 0.2 * z_j))  # lengths do not matter


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_gradient_in_float64(reduction: str, temperature: float) -> None:
    z_i, z_j = (z.requires_grad_() for z in draw(4, 3))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature, reduction), (z_i, z_j))  # type: ignore[arg-type]


def test_weighted_gradient_is_that_of_autograd() -> None:
    weight = torch.rand(6, dtype=torch.float64)
    gradients = []
    for function in (lambda a, b: nt_xent(a, b, 0.2, "none"), lambda a, b: plain(a, b, 0.2)):
        z_i, z_j = (z.requires_grad_() for z in draw(6, 4))
        gradients.append(torch.autograd.grad((weight * function(z_i, z_j)).mean(), (z_i, z_j)))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradient_of_one_view_alone() -> None:
    z_i, z_j = draw(4, 3)
    z_i.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: nt_xent(a, z_j), (z_i,))


def test_a_second_gradient_raises() -> None:
    z_i, z_j = (z.requires_grad_() for z in draw(4, 3))
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(nt_xent(z_i, z_j), z_i, create_graph=True)


# -- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_half_precision_loses_no_more_than_its_rounding(dtype: torch.dtype, temperature: float) -> None:
    z_i, z_j = draw(64, 32, dtype=dtype)
    wanted = torch.tensor(slow(z_i.float(), z_j.float(), temperature))
    result = nt_xent(z_i, z_j, temperature, "none")
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)
    exact = torch.tensor(slow(*draw(64, 32), temperature))
    torch.testing.assert_close(result, exact, rtol=0.02, atol=0.02 / temperature)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_precision_are_close(dtype: torch.dtype) -> None:
    gradients = []
    for precision in (torch.float64, dtype):
        z_i, z_j = (z.to(precision).requires_grad_() for z in draw(16, 8))
        gradients.append([g.double() for g in torch.autograd.grad(nt_xent(z_i, z_j), (z_i, z_j))])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=2e-3)


def test_autocast_changes_nothing() -> None:
    gradients, values = [], []
    for enabled in (False, True):
        z_i, z_j = (z.requires_grad_() for z in draw(16, 8, dtype=torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = nt_xent(z_i, z_j)
            gradients.append(torch.autograd.grad(loss, (z_i, z_j)))
        values.append(loss)
    assert torch.equal(values[0], values[1])
    assert all(torch.equal(first, other) for first, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 1e3])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    z_i, z_j = (z.requires_grad_() for z in draw(8, 4, dtype=torch.float32))
    losses = nt_xent(z_i, z_j, temperature, "none")
    losses.mean().backward()
    assert losses.isfinite().all() and z_i.grad is not None and z_i.grad.isfinite().all()
    large, opposite = torch.full((3, 4), 1e4, dtype=torch.float16), torch.full((3, 4), -1e4, dtype=torch.float16)
    assert nt_xent(large, opposite, temperature, "none").isfinite().all()


# -- memory ----------------------------------------------------------------------------------------------------------


def test_one_matrix_of_similarities_is_made_forward_and_backward() -> None:
    batch, dim = 200, 8
    matrix = 4 * (2 * batch) ** 2
    for function, largest in ((nt_xent, 1.35), (lambda a, b: plain(a, b, 0.5).mean(), None)):
        z_i, z_j = (z.requires_grad_() for z in draw(batch, dim, dtype=torch.float32))
        with Held(least=matrix // 4) as held:
            loss = function(z_i, z_j)
            loss.backward()
        if largest is None:
            assert held.peak > 2.9 * matrix  # the counter does count
        else:
            assert held.large == 1
            assert held.peak < largest * matrix


def test_without_a_gradient_nothing_is_kept() -> None:
    z_i, z_j = draw(100, 8, dtype=torch.float32)
    with Held() as held:
        loss = nt_xent(z_i, z_j)
    assert loss.grad_fn is None
    assert held.now <= 16


# -- wrong calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z_i", "z_j", "options", "error", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(4, 2), {}, ValueError, r"z_i \(3, 2\) and z_j \(4, 2\)"),
        (torch.zeros(3, 2), torch.zeros(3, 5), {}, ValueError, "two views of the same samples"),
        (torch.zeros(3), torch.zeros(3), {}, ValueError, r"\(B, D\)"),
        (torch.zeros(1, 2), torch.zeros(1, 2), {}, ValueError, "no negatives"),
        (torch.zeros(0, 2), torch.zeros(0, 2), {"gather": True}, ValueError, "no negatives"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"temperature": 0}, ValueError, "temperature"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"temperature": -0.5}, ValueError, "temperature"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"temperature": math.nan}, ValueError, "temperature"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"temperature": math.inf}, ValueError, "temperature"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"reduction": "sum"}, ValueError, "reduction"),
        (torch.zeros(3, 2).long(), torch.zeros(3, 2), {}, TypeError, "z_i must be a floating-point"),
        (torch.zeros(3, 2), torch.zeros(3, 2).int(), {}, TypeError, "z_j must be a floating-point"),
        (torch.zeros(3, 2), None, {}, TypeError, "NoneType"),
    ],
)
def test_wrong_calls_say_what_to_do(z_i, z_j, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nt_xent(z_i, z_j, **options)


def test_projections_that_are_zero_or_alike_stay_finite() -> None:
    losses = nt_xent(torch.zeros(3, 2), torch.zeros(3, 2), reduction="none")
    torch.testing.assert_close(losses, torch.full((3,), math.log(5)))


# -- several ranks ---------------------------------------------------------------------------------------------------


def share(rank: int, world_size: int, batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """This rank's samples of a joined batch."""
    rows = slice(rank * batch, (rank + 1) * batch)
    z_i, z_j = draw(world_size * batch, 5, seed=3, dtype=dtype)
    return z_i[rows].clone().requires_grad_(), z_j[rows].clone().requires_grad_()


def on_rank(rank: int, world_size: int, batch: int, weighted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of this rank's samples, and the gradient that reaches their projections."""
    z_i, z_j = share(rank, world_size, batch)
    losses = nt_xent(z_i, z_j, 0.3, "none", gather=True)
    weight = weights(world_size * batch)[rank * batch : (rank + 1) * batch] if weighted else 1.0
    gradients = torch.autograd.grad((weight * losses).mean(), (z_i, z_j))
    return losses.detach(), *gradients


def weights(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def with_ddp(rank: int, world_size: int, batch: int) -> list[Tensor]:
    """Gradients of a model's parameters under DistributedDataParallel."""
    model = DistributedDataParallel(layer())
    z_i, z_j = share(rank, world_size, batch)
    projections = model(torch.cat([z_i, z_j]).detach())
    nt_xent(*projections.chunk(2), gather=True).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    del model
    return gradients  # type: ignore[return-value]


def layer() -> nn.Module:
    model = nn.Linear(5, 4).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def in_half_precision(rank: int, world_size: int) -> float:
    z_i, z_j = share(rank, world_size, 4, torch.bfloat16)
    loss = nt_xent(z_i, z_j, gather=True)
    loss.backward()
    assert z_i.grad is not None and z_i.grad.dtype == torch.bfloat16
    return loss.item()


def without_gathering(rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    z_i, z_j = share(rank, world_size, 4)
    return nt_xent(z_i, z_j, reduction="none").detach(), plain(z_i, z_j, 0.5).detach()


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("world_size", "batch"), [(2, 4), (3, 2), (2, 1)])
def test_gathered_negatives_equal_one_process(pool: Pool, world_size: int, batch: int, weighted: bool) -> None:
    """Values as in the joined batch; gradients of the sum over ranks of means: world_size times the joined mean's."""
    results = pool.run(on_rank, batch, weighted, world_size=world_size)
    z_i, z_j = (z.requires_grad_() for z in draw(world_size * batch, 5, seed=3))
    losses = plain(z_i, z_j, 0.3)
    torch.testing.assert_close(torch.cat([values for values, _, _ in results]), losses.detach())
    weight = weights(world_size * batch) if weighted else 1.0
    gradients = torch.autograd.grad(world_size * (weight * losses).mean(), (z_i, z_j))
    for place, wanted in enumerate(gradients, start=1):
        torch.testing.assert_close(torch.cat([result[place] for result in results]), wanted)


@pytest.mark.slow
@pytest.mark.ddp
def test_parameters_under_ddp_get_the_gradient_of_the_joined_batch(pool: Pool) -> None:
    model = layer()
    z_i, z_j = draw(8, 5, seed=3)
    plain(model(z_i), model(z_j), 0.5).mean().backward()
    wanted = [parameter.grad for parameter in model.parameters()]
    for gradients in pool.run(with_ddp, 4, world_size=2):
        torch.testing.assert_close(gradients, wanted)


@pytest.mark.slow
@pytest.mark.ddp
def test_ranks_gather_half_precision_too(pool: Pool) -> None:
    values = pool.run(in_half_precision, world_size=2)
    z_i, z_j = draw(8, 5, seed=3, dtype=torch.bfloat16)
    assert sum(values) / 2 == pytest.approx(float(plain(z_i.float(), z_j.float(), 0.5).mean()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.ddp
def test_without_gathering_each_rank_is_alone(pool: Pool) -> None:
    for gradient, expected in pool.run(without_gathering, world_size=2):
        torch.testing.assert_close(gradient, expected)


def test_gathering_alone_is_not_gathering() -> None:
    z_i, z_j = draw(4, 3)
    assert torch.equal(nt_xent(z_i, z_j, gather=True), nt_xent(z_i, z_j))
